"""Ranking metrics against ir_measures (trec_eval), brute force, and rules that hold for every input."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ir_measures import RR, R, Success, nDCG

from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.evaluation import beyond_accuracy, coverage, diversity, gini, metric_names, novelty, popularity, rank, top_lists
from recsys_core.evaluation.lists import tag_vectors

CUTOFFS = (1, 5, 10, 500)
ORACLE = {f"HR@{k}": Success @ k for k in CUTOFFS} | {f"NDCG@{k}": nDCG @ k for k in CUTOFFS} | {f"Recall@{k}": R @ k for k in CUTOFFS}
ORACLE["MRR"] = RR


def trec(scores: np.ndarray, targets: Jagged, excluded: Jagged) -> dict[str, np.ndarray]:
    """The metrics by trec_eval on a run whose order is spelled out: by score, and among equal scores negatives before positives."""
    qrels, run = [], []
    for user, row in enumerate(scores):
        positives, hidden = set(targets[user].tolist()), set(excluded[user].tolist())
        qrels += [ir_measures.Qrel(str(user), str(i), 1) for i in positives]
        shown = [i for i in range(len(row)) if i not in hidden and not np.isneginf(row[i])]
        shown.sort(key=lambda i: (-row[i], i in positives))
        # Distinct scores: trec_eval would order equal ones by document id. One it cannot judge keeps an empty list in the run.
        run += [ir_measures.ScoredDoc(str(user), str(i), float(-place)) for place, i in enumerate(shown)]
        run.append(ir_measures.ScoredDoc(str(user), "end of list", -1e6))
    values: dict[str, np.ndarray] = {name: np.full(len(scores), np.nan) for name in ORACLE}
    back = {str(measure): name for name, measure in ORACLE.items()}
    for result in ir_measures.pytrec_eval.iter_calc(list(ORACLE.values()), qrels, run):
        values[back[str(result.measure)]][int(result.query_id)] = result.value
    return values


def brute_auc(scores: np.ndarray, targets: Jagged, excluded: Jagged) -> np.ndarray:
    values = []
    for user, row in enumerate(scores):
        positives, hidden = set(targets[user].tolist()), set(excluded[user].tolist())
        negatives = [i for i in range(len(row)) if i not in positives | hidden]
        won = [0.0 if p in hidden else float(row[p] > row[n]) + 0.5 * float(row[p] == row[n]) for p in positives for n in negatives]
        values.append(np.mean(won) if won else 0.5)
    return np.array(values)


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, Jagged, Jagged]:
    users, items = draw(st.integers(1, 4)), draw(st.integers(2, 30))
    # Few levels, so that ties are the rule; -inf is a score that says never.
    level = st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 0.5, 3.0])
    scores = draw(hnp.arrays(np.float32, (users, items), elements=level))
    ids = st.integers(0, items - 1)
    targets = Jagged.from_rows([draw(st.lists(ids, min_size=1, max_size=6)) for _ in range(users)])
    return scores, targets, Jagged.from_rows([draw(st.lists(ids, max_size=8)) for _ in range(users)])


@settings(max_examples=150, deadline=None)
@given(rankings())
def test_agrees_with_trec_eval_and_brute_force(case: tuple[np.ndarray, Jagged, Jagged]) -> None:
    ranking = rank(*case)
    for name, expected in trec(*case).items():
        np.testing.assert_allclose(ranking.metric(name), expected, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(ranking.metric("AUC"), brute_auc(*case), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rankings(), st.randoms(use_true_random=False))
def test_only_the_order_of_scores_matters(case: tuple[np.ndarray, Jagged, Jagged], random: object) -> None:
    scores, targets, excluded = case
    before = rank(scores, targets, excluded)
    order = np.random.default_rng(random.getrandbits(32)).permutation(scores.shape[1])  # type: ignore[attr-defined]
    place = np.argsort(order)
    permuted = rank(scores[:, order], Jagged(place[targets.values], targets.offsets), Jagged(place[excluded.values], excluded.offsets))
    for other in (rank(scores * 2 + 7, targets, excluded), permuted):
        np.testing.assert_array_equal(other.ranks.values, before.ranks.values)
        np.testing.assert_array_equal(other.auc, before.auc)
    finite = np.where(np.isneginf(scores), -2.0, scores)
    np.testing.assert_array_equal(rank(np.exp(finite), targets, excluded).ranks.values, rank(finite, targets, excluded).ranks.values)


def test_a_constant_model_gets_the_worst_rank_and_half_the_auc() -> None:
    ranking = rank(np.zeros((1, 10), np.float32), Jagged.from_rows([[3]]))
    assert ranking.ranks.values.tolist() == [10.0]
    assert ranking.metric("HR@9").tolist() == [0.0]
    assert ranking.metric("AUC").tolist() == [0.5]


def test_several_positives_follow_each_other() -> None:
    scores = np.array([[5, 4, 4, 3, 2, 1]], np.float32)
    ranking = rank(scores, Jagged.from_rows([[4, 1, 0, 4]]))
    assert ranking.ranks.values.tolist() == [1.0, 3.0, 5.0]
    assert ranking.metric("Recall@3").tolist() == [2 / 3]
    assert ranking.metric("MRR").tolist() == [1.0]
    best = 1 + 1 / np.log2(3)
    np.testing.assert_allclose(ranking.metric("NDCG@2"), [1 / best])


def test_excluded_positive_is_missed_and_still_counts() -> None:
    scores = np.array([[9, 8, 1]], np.float32)
    ranking = rank(scores, Jagged.from_rows([[0, 1]]), Jagged.from_rows([[0]]))
    assert ranking.ranks.values.tolist() == [1.0, np.inf]
    assert ranking.metric("Recall@10").tolist() == [0.5]
    np.testing.assert_allclose(ranking.metric("NDCG@10"), [1 / (1 + 1 / np.log2(3))])
    assert ranking.metric("AUC").tolist() == [0.5]
    lost = rank(scores, Jagged.from_rows([[0]]), Jagged.from_rows([[0, 1, 2]]))
    assert [lost.metric(m)[0] for m in ("HR@10", "MRR", "NDCG@10", "AUC")] == [0.0, 0.0, 0.0, 0.5]


def test_mrr_at_k_is_zero_beyond_k() -> None:
    ranking = rank(np.array([[3, 2, 1]], np.float32), Jagged.from_rows([[1]]))
    assert [ranking.metric(m)[0] for m in ("MRR", "MRR@2", "MRR@1")] == [0.5, 0.5, 0.0]


def test_blocks_of_memory_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(0, 9, (20, 50)).astype(np.float32), Jagged(rng.integers(0, 50, 100), np.arange(0, 101, 5))
    whole = rank(scores, targets)
    lists = top_lists(scores, 7, targets)
    for piece in (1, 3 * 50 * 4):
        monkeypatch.setattr("recsys_core.evaluation.metrics.CPU_PIECE", piece)
        again = rank(scores, targets)
        np.testing.assert_array_equal(again.ranks.values, whole.ranks.values)
        np.testing.assert_array_equal(again.metric("AUC"), whole.metric("AUC"))
        np.testing.assert_array_equal(top_lists(scores, 7, targets), lists)


def test_scores_are_left_as_they_are_and_may_be_a_view() -> None:
    one = torch.arange(6.0).flip(0)
    scores, before = one.expand(3, 6), one.clone()
    targets, seen = Jagged.from_rows([[1], [1, 5], [0]]), Jagged.from_rows([[0], [], [0]])
    assert rank(scores, targets, seen).ranks.values.tolist() == [1, 2, 6, np.inf]
    assert top_lists(scores, 2, seen).tolist() == [[1, 2], [0, 1], [1, 2]]
    assert torch.equal(one, before)


@settings(max_examples=150, deadline=None)
@given(rankings(), st.integers(1, 40))
def test_top_lists_are_a_stable_sort(case: tuple[np.ndarray, Jagged, Jagged], k: int) -> None:
    scores, _, excluded = case
    # Several groups of items, so that the best of a group is not always the best of all.
    scores = np.tile(scores, 5)
    masked = scores.copy()
    masked[excluded.row_ids, excluded.values] = -np.inf
    order = np.argsort(-masked, axis=1, kind="stable")[:, :k]
    expected = np.where(np.isneginf(np.take_along_axis(masked, order, 1)), -1, order)
    found = top_lists(scores, k, excluded)
    np.testing.assert_array_equal(found[:, : order.shape[1]], expected)
    assert (found[:, order.shape[1] :] == -1).all()
    assert found.shape == (len(scores), k)


def test_auc_only_where_it_was_asked_for() -> None:
    ranking = rank(np.array([[3, 2, 1]], np.float32), Jagged.from_rows([[1]]), auc=False)
    assert ranking.metric("MRR").tolist() == [0.5]
    with pytest.raises(DataError, match="auc=True"):
        ranking.metric("AUC")
    with pytest.raises(DataError, match="top-k lists"):
        ranking.metric("coverage@5")


@pytest.mark.gpu
def test_the_gpu_finds_the_same() -> None:
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 99, (200, 3000)).astype(np.float32))
    targets = Jagged(rng.integers(0, 3000, 600), np.arange(0, 601, 3))
    seen = Jagged(rng.integers(0, 3000, 4000), np.arange(0, 4001, 20))
    here, there = rank(scores, targets, seen), rank(scores.cuda(), targets, seen)
    np.testing.assert_array_equal(there.ranks.values, here.ranks.values)
    np.testing.assert_array_equal(there.metric("AUC"), here.metric("AUC"))
    np.testing.assert_array_equal(top_lists(scores.cuda(), 10, seen), top_lists(scores, 10, seen))


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("NDGC@10", UnknownNameError, "did you mean 'NDCG@k'"),
        ("HR", DataError, "write HR@10"),
        ("HR@0", DataError, "write HR@10"),
        ("MRR@x", DataError, "write MRR@10"),
        ("AUC@5", DataError, "write AUC"),
        ("coverage", DataError, "write coverage@10"),
        ("novlety@10", UnknownNameError, "did you mean 'novelty@k'"),
    ],
)
def test_bad_metric_names_are_explained(name: str, error: type[Exception], text: str) -> None:
    ranking = rank(np.zeros((1, 3), np.float32), Jagged.from_rows([[0]]))
    with pytest.raises(error, match=text) as caught:
        ranking.metric(name)
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match=r"metrics are a list, not the text 'MRR'; write \['MRR'\]"):
        metric_names("MRR")
    scores = np.zeros((2, 3), np.float32)
    with pytest.raises(DataError, match="targets of row 1 are empty"):
        rank(scores, Jagged.from_rows([[0], []]))
    with pytest.raises(DataError, match=r"ids 0 \.\. 3; the scores cover 0 \.\. 2"):
        rank(scores, Jagged.from_rows([[0], [3]]))
    with pytest.raises(DataError, match="k is 0"):
        top_lists(scores, 0)
    with pytest.raises(DataError, match="1 rows for 2"):
        rank(scores, Jagged.from_rows([[0]]))
    with pytest.raises(DataError, match="NaN"):
        rank(scores * np.nan, Jagged.from_rows([[0], [1]]))


def test_beyond_accuracy_on_lists_worked_by_hand() -> None:
    counts = np.array([8, 4, 4, 0], np.int64)
    lists = np.array([[0, 1], [0, -1]], np.int64)
    assert coverage(lists, 4) == 0.5
    # Exposures 2, 1, 0, 0: 16 ordered pairs differ by 2 * (1 + 2 + 2 + 1 + 1 + 0) in all, and the mean is 0.75.
    assert gini(lists, 4) == pytest.approx(14 / 16 / (2 * 0.75))
    assert popularity(lists, counts).tolist() == [6, 8]
    assert novelty(lists, counts).tolist() == [1.5, 1]
    assert novelty(np.array([[3]]), counts).tolist() == [4]
    assert popularity(np.array([[-1]]), counts).tolist() == [0]
    found = beyond_accuracy(lists, counts, tag_vectors((("a",), ("b",), ("a", "b"), ())))
    assert found == {"coverage@2": 0.5, "gini@2": gini(lists, 4), "popularity@2": 7, "novelty@2": 1.25, "diversity@2": 0.5}


@given(hnp.arrays(np.int64, (3, 4), elements=st.integers(-1, 6)), hnp.arrays(np.float32, (7, 3), elements=st.sampled_from([0, 0.5, 2, -1])))
def test_diversity_is_one_minus_the_mean_cosine_of_pairs(lists: np.ndarray, vectors: np.ndarray) -> None:
    unit = [v / np.linalg.norm(v) if v.any() else v for v in vectors]
    expected = []
    for row in lists:
        mine = [unit[i] for i in row if i >= 0]
        pairs = [float(a @ b) for n, a in enumerate(mine) for b in mine[n + 1 :]]
        expected.append(1 - np.mean(pairs) if pairs else 0.0)
    np.testing.assert_allclose(diversity(lists, vectors), expected, atol=1e-5)


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.integers(-1, 6)))
def test_gini_is_half_the_relative_mean_difference(lists: np.ndarray) -> None:
    shown = np.bincount(lists[lists >= 0], minlength=7).astype(float)
    expected = np.abs(shown[:, None] - shown).mean() / (2 * shown.mean()) if shown.any() else 0.0
    assert gini(lists, 7) == pytest.approx(expected)
