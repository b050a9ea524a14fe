"""Races: bounds that hold at every look, a planted improvement found, and no call for who is out."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, ttest_1samp

from agents.chat import BudgetExceeded
from recsys_core.errors import DataError
from tests.workbench import landscape
from workbench.prompts.racing import Race, evidence, lower_bound, race
from workbench.prompts.ranked import Ranked
from workbench.prompts.starting import PLAIN
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

ROWS = landscape.rows("search", 64)
CHALLENGERS = [PLAIN.revise("test", task=f"variant {n}") for n in range(6)]
DIFFERENCES = st.lists(st.floats(-1, 1).map(lambda d: round(d, 3)), max_size=30).map(np.array)


@dataclass
class Drawn:
    """Ranks rows as a table says: version of the template to the rank of the positive in each row, from 1. asked: rows by version."""

    ranks: dict[str, NDArray[np.int64]]
    asked: dict[str, list[str]] = field(default_factory=dict)
    fails: Callable[[Template, str], bool] = lambda template, row: False
    ended: int = 0

    def __call__(self, template: Template) -> Any:
        return _Of(self, template)


@dataclass
class _Of:
    table: Drawn
    template: Template

    def calls(self, row: Row) -> int:
        return 1

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        version = self.template.version
        if any(self.table.fails(self.template, row.id) for row in rows):
            raise BudgetExceeded("calls budget of 10 would be passed")
        await asyncio.sleep(0)
        self.table.asked.setdefault(version, []).extend(row.id for row in rows)
        self.table.ended += 1
        return [Ranked(row.id, self._ranking(row, int(self.table.ranks[version][int(row.id.split("-")[1])])), ()) for row in rows]

    def _ranking(self, row: Row, rank: int) -> tuple[tuple[str, ...], ...]:
        (positive,) = row.positives
        others = tuple(item.id for item in row.candidates if item.id != positive)
        return tuple(group for group in (others[: rank - 1], (positive,), others[rank - 1 :]) if group)


def drawn(seed: int, better: dict[int, float] | None = None, n: int = len(ROWS)) -> Drawn:
    """Ranks among 10 by utilities, half of whose noise the templates share; better: quality by number of the challenger, else 0."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 10))
    ranks = {}
    for number, template in enumerate((PLAIN, *CHALLENGERS), -1):
        utility = 0.5**0.5 * shared + 0.5**0.5 * rng.normal(size=(n, 10))
        utility[:, 0] += (better or {}).get(number, 0.0)
        ranks[template.version] = 1 + (utility[:, 1:] > utility[:, :1]).sum(1)
    return Drawn(ranks)


def run(table: Drawn, challengers: Sequence[Template] = CHALLENGERS[:3], **settings: Any) -> Race:
    return asyncio.run(race(Trials(PLAIN, [], ROWS, table), PLAIN, challengers, **settings))


# What the bounds rest on.


@given(
    support=st.lists(st.floats(-1, 1), min_size=2, max_size=3, unique=True),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    n=st.integers(1, 4),
    above=st.floats(0, 1),
)
def test_wealth_is_fair_when_the_mean_is_what_it_is_bet_against(support: list[float], weights: list[int], n: int, above: float) -> None:
    """Over all sequences of a distribution, expected wealth is 1 at its mean and no more at a larger one."""
    chance = np.array(weights[: len(support)]) / sum(weights[: len(support)])
    mean = float(np.dot(support, chance))

    def expected(against: float) -> float:
        paths = itertools.product(range(len(support)), repeat=n)
        return sum(math.prod(chance[k] for k in path) * math.exp(evidence(np.array([support[k] for k in path]), against)) for path in paths)

    if mean > -0.999:
        assert expected(mean) == pytest.approx(1)
        assert expected(mean + above * (1 - mean)) <= 1 + 1e-9


