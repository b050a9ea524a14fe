"""Intervals and tests: nominal coverage and size under simulation, agreement with exact answers, and refusals."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core.errors import DataError, UnknownNameError
from recsys_core.evaluation import Evaluation, compare, holm
from recsys_core.evaluation.compare import sign_flip_p, wilcoxon_p


def evaluation(values: np.ndarray, users: np.ndarray | None = None) -> Evaluation:
    return Evaluation("made", np.arange(len(values)) if users is None else users, {"NDCG@10": np.asarray(values, float)})


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    """Values with the shape of NDCG@10: mostly 0, some discounts."""
    return np.where(rng.random(n) < 0.25, 1 / np.log2(1 + rng.integers(1, 11, n)), 0.0)


def test_interval_covers_and_test_rejects_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    users, draws = 250, 800
    truth = 0.25 * np.mean(1 / np.log2(1 + np.arange(1, 11)))
    covered = difference_covered = rejected = 0
    for seed in range(draws):
        a, b = evaluation(draw(rng, users)), evaluation(draw(rng, users))
        low, high = a.interval("NDCG@10", seed, resamples=500)
        covered += low <= truth <= high
        result = compare(a, b, "NDCG@10", seed, resamples=500)
        difference_covered += result.low <= 0 <= result.high
        rejected += result.p_value <= 0.05
    # Two binomial standard errors at 800 draws are 1.5 points.
    assert 0.93 <= covered / draws <= 0.97
    assert 0.93 <= difference_covered / draws <= 0.97
    assert 0.03 <= rejected / draws <= 0.065


def test_p_value_is_that_of_all_sign_flips() -> None:
    differences = np.array([0.5, -0.2, 0.9, 0.4, 0.0, 0.7, -0.1, 0.3])
    flips = np.array(list(itertools.product([-1, 1], repeat=len(differences)))) @ differences
    exact = np.mean(np.abs(flips) >= abs(differences.sum()) - 1e-12)
    assert sign_flip_p(differences, np.random.default_rng(0), 200_000) == pytest.approx(exact, abs=0.003)


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.5, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=60).filter(any))
def test_wilcoxon_agrees_with_scipy(values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.wilcoxon(values, zero_method="pratt", correction=False, method="asymptotic").pvalue
    assert wilcoxon_p(np.array(values)) == pytest.approx(expected, rel=1e-9)


def test_wilcoxon_takes_rounding_for_no_difference() -> None:
    noise = np.full(50, 1e-16)
    assert wilcoxon_p(noise) == 1
    assert wilcoxon_p(np.zeros(5)) == 1
    result = compare(evaluation(draw(np.random.default_rng(5), 300) + 0.05), evaluation(draw(np.random.default_rng(5), 300)), "NDCG@10")
    assert result.wilcoxon_p < 1e-6


def test_holm_by_hand_and_by_its_rule() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_step_down_rejects(p_values: list[float], level: float) -> None:
    m, rejected = len(p_values), set()
    for place, n in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if (m - place) * p_values[n] > level:
            break
        rejected.add(n)
    adjusted = holm(p_values)
    assert {n for n, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    base = draw(rng, 943)
    result = compare(evaluation(np.minimum(base + 0.05 * (rng.random(943) < 0.3), 1)), evaluation(base), "NDCG@10")
    assert result.p_value < 0.001
    assert 0 < result.low < result.difference < result.high
    assert result.difference == pytest.approx(result.mean_a - result.mean_b)
    mirrored = compare(evaluation(base), evaluation(np.minimum(base + 0.05, 1)), "NDCG@10")
    assert mirrored.high < 0


def test_equal_models_have_no_difference() -> None:
    values = draw(np.random.default_rng(2), 50)
    result = compare(evaluation(values), evaluation(values), "NDCG@10")
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_seeds_are_averaged_user_by_user_and_their_spread_kept() -> None:
    a = [evaluation(np.array([0.0, 1.0, 0.0])), evaluation(np.array([1.0, 1.0, 0.0]))]
    result = compare(a, evaluation(np.array([0.5, 1.0, 0.0])), "NDCG@10")
    assert result.difference == 0
    assert result.p_value == 1
    assert result.seeds_a == (1 / 3, 2 / 3)
    assert result.spread_a == pytest.approx(np.std([1 / 3, 2 / 3], ddof=1))
    assert result.spread_b is None


def test_same_seed_same_figures() -> None:
    rng = np.random.default_rng(3)
    a, b = evaluation(draw(rng, 100)), evaluation(draw(rng, 100))
    assert compare(a, b, "NDCG@10", 7) == compare(a, b, "NDCG@10", 7)
    assert compare(a, b, "NDCG@10", 7) != compare(a, b, "NDCG@10", 8)


def test_other_users_or_metrics_are_refused() -> None:
    values = np.zeros(4)
    with pytest.raises(DataError, match="different lists of users"):
        compare(evaluation(values), evaluation(values, np.array([0, 1, 2, 9])), "NDCG@10")
    with pytest.raises(DataError, match="different numbers of users"):
        compare([evaluation(values), evaluation(values[:3])], evaluation(values), "NDCG@10")
    with pytest.raises(DataError, match="at least one"):
        compare([], evaluation(values), "NDCG@10")
    with pytest.raises(UnknownNameError, match=r"did you mean 'NDCG@10'"):
        compare(evaluation(values), evaluation(values), "NDCG@5")


def test_fast_enough_to_run_after_every_training() -> None:
    rng = np.random.default_rng(4)
    a, b = evaluation(draw(rng, 943)), evaluation(draw(rng, 943))
    best = np.inf
    for _ in range(5):
        # Processor time, which other programs on the machine do not lengthen much.
        start = time.process_time()
        compare(a, b, "NDCG@10")
        best = min(best, time.process_time() - start)
    assert best < 0.05
