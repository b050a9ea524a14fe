"""The fidelity test itself must know a good user from a bad one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.statistical import StatisticalPolicy
from agents.types import Decision, PageContext, Watch
from recsys_core.data import Dataset, Split
from recsys_core.errors import DataError
from simulators.fidelity import CEILING, RatingFidelity, measure, page_auc, wasserstein


class Oracle:
    """Knows what every user really took, and their ratings."""

    name = "oracle"

    def __init__(self, log: Dataset, sign: int = 1) -> None:
        self.taken = dict(zip(zip(log.user.tolist(), log.item.tolist(), strict=True), log.rating.tolist(), strict=True))
        self.sign = sign

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        decisions = []
        for c in contexts:
            known = [(i.number, self.taken.get((c.persona.user, i.item))) for i in c.items]
            watched = tuple(Watch(n, r, "satisfied") for n, r in known if r is not None)
            decisions.append(Decision(watched, False, "satisfied", tuple(self.sign * float(r is not None) for _, r in known)))
        return decisions


async def test_an_oracle_scores_one_and_its_opposite_zero(split: Split) -> None:
    best = await measure(lambda log: Oracle(split.train), split.train, np.arange(20))
    worst = await measure(lambda log: Oracle(split.train, -1), split.train, np.arange(20))
    for right, wrong in zip(best.discrimination, worst.discrimination, strict=True):
        assert right.interval("oracle") == (1, 1, 1)
        assert wrong.interval("oracle") == (0, 0, 0)
    assert best.ratings is not None
    figures = best.ratings.figures()
    assert figures["oracle", "W1"][0] == figures["oracle", "RMSE"][0] == 0
    assert figures["constant", "W1"][0] > 0.5


def test_the_ceiling_is_a_mean_over_halves_and_not_the_luck_of_one() -> None:
    own = np.random.default_rng(0).integers(1, 6, 300).astype(float)
    points = [RatingFidelity("p", own, own, 3.0).figures(seed)[CEILING, "W1"][0] for seed in range(5)]
    assert np.std(points) < 0.05 * np.mean(points)


async def test_policies_are_built_without_the_items_they_are_tested_on(split: Split) -> None:
    seen: list[Dataset] = []

    def build(log: Dataset) -> Oracle:
        seen.append(log)
        return Oracle(log)

    found = await measure(build, split.train, np.arange(20))
    assert len(split.train) - len(seen[0]) == 20 * 5
    for part in found.discrimination:
        assert part.interval("oracle") == (0.5, 0.5, 0.5)


async def test_a_fitted_policy_beats_popularity_where_taste_is_planted(split: Split) -> None:
    found = await measure(lambda log: StatisticalPolicy.fit(log), split.train, np.arange(60))
    matched = found.discrimination[1]
    assert matched.negatives == "popularity"
    assert matched.interval("statistical")[1] > matched.interval("popularity")[0]
    assert len(matched.users) == 60


async def test_short_histories_are_named(split: Split) -> None:
    with pytest.raises(DataError, match=r"user 'u0' has 14 interactions; fidelity with 14 real items needs 15"):
        await measure(lambda log: StatisticalPolicy.fit(log), split.train, np.arange(3), positives=14)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12), st.data())
def test_page_auc_counts_pairs(values: list[float], data: st.DataObject) -> None:
    real = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    real[0], real[-1] = True, False
    pairs = [(a > b) + 0.5 * (a == b) for a, r in zip(values, real, strict=True) if r for b, q in zip(values, real, strict=True) if not q]
    assert page_auc(np.array(values), real) == pytest.approx(np.mean(pairs))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_wasserstein_of_equal_sizes_is_the_mean_gap_of_sorted_values(values: list[int]) -> None:
    a = np.array(values, float)
    b = np.clip(a + np.random.default_rng(0).integers(-1, 2, len(a)), 1, 5)
    assert wasserstein(a, b) == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
