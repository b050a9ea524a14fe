"""Acceptance: no false claim beyond its rate, intervals that cover, a real improvement found, and what choosing the best flatters by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from recsys_core.errors import DataError
from recsys_core.evaluation import Comparison
from workbench.prompts.acceptance import Confirmation, confirm, winners_curse
from workbench.prompts.metrics import Measured

Values = NDArray[np.float64]


def reciprocal_ranks(rng: np.random.Generator, n: int, *quality: float) -> list[Values]:
    """Per-row MRR of prompts on the same n rows of 10 candidates; half of a candidate's noise is shared by all prompts."""
    shared = rng.normal(size=(n, 10))
    made = []
    for gain in quality:
        utility = 0.5**0.5 * shared + 0.5**0.5 * rng.normal(size=(n, 10))
        utility[:, 0] += gain
        made.append(1 / (1 + (utility[:, 1:] > utility[:, :1]).sum(1)))
    return made


def measured(values: Sequence[Values]) -> list[Measured]:
    return [Measured(f"prompt {n}", tuple(f"row {row}" for row in range(len(mine))), {"MRR": mine}) for n, mine in enumerate(values)]


def confirmed(values: Sequence[Values], alpha: float = 0.05) -> Confirmation:
    start, *finalists = measured(values)
    return confirm(start, finalists, "MRR", alpha)


def test_a_null_landscape_gives_no_more_claims_than_it_may_and_intervals_cover() -> None:
    """1000 searches that found nothing: two finalists as good as the start, on 40 fresh rows with many ties."""
    runs, comparisons = 1000, list[Comparison]()
    claims = 0
    for seed in range(runs):
        found = confirmed(reciprocal_ranks(np.random.default_rng(seed), 40, 0.3, 0.3, 0.3))
        claims += found.best is not None
        comparisons.append(found.comparisons[0])
    assert claims <= binom.ppf(0.999, runs, 0.05)
    assert claims >= binom.ppf(0.001, runs, 0.015), "nor is the test idle: one side of two"
    for rate, wrong in ((0.05, [c.p_value <= 0.05 for c in comparisons]), (0.05, [not c.low <= 0 <= c.high for c in comparisons])):
        # The percentile bootstrap of 40 rows covers a little less than it says.
        assert binom.ppf(0.001, runs, rate) <= sum(wrong) <= binom.ppf(0.999, runs, rate + 0.015)


def test_a_mean_of_zero_without_symmetry_is_taken_for_a_gain_on_few_rows_only() -> None:
    """Small gains on most rows and a large loss on one of ten: what random signs are not exact for, at its worst."""
    runs, rng, rate = 120, np.random.default_rng(1), {}
    for n in (20, 160):
        differences = np.where(rng.random((runs, n)) < 0.1, -0.45, 0.05) * (rng.random((runs, n)) < 0.8)
        rate[n] = sum(confirmed([0.5 - d / 2, 0.5 + d / 2]).best is not None for d in differences)
    assert rate[20] > 0.1 * runs
    assert rate[160] <= binom.ppf(0.999, runs, 0.06)


def test_a_planted_improvement_is_found_and_its_interval_covers() -> None:
    runs, found, covered = 100, 0, 0
    before, after = reciprocal_ranks(np.random.default_rng(9), 50_000, 0.3, 1.0)
    for seed in range(runs):
        result = confirmed(reciprocal_ranks(np.random.default_rng(seed), 120, 0.3, 0.3, 1.0))
        found += result.best == 1
        covered += result.comparisons[1].low <= (after - before).mean() <= result.comparisons[1].high
    assert found >= 0.95 * runs
    assert covered >= binom.ppf(0.001, runs, 0.935)


def test_only_improvements_are_accepted_and_the_best_of_them_by_mean() -> None:
    rng = np.random.default_rng(0)
    start, better, best, worse = reciprocal_ranks(rng, 400, 0.5, 1.2, 2.0, -2.0)
    assert confirmed([start, worse]).best is None
    assert confirmed([start, worse]).adjusted[0] < 0.01
    result = confirmed([start, worse, better, best])
    assert result.best == 2
    assert [c.difference > 0 for c in result.comparisons] == [False, True, True]
    assert confirmed([start]) == Confirmation(None, (), ())
    assert confirmed([start, start]).adjusted == (1.0,)


