"""No budget is ever passed: any bounds, any costs, 64 questions in flight."""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from agents.chat import Amount, Budget, BudgetExceeded, CallFailed, ChatRequest, Message, Price, Response, connect
from recsys_core.errors import DataError, RunStoppedError, UnavailableError


@settings(max_examples=40, deadline=None)
@given(
    bound=st.fixed_dictionaries({"tokens": st.integers(0, 3000), "calls": st.integers(0, 80), "cost": st.floats(0, 0.5)}),
    needs=st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1), st.integers(0, 3)), min_size=64, max_size=64),
)
def test_used_and_reserved_never_pass_a_bound(bound: dict[str, float], needs: list[tuple[int, float, int]]) -> None:
    budget = Budget(**bound)  # type: ignore[arg-type]
    refused: list[BudgetExceeded] = []

    def check() -> None:
        for name, most in bound.items():
            assert getattr(budget.used, name) + getattr(budget.reserved, name) <= most + 1e-9

    async def one(tokens: int, share: float, turns: int) -> None:
        most = Amount(tokens, tokens * 1e-4)
        try:
            await budget.reserve(most)
        except BudgetExceeded as error:
            refused.append(error)
            return
        check()
        for _ in range(turns):
            await asyncio.sleep(0)
        used = Amount(int(tokens * share), int(tokens * share) * 1e-4)
        budget.settle(most, used)
        check()

    async def run() -> None:
        await asyncio.gather(*(one(*need) for need in needs))

    asyncio.run(run())
    assert (budget.reserved.tokens, budget.reserved.calls) == (0, 0)
    assert budget.used.calls + len(refused) == 64
    if all(t <= bound["tokens"] / 64 and t * 1e-4 <= bound["cost"] / 64 - 1e-9 for t, _, _ in needs) and bound["calls"] >= 64:
        assert not refused


async def test_a_question_waits_for_what_others_give_back() -> None:
    budget = Budget(tokens=100)
    await budget.reserve(Amount(80))
    second = asyncio.create_task(budget.reserve(Amount(80)))
    await asyncio.sleep(0.01)
    assert not second.done()
    budget.settle(Amount(80), Amount(10))
    await second
    assert (budget.used.tokens, budget.reserved.tokens) == (10, 80)


async def test_a_question_that_can_never_fit_is_refused_at_once() -> None:
    budget = Budget(tokens=100)
    await budget.reserve(Amount(60))
    with pytest.raises(BudgetExceeded, match=r"tokens budget of 100 .* 0 used, 60 reserved, the next question may take 101") as error:
        await budget.reserve(Amount(101))
    assert isinstance(error.value, RunStoppedError)


async def test_wall_time_ends_a_wait() -> None:
    budget = Budget(tokens=100, wall=0.05)
    await budget.reserve(Amount(100))
    with pytest.raises(BudgetExceeded, match="wall-time"):
        await budget.reserve(Amount(1))


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(DataError, match="tokens is -1"):
        Budget(tokens=-1)


class Thrifty(BaseChatModel):
    """Uses a random part of what a question may use, in random time, and fails now and then; keeps what was really used."""

    draw: Any
    price: Any
    pause: float = 0.0
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    ended: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "thrifty"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, max_tokens: int = 0, **kwargs: Any) -> ChatResult:
        self.calls += 1
        for _ in range(self.draw.randint(0, 3)):
            await asyncio.sleep(self.pause)
        self.ended = time.monotonic()
        # At most a token a byte goes in; nobody takes more than max_tokens out.
        into, out = self.draw.randint(1, len(str(messages[0].text).encode())), self.draw.randint(0, max_tokens)
        self.tokens += into + out
        self.cost += (into * self.price.prompt + out * self.price.completion) / 1e6
        if self.draw.random() < 0.2:
            raise ValueError("unreadable")
        message = AIMessage("fine", usage_metadata={"input_tokens": into, "output_tokens": out, "total_tokens": into + out})
        return ChatResult(generations=[ChatGeneration(message=message)])


@settings(max_examples=25, deadline=None)
@given(
    bound=st.fixed_dictionaries({}, optional={"tokens": st.integers(0, 20_000), "calls": st.integers(0, 100), "cost": st.floats(0, 0.1)}),
    seed=st.integers(0, 2**32),
)
def test_a_client_asked_by_64_never_overshoots(bound: dict[str, float], seed: int) -> None:
    """What the model has really used, failed calls among it, is inside every bound."""
    model, budget, results = ask_64(Budget(**bound), seed)  # type: ignore[arg-type]
    for name in ("tokens", "calls", "cost"):
        assert getattr(model, name) <= getattr(budget.used, name) + 1e-9
        assert getattr(budget.used, name) <= bound.get(name, math.inf) + 1e-9
    assert (budget.reserved.tokens, budget.reserved.calls) == (0, 0)
    assert budget.reserved.cost == pytest.approx(0)
    assert all(isinstance(r, Response | BudgetExceeded | CallFailed | UnavailableError) for r in results)
    if not bound:
        assert not any(isinstance(r, BudgetExceeded) for r in results)


def test_nothing_a_client_asks_ends_after_its_time() -> None:
    """64 questions of up to half a second each, four at a time, in a third of a second."""
    started = time.monotonic()
    model, _, results = ask_64(Budget(wall=0.35), seed=1, pause=0.15, concurrency=4)
    assert any(isinstance(r, BudgetExceeded) for r in results)
    assert model.calls > 4
    assert model.ended < started + 0.35 + 0.3, "but for what a busy machine adds"


def ask_64(budget: Budget, seed: int, pause: float = 0.0, concurrency: int = 64) -> tuple[Thrifty, Budget, list[Any]]:
    draw, price = random.Random(seed), Price(2.0, 10.0)
    model = Thrifty(draw=draw, price=price, pause=pause)
    client = connect(model, concurrency=concurrency, retries=2, backoff=0.0, budget=budget, price=price)
    requests = [ChatRequest((Message("user", "x" * draw.randint(1, 300)),), max_tokens=draw.randint(1, 200), seed=n) for n in range(64)]

    async def run() -> list[Any]:
        return await asyncio.gather(*(client.ask(request) for request in requests), return_exceptions=True)

    return model, budget, asyncio.run(run())
