"""Single flight: equal questions asked at the same time are asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Running work by key. A waiter that is cancelled leaves the others waiting; the work itself is cancelled when nobody is left."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[T]] = {}
        self._waiters: dict[str, int] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def join(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work under `key`, begun by the first who asks. Its error reaches every waiter."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(start())
            self._waiters[key] = 0
            task.add_done_callback(lambda _: self._forget(key))
        self._waiters[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if not task.done():
                self._waiters[key] -= 1
                if self._waiters[key] == 0:
                    # Forgotten at once: whoever asks next must not join work that is being cancelled.
                    self._forget(key)
                    task.cancel()

    def _forget(self, key: str) -> None:
        self._tasks.pop(key, None)
        self._waiters.pop(key, None)
