"""Ranking metrics against trec_eval, SciPy and the enumeration of all orders that ties leave open."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG
from scipy.stats import mannwhitneyu

from recsys_core.errors import DataError, UnknownNameError
from workbench.prompts.metrics import DEFAULT_METRICS, METRICS, Measured, compare, measure, parse_metric
from workbench.prompts.tasks import Item, Ranking, Row, by_score, tied

ALL = ("MRR", "MRR-all", "MAP", "AUC", *(f"{kind}@{k}" for kind in ("HR", "Recall", "NDCG", "NDCG-exp") for k in (1, 2, 5, 50)))


def row(grades: list[float], missed: tuple[float, ...] = (), name: str = "r") -> Row:
    """Candidates c0, c1, ... with these grades."""
    items = tuple(Item(f"c{n}", f"Title {n}") for n in range(len(grades)))
    return Row(name, (), items, {item.id: g for item, g in zip(items, grades, strict=True) if g}, missed=missed)


def by_definition(metric: str, order: list[float], missed: tuple[float, ...]) -> float:
    """A metric of grades in a strict order, written down as plainly as it can be."""
    kind, _, cutoff = metric.partition("@")
    k = int(cutoff or 0)
    ranks = [n for n, grade in enumerate(order, 1) if grade > 0]
    total = len(ranks) + sum(g > 0 for g in missed)
    if kind == "MRR":
        return 1 / ranks[0] if ranks else 0.0
    if kind == "MRR-all":
        return sum(1 / r for r in ranks) / total
    if kind == "MAP":
        return sum(sum(other <= r for other in ranks) / r for r in ranks) / total
    if kind == "AUC":
        zeros = [n for n, grade in enumerate(order, 1) if grade == 0]
        return sum(r < z for r in ranks for z in zeros) / (total * len(zeros)) if zeros else 0.5
    if kind == "HR":
        return float(any(r <= k for r in ranks))
    if kind == "Recall":
        return sum(r <= k for r in ranks) / total
    gain = (lambda g: g) if kind == "NDCG" else (lambda g: 2**g - 1)
    best = sorted([*order, *missed], reverse=True)
    dcg, ideal = (sum(gain(g) / math.log2(1 + n) for n, g in enumerate(some[:k], 1)) for some in (order, best))
    return dcg / ideal


@st.composite
def judged(draw: st.DrawFn, most: int = 6) -> tuple[Row, Ranking]:
    """A row with graded labels and missed positives, and a ranking with ties."""
    grades = draw(st.lists(st.integers(0, 3), min_size=1, max_size=most))
    missed = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    if not any(grades) and not missed:
        grades[draw(st.integers(0, len(grades) - 1))] = 1
    made = row(grades, missed)
    return made, by_score(made, {item.id: draw(st.integers(0, 3)) for item in made.candidates})


@settings(max_examples=150, deadline=None)
@given(judged())
def test_ties_count_as_the_mean_over_all_orders(case: tuple[Row, Ranking]) -> None:
    made, ranking = case
    orders = [list(itertools.chain(*parts)) for parts in itertools.product(*map(itertools.permutations, ranking))]
    grades = [[made.grades.get(i, 0) for i in order] for order in orders]
    measured = measure("m", [made], [ranking], ALL)
    for metric in ALL:
        expected = np.mean([by_definition(metric, order, made.missed) for order in grades])
        assert measured[metric][0] == pytest.approx(expected, abs=1e-12), metric


@settings(max_examples=60, deadline=None)
@given(st.lists(judged(most=30), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_strict_orders_are_measured_as_trec_eval_does(cases: list[tuple[Row, Ranking]], random: object) -> None:
    oracle = {"MRR": RR, "MAP": AP} | {
        f"{kind}@{k}": m @ k for kind, m in (("HR", Success), ("Recall", R), ("NDCG", nDCG)) for k in (1, 5, 50)
    }
    rows, rankings, qrels, exponential, run = [], [], [], [], []
    for n, (made, ranking) in enumerate(cases):
        made = replace(made, id=f"q{n}")
        order = [i for group in ranking for i in group]
        random.shuffle(order)  # type: ignore[attr-defined]
        rows.append(made)
        rankings.append(tuple((i,) for i in order))
        wanted = [*made.grades.items(), *((f"missed {m}", g) for m, g in enumerate(made.missed))]
        qrels += [ir_measures.Qrel(made.id, i, int(g)) for i, g in wanted]
        exponential += [ir_measures.Qrel(made.id, i, 2 ** int(g) - 1) for i, g in wanted]
        run += [ir_measures.ScoredDoc(made.id, i, -float(place)) for place, i in enumerate(order)]
    measured = measure("m", rows, rankings, ALL)
    for judgements, names in ((qrels, oracle), (exponential, {f"NDCG-exp@{k}": nDCG @ k for k in (1, 5, 50)})):
        back = {str(m): name for name, m in names.items()}
        for found in ir_measures.pytrec_eval.iter_calc(list(names.values()), judgements, run):
            ours = measured[back[str(found.measure)]][int(found.query_id[1:])]
            assert ours == pytest.approx(found.value, abs=1e-9), found


@settings(max_examples=60, deadline=None)
@given(judged(most=20))
def test_auc_is_the_mann_whitney_statistic(case: tuple[Row, Ranking]) -> None:
    made, ranking = case
    score = {i: -float(place) for place, group in enumerate(ranking) for i in group}
    positives = [score[i] for i in made.positives] + [-1e9 for _ in made.missed]
    negatives = [score[i] for i in score if i not in made.positives]
    expected = mannwhitneyu(positives, negatives).statistic / (len(positives) * len(negatives)) if negatives else 0.5
    assert measure("m", [made], [ranking], ["AUC"])["AUC"][0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "mrr", "ndcg"), [(5, 0.457, 0.590), (10, 0.293, 0.295), (20, 0.180, 0.147)])
def test_an_unusable_answer_gets_the_closed_form_of_a_random_order(n: int, mrr: float, ndcg: float) -> None:
    made = row([1.0] + [0.0] * (n - 1))
    measured = measure("m", [made], [tied(made)], DEFAULT_METRICS)
    assert measured.mean("MRR") == pytest.approx(sum(1 / r for r in range(1, n + 1)) / n) == pytest.approx(mrr, abs=5e-4)
    assert measured.mean("NDCG@5") == pytest.approx(sum(1 / math.log2(1 + r) for r in range(1, 6)) / n) == pytest.approx(ndcg, abs=5e-4)
    assert (measured.mean("HR@1"), measured.mean("AUC")) == (pytest.approx(1 / n), 0.5)


def test_a_partial_answer_keeps_its_head_and_ties_the_rest() -> None:
    made = row([0, 0, 1, 0])
    assert tied(made, ["c1"]) == (("c1",), ("c0", "c2", "c3"))
    assert measure("m", [made], [tied(made, ["c1"])], ["MRR"]).mean("MRR") == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert tied(made, ["c3", "c2", "c1", "c0"]) == (("c3",), ("c2",), ("c1",), ("c0",))


def test_metrics_of_several_positives_are_told_apart() -> None:
    made = row([1, 0, 1, 2])
    strict = tied(made, ["c1", "c0", "c3", "c2"])
    measured = measure("m", [made], [strict], ["MRR", "MRR-all", "NDCG@5", "NDCG-exp@5"])
    assert measured.mean("MRR") == pytest.approx(1 / 2)
    assert measured.mean("MRR-all") == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert measured.mean("NDCG@5") != pytest.approx(measured.mean("NDCG-exp@5"), abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(judged(), min_size=1, max_size=6), st.data())
def test_values_depend_on_the_row_alone_and_lie_between_0_and_1(cases: list[tuple[Row, Ranking]], data: st.DataObject) -> None:
    rows, rankings = [c[0] for c in cases], [c[1] for c in cases]
    together = measure("m", rows, rankings, ALL)
    mixed = [tuple(tuple(data.draw(st.permutations(group))) for group in ranking) for ranking in rankings]
    for n in range(len(rows)):
        alone = measure("m", [rows[n]], [mixed[n]], ALL)
        for metric in ALL:
            assert alone[metric][0] == pytest.approx(together[metric][n], abs=1e-12)
            assert -1e-12 <= alone[metric][0] <= 1 + 1e-12


@settings(max_examples=40, deadline=None)
@given(judged())
def test_no_order_beats_that_of_the_grades(case: tuple[Row, Ranking]) -> None:
    made, ranking = case
    best, found = (
        measure("m", [made], [r], ALL) for r in (by_score(made, {i.id: made.grades.get(i.id, 0) for i in made.candidates}), ranking)
    )
    for metric in ALL:
        assert found[metric][0] <= best[metric][0] + 1e-12, metric


def test_rows_of_any_length_share_a_block() -> None:
    rng = np.random.default_rng(0)
    rows = [row([1.0, *rng.integers(0, 3, rng.integers(0, 12))], name=str(n)) for n in range(2500)]
    rankings = [by_score(r, {i.id: float(rng.integers(4)) for i in r.candidates}) for r in rows]
    measured = measure("m", rows, rankings, ALL)
    for n in (0, 1023, 1024, 2499):
        alone = measure("m", [rows[n]], [rankings[n]], ALL)
        assert all(measured[m][n] == pytest.approx(alone[m][0], abs=1e-12) for m in ALL)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ((("c0",),), "'c1' is missing"),
        ((("c0", "c1"), ("x",)), "'x' is no candidate"),
        ((("c0", "c1"), ("c0",)), "3 places for 2 candidates"),
        ((("c0",), ("c0",)), "'c1' is missing"),
        ((), "'c0' is missing"),
    ],
)
def test_a_ranking_must_hold_each_candidate_once(ranking: Ranking, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure("m", [row([1, 0])], [ranking], ["MRR"])


def test_empty_groups_say_nothing() -> None:
    assert measure("m", [row([1, 0])], [((), ("c1",), (), ("c0",))], ["MRR"]).mean("MRR") == 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="nothing of row 'r' has a grade above 0"):
        measure("m", [row([0, 0])], [(("c0", "c1"),)], ["MRR"])
    with pytest.raises(DataError, match="0 rankings of 0 rows"):
        measure("m", [], [], ["MRR"])
    with pytest.raises(DataError, match="1 rankings of 2 rows"):
        measure("m", [row([1]), row([1])], [(("c0",),)], ["MRR"])


@pytest.mark.parametrize("name", ["NDCG", "NDCG@0", "NDCG@k", "NDCG@5\n", "MRR@5", "ndcg@5", "HR@-1", "AUC@3", "", "MRR@k"])
def test_an_unknown_metric_names_the_known(name: str) -> None:
    with pytest.raises(UnknownNameError, match="NDCG-exp@k"):
        parse_metric(name)


def test_every_default_metric_is_known_and_every_metric_has_a_test() -> None:
    assert {parse_metric(name)[0] for name in DEFAULT_METRICS} < set(METRICS.values())
    assert {parse_metric(name)[0] for name in ALL} == set(METRICS.values())


def measured(values: np.ndarray, name: str = "a", first: int = 0) -> Measured:
    return Measured(name, tuple(f"row {n + first}" for n in range(len(values))), {"MRR": values})


def test_comparisons_are_paired_by_row() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(300)
    a, b = measured(base + 0.02 + 0.01 * rng.random(300)), measured(base, "b")
    found = compare(a, b, "MRR")
    assert found.low > 0.02
    assert found.p_value < 0.001
    with pytest.raises(DataError, match="a and b were measured on different rows"):
        compare(a, measured(base, "b", first=1), "MRR")
    with pytest.raises(UnknownNameError, match="unknown metric of a 'HR@1'"):
        a["HR@1"]


def test_intervals_cover_at_their_rate_and_the_paired_test_holds_its_level() -> None:
    rng = np.random.default_rng(1)
    runs, covered, rejected = 300, 0, 0
    for n in range(runs):
        rank = rng.integers(1, 11, (2, 60))
        a, b = measured(1 / rank[0]), measured(1 / rank[1], "b")
        low, high = a.interval("MRR", seed=n, resamples=500)
        covered += low <= np.mean(1 / np.arange(1, 11)) <= high
        rejected += compare(a, b, "MRR", seed=n).p_value < 0.05
    # Three standard errors of a binomial share of 300 are .038.
    assert abs(covered / runs - 0.95) < 0.038
    assert abs(rejected / runs - 0.05) < 0.038
