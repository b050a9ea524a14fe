"""Plans: a difference as large as foretold is found as often as it says, no ranker takes more than its estimate, the end is paid for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from scipy.stats import binom, norm

from agents.chat import Amount, Budget, BudgetExceeded, ChatClient, Endpoint, Price, ScoreRequest, connect
from recsys_core.errors import DataError
from recsys_core.evaluation.compare import sign_flip_p
from workbench.prompts.asking import Asking
from workbench.prompts.metrics import Measured
from workbench.prompts.planning import (
    Estimate,
    estimate,
    expected_sd,
    hold_back,
    minimum_detectable_effect,
    outlook,
    paired_sd,
    what_is_left,
)
from workbench.prompts.rankers import ranker_for
from workbench.prompts.starting import CHOICE, LIKELIHOOD, PLAIN, PO4ISR, POINTWISE, RECPROMPT, showing
from workbench.prompts.tasks import Item, Row

PRICE = Price(1.0, 5.0)


# What can be seen.


@given(st.integers(2, 10**6), st.floats(0, 1), st.floats(0.001, 0.5), st.floats(0.5, 0.999))
def test_the_effect_is_that_of_the_normal_approximation(n: int, sd: float, alpha: float, power: float) -> None:
    effect = minimum_detectable_effect(n, sd, alpha, power)
    assert effect == pytest.approx((norm.isf(alpha / 2) + norm.ppf(power)) * sd / n**0.5)
    assert minimum_detectable_effect(4 * n, sd, alpha, power) == pytest.approx(effect / 2)


@pytest.mark.parametrize("n", [50, 150])
def test_an_effect_of_this_size_is_found_as_often_as_it_says(n: int) -> None:
    """Differences of reciprocal ranks among 10, many of them 0, moved to the mean in question; found by the test that decides."""
    rng, runs = np.random.default_rng(n), 300
    base = 1 / rng.integers(1, 11, (runs, n)) - 1 / rng.integers(1, 11, (runs, n))
    sd = float((1 / np.arange(1, 11)).std() * 2**0.5)
    for power in (0.5, 0.8):
        effect = minimum_detectable_effect(n, sd, power=power)
        found = sum(sign_flip_p(d + effect, rng, 999) <= 0.05 for d in base)
        assert binom.ppf(0.001, runs, power - 0.04) <= found <= binom.ppf(0.999, runs, power + 0.04)


def test_the_guess_before_anything_is_spent_is_above_what_pairs_of_prompts_show() -> None:
    rng, rows = np.random.default_rng(0), tuple(map(str, range(3000)))

    def prompt(shared: float, ours: np.ndarray[Any, Any]) -> Measured:
        utility = shared**0.5 * ours + (1 - shared) ** 0.5 * rng.normal(size=ours.shape)
        return Measured("prompt", rows, {"MRR": 1 / (1 + (utility[:, 1:] > utility[:, :1]).sum(1))})

    ours = rng.normal(size=(3000, 10))
    guess = expected_sd([prompt(0.0, ours), Measured("random", rows, {"MRR": np.full(3000, 0.293)})], "MRR")
    unrelated, related, twins = (paired_sd(prompt(s, ours), prompt(s, ours), "MRR") for s in (0.0, 0.5, 0.99))
    assert guess == pytest.approx(unrelated, rel=0.05)
    assert guess > related > twins > 0


@pytest.mark.parametrize(
    "wrong", [{"n": 1}, {"sd": -1.0}, {"sd": math.nan}, {"sd": math.inf}, {"alpha": 0.0}, {"alpha": 1.0}, {"power": 1.0}]
)
def test_impossible_plans_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match="give at least 2 rows, a finite sd"):
        minimum_detectable_effect(**{"n": 100, "sd": 0.3, **wrong})  # type: ignore[arg-type]


def test_spreads_need_rows() -> None:
    a, b = (Measured(name, rows, {"MRR": np.ones(len(rows))}) for name, rows in (("a", ("1",)), ("b", ("1", "2"))))
    with pytest.raises(DataError, match="a has 1 rows and b 2"):
        paired_sd(a, b, "MRR")
    for few in ([], [a]):
        with pytest.raises(DataError, match="measure the baselines"):
            expected_sd(few, "MRR")


# What it takes.


class Says(BaseChatModel):
    """Answers as told, in as many tokens as were allowed."""

    text: str
    usage: dict[str, int] | None = None

    @property
    def _llm_type(self) -> str:
        return "says"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.text, usage_metadata=self.usage))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)


class Scorer:
    """Stands for the embedded model."""

    async def score(self, request: ScoreRequest) -> Any:
        return SimpleNamespace(scores=[-float(len(c)) for c in request.continuations], tokens=1)


class Ledger(Budget):
    """Keeps what was reserved for each question."""

    async def reserve(self, most: Amount) -> None:
        self.__dict__.setdefault("asked", []).append(most)
        await super().reserve(most)

    @property
    def total(self) -> Amount:
        asked: list[Amount] = self.__dict__.get("asked", [])
        return Amount(sum(a.tokens for a in asked), sum(a.cost for a in asked), len(asked))


def client(scored: bool, text: str, budget: Budget) -> ChatClient:
    if scored:
        return ChatClient(Endpoint(Scorer(), "scorer", "here", 8, "embedded"), budget=budget, price=PRICE)  # type: ignore[arg-type]
    return connect(Says(text=text), budget=budget, price=PRICE)


def row(number: int, titles: list[str], history: list[str]) -> Row:
    items = tuple(Item(f"i{place}", title, {"category": title[::-1]}) for place, title in enumerate(titles))
    return Row(f"row {number}", tuple(Item(f"h{n}", title) for n, title in enumerate(history)), items, {"i0": 1.0})


TITLES = st.lists(st.text(max_size=200), min_size=1, max_size=6)
ROWS = st.lists(st.tuples(TITLES, TITLES), min_size=1, max_size=3).map(lambda drawn: [row(n, *both) for n, both in enumerate(drawn)])
ALL = "C1 > C2 > C3 > C4 > C5 > C6"
KINDS: dict[str, tuple[Any, dict[str, Any], bool, str]] = {
    "listwise": (PLAIN, {}, False, ALL),
    "with a system turn and fields": (showing(RECPROMPT, ("category",)), {"asking": Asking(retries=3)}, False, ALL),
    "with reasoning, repeated": (PO4ISR, {"repetitions": 3}, False, f"Final ranking: {ALL}"),
    "pointwise": (POINTWISE, {"asking": Asking(retries=0)}, False, "Yes"),
    "pairs": (CHOICE, {"set_size": 2, "asking": Asking(max_tokens=7)}, False, "C1"),
    "sets": (CHOICE, {"set_size": 3}, False, "C1"),
    "yes by likelihood": (POINTWISE, {}, True, ""),
    "likelihood": (LIKELIHOOD, {}, True, ""),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(rows=ROWS, usable=st.booleans())
def test_no_ranker_reserves_more_than_its_estimate(kind: str, rows: list[Row], usable: bool) -> None:
    template, made, scored, text = KINDS[kind]
    ledger = Ledger()
    ranker = ranker_for(client(scored, text if usable else "no idea", ledger), template, **made)
    told = estimate(ranker, rows, scored=scored, price=PRICE, **{k: v for k, v in made.items() if k != "repetitions"})
    asyncio.run(ranker.rank(rows))
    assert ledger.total.calls <= told.most.calls
    assert ledger.total.tokens <= told.most.tokens
    assert ledger.total.cost <= told.most.cost + 1e-12
    assert told.likely.calls <= told.most.calls
    assert told.likely.tokens <= told.most.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_is_no_larger_than_it_must_be(kind: str) -> None:
    """Where candidates are equally long and no answer is of use, what is reserved comes to the bound."""
    template, made, scored, _ = KINDS[kind]
    ledger = Ledger()
    rows = [row(n, [f"title {c} of row {n}" for c in range(4)], [f"seen {n}", "this too"]) for n in range(3)]
    ranker = ranker_for(client(scored, "no idea", ledger), template, **made)
    told = estimate(ranker, rows, scored=scored, price=PRICE, **{k: v for k, v in made.items() if k != "repetitions"})
    asyncio.run(ranker.rank(rows))
    if kind == "sets":  # how many questions a tournament takes depends on who wins
        assert 0.4 * told.most.tokens <= ledger.total.tokens <= told.most.tokens
        return
    assert (ledger.total.calls, ledger.total.tokens) == (told.most.calls, told.most.tokens)
    assert ledger.total.cost == pytest.approx(told.most.cost)


def simple(calls: int, tokens: int, cost: float, priced: bool = True) -> Estimate:
    return Estimate(Amount(tokens, cost, calls), Amount(tokens // 4, cost / 4, calls // 2), priced)


def test_estimates_add_up_and_print_in_a_line() -> None:
    rows = [row(n, ["x" * 10 * (n + 1)] * 5, ["y"]) for n in range(4)]
    ranker = ranker_for(connect(Says(text=ALL)), PLAIN)
    whole, parts = estimate(ranker, rows, price=PRICE), [estimate(ranker, [one], price=PRICE) for one in rows]
    assert (parts[0] + parts[1] + parts[2] + parts[3]).most.tokens == whole.most.tokens
    assert (whole * 3).most == Amount(3 * whole.most.tokens, 3 * whole.most.cost, 3 * whole.most.calls)
    with_unseen = estimate(ranker, rows, price=PRICE, unseen=10)
    assert with_unseen.most.tokens == whole.most.tokens + 10 * parts[3].most.tokens, "as large as the largest"
    assert with_unseen.most.calls == 28
    assert with_unseen.likely.tokens == math.ceil(whole.likely.tokens * 14 / 4)
    assert str(simple(1200, 350_000, 1.2)) == "likely 600 calls, 87,500 tokens, $0.30; at most 1,200 calls, 350,000 tokens, $1.20"
    assert str(simple(1200, 350_000, 1.2, priced=False)) == "likely 600 calls, 87,500 tokens; at most 1,200 calls, 350,000 tokens"
    assert not (simple(1, 1, 0) + simple(1, 1, 0, priced=False)).priced
    assert estimate(ranker, rows).priced is False
    for wrong in ({"rows": []}, {"rows": rows, "unseen": -1}):
        with pytest.raises(DataError, match="give at least 1 row"):
            estimate(ranker, **wrong)  # type: ignore[arg-type]


# What is kept for the end.


def test_a_search_gets_what_the_final_scoring_leaves() -> None:
    final = simple(100, 50_000, 0.5)
    search = hold_back(Budget(tokens=80_000, cost=2.0, calls=150, wall=60.0), final, seconds=20)
    assert (search.tokens, search.cost, search.calls, search.wall) == (30_000, 1.5, 50, 40.0)
    free = hold_back(Budget(), final)
    assert (free.tokens, free.cost, free.calls, free.wall) == (None, None, None, None)
    assert hold_back(Budget(calls=100), final).calls == 0


@pytest.mark.parametrize(
    ("budget", "error"),
    [
        (Budget(calls=99), "the calls budget is 99 and final scoring alone may take 100; raise it above 100"),
        (Budget(tokens=49_999), "the tokens budget is 49,999 and final scoring alone may take 50,000"),
        (Budget(cost=0.25), "the cost budget is 0.25 and final scoring alone may take 0.5;"),
        (Budget(wall=10), "the wall budget is 10 and final scoring alone may take 20"),
    ],
)
def test_a_budget_that_does_not_cover_the_end_is_refused(budget: Budget, error: str) -> None:
    with pytest.raises(DataError, match=error) as refused:
        hold_back(budget, simple(100, 50_000, 0.5), seconds=20)
    assert "\n" not in str(refused.value)


def test_a_cost_budget_without_a_price_is_refused() -> None:
    with pytest.raises(DataError, match="the price of the model is unknown"):
        hold_back(Budget(cost=1.0), simple(1, 1, 0.0, priced=False))


@settings(deadline=None, max_examples=20)
@given(calls=st.integers(4, 30), scale=st.floats(1, 5))
def test_however_a_search_spends_its_share_the_end_is_scored(calls: int, scale: float) -> None:
    """A search that never stops by itself, then the final scoring in what is left: it is never refused."""
    rows = [row(n, [f"title {n}", "another one"], ["seen"]) for n in range(4)]
    ended: list[str] = []

    async def play() -> Budget:
        asked = connect(Says(text=ALL, usage={"input_tokens": 90, "output_tokens": 20, "total_tokens": 110}), price=PRICE)
        final = estimate(ranker_for(asked, PLAIN), rows, price=PRICE)
        whole = Budget(calls=final.most.calls + calls, tokens=int(final.most.tokens * scale), cost=final.most.cost * scale, wall=60.0)
        asked.budget = searching = hold_back(whole, final, seconds=30)
        try:
            for repeat in range(1000):
                await ranker_for(asked, PLAIN).rank(rows, repeat)
        except BudgetExceeded as error:
            ended.append(str(error))
        asked.budget = rest = what_is_left(whole, searching)
        assert rest.wall is not None
        assert rest.wall <= 60.0
        assert (rest.used, rest.calls, rest.tokens, rest.cost) == (searching.used, whole.calls, whole.tokens, whole.cost)
        await ranker_for(asked, PLAIN).rank(rows, 1000)
        assert rest.used.calls == searching.used.calls + 4
        return rest

    rest = asyncio.run(play())
    assert all(getattr(rest.used, n) <= getattr(rest, n) for n in ("calls", "tokens", "cost"))
    assert ended


def test_time_spent_searching_is_gone() -> None:
    now = [0.0]
    whole = Budget(wall=100.0, clock=lambda: now[0])
    search = hold_back(whole, simple(1, 1, 0.0), seconds=40)
    assert search.seconds_left == 60
    now[0] = 70.0
    assert what_is_left(whole, search).wall == 30
    assert what_is_left(Budget(), hold_back(Budget(), simple(1, 1, 0.0))).wall is None


def test_the_outlook_says_what_a_budget_is_enough_for() -> None:
    final, search = simple(320, 1000, 0.0, priced=False), simple(1200, 4000, 0.0, priced=False)
    line: Callable[..., str] = lambda calls, search=None: outlook(Budget(calls=calls), final, search)  # noqa: E731
    assert line(1000) == f"final scoring: {final}; calls: 1,000 budgeted, 320 kept for final scoring, 680 for the search"
    assert f"; search: {search}; calls:" in line(1000, search)
    assert line(1520, search).endswith("1,200 for the search")
    assert line(1519, search).endswith("1,199 for the search, which may end early")
    assert line(900, search).endswith("580 for the search, which will probably end early")
    assert outlook(Budget(), final) == f"final scoring: {final}"
    resumed = outlook(Budget(calls=1000, used=Amount(calls=600)), final)
    assert resumed.endswith("calls: 1,000 budgeted, 600 used, 320 kept for final scoring, 80 for the search")