def test_more_finalists_need_more_evidence() -> None:
    """27 of 40 rows better by as much as the others are worse: .038 by the binomial test, which is what random signs come to."""
    start = np.full(40, 0.5)
    good = start + 0.1 * np.where(np.arange(40) < 27, 1, -1)
    alone = confirmed([start, good])
    among = confirmed([start, good, *[start] * 5])
    assert alone.adjusted[0] == pytest.approx(2 * binom.sf(26, 40, 0.5), abs=0.015)
    assert (alone.best, among.best) == (0, None)
    assert among.adjusted[0] == pytest.approx(6 * alone.adjusted[0])
    assert confirmed([start, good], alpha=alone.adjusted[0]).best == 0
    assert confirmed([start, good], alpha=alone.adjusted[0] * 0.99).best is None


def test_other_rows_and_impossible_levels_are_refused() -> None:
    a, b = measured(reciprocal_ranks(np.random.default_rng(0), 5, 0, 0))
    other = Measured("other", tuple("abcde"), dict(b.values))
    with pytest.raises(DataError, match="different rows"):
        confirm(a, [other], "MRR")
    for alpha in (0.0, 1.0, float("nan")):
        with pytest.raises(DataError, match="alpha is"):
            confirm(a, [b], "MRR", alpha)
    with pytest.raises(DataError, match=r"prompt 0 on 5, other on 5; measure all on one part"):
        winners_curse([a, other], "MRR")
    for few in ([], measured([np.ones(1)])):
        with pytest.raises(DataError, match="at least 2"):
            winners_curse(few, "MRR")


def test_choosing_among_equals_flatters_and_the_correction_takes_it_back() -> None:
    """20 equal prompts on 50 rows: the best looks better than it is; corrected, it is what all of them are."""
    apparent, corrected, covered, truth = [], [], [], float(np.mean(reciprocal_ranks(np.random.default_rng(1), 50_000, 0.3)))
    for seed in range(60):
        curse = winners_curse(measured(reciprocal_ranks(np.random.default_rng(seed), 50, *[0.3] * 20)), "MRR", seed)
        apparent.append(curse.apparent)
        corrected.append(curse.corrected)
        covered.append(curse.low <= truth <= curse.high)
    noise = np.std(corrected, ddof=1) / len(corrected) ** 0.5
    assert np.mean(apparent) > truth + 0.04
    assert np.mean(corrected) == pytest.approx(truth, abs=4 * noise)
    assert np.mean(apparent) - np.mean(corrected) > 0.04
    assert np.mean(covered) >= 0.9


def test_a_winner_that_is_truly_better_keeps_its_value() -> None:
    for seed in range(5):
        curse = winners_curse(measured(reciprocal_ranks(np.random.default_rng(seed), 100, *[0.0] * 9, 2.5)), "MRR", seed)
        assert curse.corrected == pytest.approx(curse.apparent, abs=0.005)
        assert curse.low < curse.corrected < curse.high


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 25), st.integers(1, 6), st.integers(0, 10**6))
def test_the_correction_is_that_of_a_plain_bootstrap(n: int, k: int, seed: int) -> None:
    values = np.random.default_rng(seed).random((k, n))
    curse = winners_curse(measured(list(values)), "MRR", seed)
    assert values.min() <= curse.low <= curse.corrected <= curse.high <= values.max()
    assert curse == winners_curse(measured(list(values)), "MRR", seed)
    rng, scores = np.random.default_rng(seed + 1), []
    for _ in range(400):
        bag = rng.integers(0, n, n)
        out = np.setdiff1d(np.arange(n), bag)
        if len(out):
            scores.append(values[values[:, bag].mean(1).argmax(), out].mean())
    assert curse.corrected == pytest.approx(np.mean(scores), abs=6 * np.std(scores) / len(scores) ** 0.5 + 1e-9)
