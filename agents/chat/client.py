"""Asking a chat model with everything around it that a long run needs: cache, bounds, time-outs, retries, budget, counts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

from agents.chat import failures
from agents.chat.budget import Amount, Budget
from agents.chat.errors import CallFailed
from agents.chat.flight import Flights
from agents.chat.prices import Price
from agents.chat.spec import Endpoint
from agents.chat.types import CallRecord, ChatRequest, Counts, Request, Response, ResponseCache, ScoreRequest, request_key
from recsys_core.errors import UnavailableError

T = TypeVar("T")
_BREAKER = 8
"""Questions that may fail one after another before the endpoint counts as down."""
_MOST_TOKENS = 2**31 - 1
"""Of one answer, in or out; what the store can hold."""
_REASK_TEMPERATURE = 0.7
"""Least temperature of a repeated question; a greedy model would repeat its unusable answer."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A parsed answer, or None and why. keys: the content addresses of the questions asked for it, the last one's answer is the value."""

    value: T | None
    error: str = ""
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """One score a continuation, higher is likelier, in nats; key: the question's content address."""

    scores: tuple[float, ...]
    key: str


class ChatClient:
    """One model, asked by many agents at a time. Belongs to one event loop.

    cache: answers kept beyond this client, None for none; concurrency: questions in flight; timeout: seconds a call may take;
    retries: further attempts of a failed call, and further questions after an unusable answer;
    backoff: seconds before the first retry, then doubling; on_call: gets one record a question, cached ones too.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: ResponseCache | None = None,
        concurrency: int | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 0.5,
        budget: Budget | None = None,
        price: Price | None = None,
        on_call: Callable[[CallRecord], None] | None = None,
    ) -> None:
        self.endpoint, self.cache, self.timeout, self.retries, self.backoff = endpoint, cache, timeout, retries, backoff
        self.budget, self.price, self.on_call = budget or Budget(), price, on_call
        self.counts = Counts()
        self._gate = asyncio.Semaphore(concurrency or endpoint.concurrency)
        self._flights: Flights[Response] = Flights()
        self._failed_in_a_row = 0
        self._succeeded = False
        self._down: UnavailableError | None = None

    @property
    def model_id(self) -> str:
        """The model's identity in the cache."""
        return self.endpoint.model_id

    @property
    def can_score(self) -> bool:
        """Whether the model gives likelihoods of given texts."""
        return self.endpoint.sampling == "embedded"

    async def ask(self, request: ChatRequest) -> Response:
        """One answer, from the cache where it has one. Equal questions in flight are asked once.

        Raises CallFailed when this question got no answer, UnavailableError when the endpoint is of no use, and BudgetExceeded before
        a bound is passed.
        """
        return await self._answer(request, lambda: self._chat(request))

    async def ask_json(self, request: ChatRequest, parse: Callable[[str], T]) -> Answer[T]:
        """One parsed answer. `parse` raises ValueError, KeyError or TypeError for text it cannot use; the question is then repeated.

        After `retries` repetitions, or a failed call, `value` is None with the reason: one agent's page must not end the run.
        """
        keys: list[str] = []
        error = ""
        for attempt in range(self.retries + 1):
            again = (
                request
                if attempt == 0
                else replace(request, repeat=request.repeat + attempt, temperature=max(request.temperature, _REASK_TEMPERATURE))
            )
            keys.append(request_key(self.model_id, again))
            try:
                response = await self.ask(again)
            except CallFailed as failed:
                return Answer(None, str(failed), tuple(keys))
            try:
                return Answer(parse(response.text), keys=tuple(keys))
            except (ValueError, KeyError, TypeError) as unusable:
                self.counts.parse_failures += 1
                error = f"unusable answer: {' '.join(str(unusable).split())[:200] or type(unusable).__name__}"
        return Answer(None, f"{error} ({len(keys)} tries)", tuple(keys))

    async def score(self, request: ScoreRequest) -> Scores:
        """How likely each continuation is (PMI where the request has an empty context).

        Raises as `ask` does, and UnavailableError where the model cannot score.
        """
        if not self.can_score:
            raise UnavailableError(f"chat model {self.model_id!r} gives no likelihoods of given texts; use the embedded model for scoring")
        response = await self._answer(request, lambda: self._score(request))
        return Scores(tuple(json.loads(response.text)), request_key(self.model_id, request))

    async def _answer(self, request: Request, dispatch: Callable[[], Awaitable[Response]]) -> Response:
        started, key = time.monotonic(), request_key(self.model_id, request)
        if self.cache is not None and (known := self.cache.get(key)):
            self._book(request, key, started, known, cached=True)
            return known
        flying = key in self._flights
        response = await self._flights.join(key, lambda: self._fly(request, key, dispatch))
        if flying:
            self._book(request, key, started, response, cached=True)
        return response

    async def _fly(self, request: Request, key: str, dispatch: Callable[[], Awaitable[Response]]) -> Response:
        """Attempts, retries, the record and the breaker of one question that is really asked."""
        if self._down:
            raise self._down
        started, error = time.monotonic(), "stopped while it was asked"
        attempts: list[Response] = []
        try:
            while True:
                try:
                    response = await self._attempt(request, dispatch, attempts)
                    break
                except _Attempt as failed:
                    failure, error = failed.failure, failed.failure.cause
                retries = len(attempts) - 1
                if retries == self.retries or failure.kind != "retry" or (failure.wait or 0) > failures.LONGEST_WAIT:
                    raise self._failed(failure, retries)
                wait = failures.pause(key, retries, self.backoff, failure.wait)
                if wait >= self.budget.seconds_left:
                    self.budget.refuse_wall()
                await asyncio.sleep(wait)
            self._failed_in_a_row, self._succeeded = 0, True
            if self.cache is not None:
                self.cache.put(key, self.model_id, request, response)
            error = ""
            return response
        finally:
            # However it ended: the record says what the budget was charged, from which a resumed run goes on.
            if attempts:
                used = Response("", sum(a.prompt_tokens for a in attempts), sum(a.completion_tokens for a in attempts))
                self._book(request, key, started, used, retries=len(attempts) - 1, error=error)

    async def _attempt(self, request: Request, dispatch: Callable[[], Awaitable[Response]], attempts: list[Response]) -> Response:
        """One call inside the gate and the budget; an answer that never came but may have been billed uses up its reservation.

        attempts: gets the tokens it is charged for.
        """
        async with self._gate:
            if self._down:
                raise self._down
            used = most = Response("", _prompt_bound(request), request.max_tokens if isinstance(request, ChatRequest) else 0)
            await self.budget.reserve(self._amount(most))
            left = self.budget.seconds_left
            try:
                async with asyncio.timeout(min(self.timeout, left)):
                    response = await dispatch()
                used = response
                return response
            except Exception as error:
                if isinstance(error, TimeoutError) and left < self.timeout:
                    self.budget.refuse_wall()
                failure = failures.read(error, first=not self._succeeded)
                used = most if failure.billed else Response("", 0, 0)
                raise _Attempt(failure) from error
            finally:
                self.budget.settle(self._amount(most), self._amount(used))
                attempts.append(used)

    def _failed(self, failure: failures.Failure, retries: int) -> Exception:
        """The error of a question that is given up; opens the breaker where the endpoint is at fault."""
        self._failed_in_a_row += failure.kind != "question"
        if failure.kind == "endpoint":
            self._down = UnavailableError(f"chat model {self.model_id!r} at {self.endpoint.where} cannot be used: {failure.cause}")
            return self._down
        asked = f", the server asks to wait {failure.wait:g} s" if (failure.wait or 0) > failures.LONGEST_WAIT else ""
        if self._failed_in_a_row >= _BREAKER:
            self._down = UnavailableError(
                f"chat model {self.model_id!r} at {self.endpoint.where} failed {_BREAKER} questions in a row, "
                f"the last with: {failure.cause}{asked}; run again to resume"
            )
            return self._down
        return CallFailed(f"no answer from {self.endpoint.where} after {retries + 1} attempts: {failure.cause}{asked}")

    async def _chat(self, request: ChatRequest) -> Response:
        turns = [(m.role, m.content) for m in request.messages]
        from langchain_core.messages import convert_to_messages

        message = await self.endpoint.model.ainvoke(convert_to_messages(turns), **self.endpoint.arguments(request))
        usage: Any = getattr(message, "usage_metadata", None) or {}
        text = str(message.text)
        written = min(request.max_tokens, len(text.encode()))
        return Response(text, _counted(usage.get("input_tokens"), _prompt_bound(request)), _counted(usage.get("output_tokens"), written))

    async def _score(self, request: ScoreRequest) -> Response:
        from agents.chat.embedded import EmbeddedChatModel

        scored = await cast(EmbeddedChatModel, self.endpoint.model).score(request)
        return Response(json.dumps(scored.scores), scored.tokens, 0)

    def _amount(self, response: Response) -> Amount:
        return Amount(response.prompt_tokens + response.completion_tokens, self.price.of(response) if self.price else 0.0)

    def _book(
        self,
        request: Request,
        key: str,
        started: float,
        used: Response,
        *,
        cached: bool = False,
        retries: int = 0,
        error: str = "",
    ) -> None:
        seconds = time.monotonic() - started
        fresh = Response("", 0, 0) if cached else used
        cost = self._amount(fresh).cost
        kind = "chat" if isinstance(request, ChatRequest) else "score"
        counts = self.counts
        counts.calls += not cached
        counts.cache_hits += cached
        counts.prompt_tokens += fresh.prompt_tokens
        counts.completion_tokens += fresh.completion_tokens
        counts.retries += retries
        counts.failures += bool(error)
        counts.cost += cost
        counts.seconds += seconds
        if self.on_call:
            self.on_call(
                CallRecord(key, self.model_id, kind, cached, used.prompt_tokens, used.completion_tokens, retries, seconds, cost, error)
            )


class _Attempt(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, failure: failures.Failure) -> None:
        super().__init__(failure.cause)
        self.failure = failure


def _counted(reported: Any, bound: int) -> int:
    """Tokens as the endpoint reports them; the bound where it reports none or what cannot be, so that it cannot pass the budget."""
    return reported if isinstance(reported, int) and 0 < reported <= _MOST_TOKENS else bound


def _prompt_bound(request: Request) -> int:
    """No fewer tokens than any byte-level tokenizer can make of the request: one a byte, and a turn's control tokens."""
    if isinstance(request, ChatRequest):
        schema = len(json.dumps(request.schema).encode()) if request.schema else 0
        return sum(len(m.content.encode()) + len(m.role.encode()) + 8 for m in request.messages) + schema + 64
    texts = sum(len(c.encode()) for c in request.continuations)
    return len(request.prompt.encode()) + texts + 2 + (len(request.empty.encode()) + texts if request.empty is not None else 0)
