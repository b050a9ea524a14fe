"""Libraries that wait for answers: each runs in a thread, while what it asks for is done in our event loop, where clients live."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Crossing:
    """The way from a library's threads back into the loop it was made in.

    Many libraries catch what they call and go on: a budget that is spent, or a model that is down, would end as a bad score. So what fails
    here is kept, nothing more is begun, the library is left by an exception it does not catch, and `run` raises what was kept.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._failure: BaseException | None = None
        self._over = False

    async def run(self, library: Callable[[], T]) -> T:
        """The library's result, from a thread of its own. Raises the first failure of `wait` or `loud`, whatever the library made of it.

        Ends when the thread has ended and all that was asked for; threads that the library leaves behind can ask nothing more. Cancelled,
        it ends at the library's next question.
        """
        thread = self._loop.run_in_executor(None, library)
        try:
            result = await asyncio.shield(thread)
        except asyncio.CancelledError as stopped:
            self._fail(stopped)
            for future in list(self._open):
                future.cancel()
            await asyncio.wait([thread])
            raise
        except BaseException:
            if not self._failure:
                raise
        finally:
            with self._lock:
                self._over = True
            await asyncio.gather(*(asyncio.wrap_future(future) for future in list(self._open)), return_exceptions=True)
        if self._failure:
            raise self._failure
        return result

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """In a library's thread: the result of a coroutine that runs in the loop. A failure ends the library."""
        with self._lock:
            if self._failure or self._over:
                work.close()
                raise _Left
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._open.add(future)
        try:
            return future.result()
        except BaseException as error:
            self._fail(error)
            raise _Left from error
        finally:
            self._open.discard(future)

    @contextmanager
    def loud(self) -> Iterator[None]:
        """In a library's thread: what fails inside ends the library, too. For our code that it calls."""
        try:
            yield
        except Exception as error:
            self._fail(error)
            raise _Left from error

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error


class _Left(BaseException):
    """Leaves a library; no Exception, for those are caught."""
