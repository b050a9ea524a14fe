"""No budget is ever passed: any bounds, any costs, 64 questions in flight."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chat import Amount, Budget, BudgetExceeded
from recsys_core.errors import DataError, RunStoppedError


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