@given(DIFFERENCES, st.floats(-0.99, 0.99))
def test_evidence_is_the_log_of_mean_wealth_over_the_bets(differences: NDArray[np.float64], mean: float) -> None:
    wealth = [math.prod(1 + b * (d - mean) / (1 + mean) for d in differences) for b in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert evidence(differences, mean) == pytest.approx(math.log(math.fsum(wealth) / 5), abs=1e-9)


@given(DIFFERENCES, st.randoms(), st.floats(0.001, 0.5), st.floats(1, 10))
def test_a_bound_is_below_the_mean_and_below_that_of_a_larger_alpha(d: NDArray[np.float64], rng: Any, alpha: float, less: float) -> None:
    low = lower_bound(d, alpha)
    assert -1 <= lower_bound(d, alpha / less) <= low <= (d.mean() if len(d) else -1)
    assert lower_bound(np.array(rng.sample(list(d), len(d))), alpha) == pytest.approx(low, abs=1e-6), (
        "the order of the rows is of no matter"
    )
    if -1 < low < 0.99:
        assert evidence(d, low - 1e-6) >= -math.log(alpha) - 1e-3
        assert evidence(d, low + 1e-6) <= -math.log(alpha) + 1e-3


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]] = {
    "mostly ties": lambda rng, size: rng.choice([0, 0, 0, 0, 0.5, -0.5, 0.9, -0.9], size),
    "rare large gains": lambda rng, size: np.where(rng.random(size) < 0.05, 0.9, -0.9 * 0.05 / 0.95),
    "rare large losses": lambda rng, size: np.where(rng.random(size) < 0.05, -0.9, 0.9 * 0.05 / 0.95),
    "reciprocal ranks": lambda rng, size: 1 / rng.integers(1, 11, size) - 1 / rng.integers(1, 11, size),
    "all or nothing": lambda rng, size: rng.choice([-1.0, 1.0], size),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_cover_at_every_look_together(shape: str) -> None:
    """Means are 0, so a bound fails where the evidence against 0 reaches 1 / alpha at any look: here after each 8 of 160 rows."""
    alpha, runs = 0.1, 1000
    paths = SHAPES[shape](np.random.default_rng(0), (runs, 160))
    failed = sum(any(evidence(path[:n]) >= -math.log(alpha) for n in range(8, 161, 8)) for path in paths)
    assert failed <= binom.ppf(0.999, runs, alpha)


def test_the_same_looks_deceive_a_test_made_for_one() -> None:
    """The simulation above has teeth: a t-test at each look fails far more often than it says."""
    paths = SHAPES["reciprocal ranks"](np.random.default_rng(0), (300, 160))
    looks = [ttest_1samp(paths[:, :n], 0, axis=1, alternative="greater").pvalue <= 0.1 for n in range(8, 161, 8)]
    assert np.any(looks, axis=0).mean() > 0.25


# Races.


def test_challengers_that_are_no_better_are_seldom_called_better() -> None:
    """Three challengers, looks after each block, alpha over all of them; the bounds alone are simulated above."""
    runs, alpha = 60, 0.2
    wrong = sum(run(drawn(seed), alpha=alpha).winner != PLAIN for seed in range(runs))
    assert wrong <= binom.ppf(0.999, runs, alpha)


def test_a_planted_improvement_wins_and_saves_calls() -> None:
    won = asked = 0
    for seed in range(40):
        table = drawn(seed, {1: 1.5})
        result = run(table, CHALLENGERS)
        won += result.winner == CHALLENGERS[1]
        assert result.standing[0].template == CHALLENGERS[1]
        asked += sum(map(len, table.asked.values()))
    assert won >= 36
    assert asked < 0.6 * 40 * 7 * len(ROWS)


def test_the_better_of_two_improvements_is_preferred_and_the_worse_is_named() -> None:
    result = run(drawn(1, {0: 1.5, 1: 3.0, 2: -3.0}))
    assert result.winner == CHALLENGERS[1]
    assert result.standing[0].template == CHALLENGERS[1]
    assert {v.template.task: v.status for v in result.standing}["variant 1"] == "better"


def test_who_is_shown_worse_is_dropped_and_costs_no_further_call() -> None:
    table = drawn(0, {-1: 4.0, 0: 4.0})
    result = run(table, CHALLENGERS[:2], futility=0)
    verdicts = {v.template.version: v for v in result.standing}
    lost = verdicts[CHALLENGERS[1].version]
    assert (result.winner, lost.status) == (PLAIN, "worse")
    assert lost.high < 0
    assert lost.low <= lost.difference <= lost.high
    assert len(table.asked[CHALLENGERS[1].version]) == lost.rows < len(ROWS)
    assert verdicts[CHALLENGERS[0].version].rows == len(table.asked[PLAIN.version]) == len(ROWS), "the other goes on to the last row"
    assert [v.status for v in result.standing] == ["open", "worse"]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 70), st.floats(0, 1), st.floats(0.01, 0.4), st.integers(0, 6), st.floats(-2, 3))
