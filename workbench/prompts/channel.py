"""What the language-model rankers of a command share: a store for answers and templates, a budget, and a count of all questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agents.chat import Amount, Budget, CallRecord, ChatClient, Counts, MemoryCache, ResponseCache
from workbench.prompts.ranked import Ranked, Ranker, Rates, rates
from workbench.prompts.tasks import Row

if TYPE_CHECKING:
    from workbench.config import LLMSettings
    from workbench.store import Store

T = TypeVar("T")
_TIMEOUT = 600.0
"""Seconds a question may take; the embedded model answers those in flight one after another."""


@dataclass(eq=False)
class Channel:
    """How rankers ask, and what they asked.

    cache: answers by content address; store: where templates are found by name, if anywhere; on_call: is told of every question;
    budget: of all of them; client: further settings of `agents.chat.connect`.
    counts, rates: what was asked so far, and of how much use the answers were.
    """

    cache: ResponseCache = field(default_factory=MemoryCache)
    store: Store | None = None
    on_call: Callable[[CallRecord], None] | None = None
    budget: Budget = field(default_factory=Budget)
    client: dict[str, Any] = field(default_factory=lambda: {"timeout": _TIMEOUT})
    counts: Counts = field(default_factory=Counts)
    rates: Rates = field(default_factory=Rates)

    def rank(self, connected: Callable[..., ChatClient], ranker: Callable[[ChatClient], Ranker], rows: Sequence[Row]) -> list[Ranked]:
        """Ranks rows in an event loop of its own, since the caller may be inside one; raises what rankers raise.

        The caller's loop stands still meanwhile: what its own questions have set aside of the budget counts as spent, for none of it can
        come back.
        """
        share = _share(self.budget)
        before = share.used
        client = self._connect(connected, share)
        try:
            return _in_own_loop(self._ranked(client, ranker, rows))
        finally:
            used = Amount(share.used.tokens - before.tokens, share.used.cost - before.cost, share.used.calls - before.calls)
            self.budget.settle(Amount(calls=0), used)

    async def rank_async(
        self, connected: Callable[..., ChatClient], ranker: Callable[[ChatClient], Ranker], rows: Sequence[Row]
    ) -> list[Ranked]:
        """Ranks rows in the caller's event loop, beside its other questions and inside one budget with them; raises what rankers raise."""
        # A model in this process may have to be loaded first.
        client = await asyncio.to_thread(self._connect, connected, self.budget)
        return await self._ranked(client, ranker, rows)

    def _connect(self, connected: Callable[..., ChatClient], budget: Budget) -> ChatClient:
        return connected(cache=self.cache, on_call=self.on_call, budget=budget, **self.client)

    async def _ranked(self, client: ChatClient, ranker: Callable[[ChatClient], Ranker], rows: Sequence[Row]) -> list[Ranked]:
        try:
            results = await ranker(client).rank(rows)
        finally:
            self.counts = added(self.counts, client.counts)
        self.rates = added(self.rates, rates(results))
        return results


_OPEN: ContextVar[Channel | None] = ContextVar("channel", default=None)


@contextmanager
def ranking_through(
    store: Store,
    on_call: Callable[[CallRecord], None] | None = None,
    budget: Budget | None = None,
    llm: LLMSettings | None = None,
) -> Iterator[Channel]:
    """While it is open, every LLMRanker of this process asks through one channel, with the answers of the store.

    budget: may be that of a client of the caller's event loop; llm: timeout, retries and concurrency.
    """
    client = {"timeout": llm.timeout, "retries": llm.retries, "concurrency": llm.concurrency} if llm else {"timeout": _TIMEOUT}
    channel = Channel(store.response_cache(), store, on_call, budget or Budget(), client)
    token = _OPEN.set(channel)
    try:
        yield channel
    finally:
        _OPEN.reset(token)


def open_channel() -> Channel | None:
    """The channel of the innermost `ranking_through`."""
    return _OPEN.get()


def added(a: T, b: T) -> T:
    """The sum, field by field, of two dataclasses of numbers."""
    return type(a)(*(x + y for x, y in zip(astuple(a), astuple(b), strict=True)))  # type: ignore[call-overload]


def _share(budget: Budget) -> Budget:
    """A budget with the same bounds for another event loop, of which all is used that is used or set aside of this one."""
    wall = None if budget.wall is None else max(budget.seconds_left, 0.0)
    return replace(budget, wall=wall, used=added(budget.used, budget.reserved))


def _in_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that a thread does; where the caller is interrupted, what is in flight is dropped."""
    running: Future[Callable[[], object]] = Future()

    async def told() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        return await work

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(asyncio.run, told())
        try:
            wait([future])
        except BaseException:
            with suppress(RuntimeError):  # it has just ended by itself
                running.result()()
            raise
        return future.result()