def test_what_a_verdict_says_is_so(seed: int, block: int, futility: float, alpha: float, n: int, quality: float) -> None:
    table = drawn(seed, {0: quality})
    result = run(table, CHALLENGERS[:n], block=block, futility=futility, alpha=alpha)
    for v in result.standing:
        differences = 1 / table.ranks[v.template.version][: v.rows] - 1 / table.ranks[PLAIN.version][: v.rows]
        assert v.difference == pytest.approx(differences.mean())
        assert -1 <= v.low <= v.high <= 1
        assert {"better": v.low >= 0, "worse": v.high < 0, "open": v.low <= 0 <= v.high}[v.status]
        assert table.asked[v.template.version] == [row.id for row in ROWS[: v.rows]], "each row once, in the order of the search rows"
    assert len(result.standing) == n
    better = [v for v in result.standing if v.status == "better"]
    assert result.winner == (max(better, key=lambda v: v.difference).template if better else PLAIN)
    ranks = [("better", "open", "worse").index(v.status) for v in result.standing]
    assert ranks == sorted(ranks)


def test_futility_drops_sooner_and_never_at_zero() -> None:
    rows = []
    for futility in (0.0, 0.1, 0.5):
        table = drawn(3, {-1: 0.7})
        run(table, CHALLENGERS, futility=futility)
        rows.append(sum(map(len, table.asked.values())))
    assert rows[0] > rows[1] > rows[2]
    table = drawn(5)
    assert all(v.rows == len(ROWS) for v in run(table, futility=0, alpha=1e-9).standing)


def test_equal_templates_and_the_incumbent_itself_race_once_or_not_at_all() -> None:
    twin = CHALLENGERS[0].revise("another author")
    table = drawn(0)
    result = run(table, [CHALLENGERS[0], twin, PLAIN], futility=0)
    assert [v.template.version for v in result.standing] == [CHALLENGERS[0].version]
    assert all(len(ids) == len(set(ids)) for ids in table.asked.values())
    assert run(drawn(0), [PLAIN]) == run(drawn(0), []) == Race(PLAIN, ())


def test_rows_and_repeats_can_be_chosen_and_known_ones_are_not_asked_again() -> None:
    table = drawn(0)
    trials = Trials(PLAIN, [], ROWS, table)
    for repeat in (0, 0, 1):
        asyncio.run(race(trials, PLAIN, CHALLENGERS[:1], rows=ROWS[10:20], futility=0, repeat=repeat))
    assert table.asked[PLAIN.version] == [row.id for row in ROWS[10:20]] * 2


def test_a_failure_is_raised_once_the_others_have_ended() -> None:
    table = drawn(0)
    table.fails = lambda template, row: template == CHALLENGERS[0] and row == ROWS[8].id
    trials = Trials(PLAIN, [], ROWS, table)
    with pytest.raises(BudgetExceeded):
        asyncio.run(race(trials, PLAIN, CHALLENGERS[:3], futility=0))
    assert table.ended == 4 + 3
    assert {t.template.version for t in trials.tried[4:]} == {t.version for t in (PLAIN, *CHALLENGERS[1:3])}, "what was paid for is kept"


@pytest.mark.parametrize("settings", [{"alpha": 0}, {"alpha": 1}, {"alpha": math.nan}, {"futility": -0.1}, {"futility": 2}, {"block": 0}])
def test_settings_out_of_their_bounds_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"alpha is .* give 0 < alpha < 1"):
        run(drawn(0), **settings)
