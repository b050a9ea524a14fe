"""ItemKNN: similarities and neighbours against a dense table, in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import logs

from recsys_core import Histories
from recsys_core.data import Dataset, Vocabulary
from recsys_core.models import itemknn
from recsys_core.models.itemknn import ItemKNN, ItemKNNConfig, nearest


def dense_scores(dataset: Dataset, config: ItemKNNConfig, rows: list[list[int]]) -> np.ndarray:
    """The definition, item by item."""
    size = len(dataset.items)
    taken = np.zeros((len(dataset.users), size))
    taken[dataset.user, dataset.item] = 1
    together, counts = taken.T @ taken, taken.sum(0)
    similarity = together / np.maximum(np.sqrt(np.outer(counts, counts)) + config.shrinkage, 1e-9)
    np.fill_diagonal(similarity, 0)
    scores = np.zeros((len(rows), size))
    for item in range(size):
        kept = np.lexsort((np.arange(size), -similarity[item].astype(np.float32)))[: config.neighbours]
        for row, history in enumerate(rows):
            scores[row, item] = sum(similarity[item, j] for j in kept if j in history)
    return scores


@settings(deadline=None)
@given(logs(), st.integers(1, 7), st.sampled_from([0.0, 2.5]), st.sampled_from([1, 30, 2**22]), st.data())
def test_scores_are_the_definition_whatever_the_blocks(
    dataset: Dataset, count: int, shrinkage: float, budget: int, data: st.DataObject
) -> None:
    config = ItemKNNConfig(neighbours=count, shrinkage=shrinkage)
    item = st.integers(0, len(dataset.items) - 1)
    rows = data.draw(st.lists(st.lists(item, max_size=5), max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(itemknn, "_BUDGET", budget)
        scores = ItemKNN(config).fit(dataset).score(Histories.of(rows))
    np.testing.assert_allclose(scores, dense_scores(dataset, config, rows), rtol=1e-6, atol=1e-7)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 2**20))
def test_nearest_keeps_the_largest_and_of_equal_ones_the_first(size: int, count: int, seed: int) -> None:
    table = np.random.default_rng(seed).integers(0, 4, (3, size)).astype(np.float32) / 8
    rows, columns, values = nearest(table, count)
    for row in range(3):
        expected = [c for c in np.argsort(-table[row], kind="stable")[:count] if table[row, c] > 0]
        assert sorted(columns[rows == row]) == sorted(expected)
    np.testing.assert_array_equal(values, table[rows, columns])


def test_shrinkage_takes_weight_from_what_few_users_did() -> None:
    # Items 0 and 1: one user of one; items 0 and 2: nine users of ten.
    rows = [[0, 1], *[[0, 2]] * 9, [2]]
    user = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    names = Vocabulary(f"u{u}" for u in range(len(rows))), Vocabulary("abc")
    dataset = Dataset("made", *names, user, np.concatenate(rows), np.arange(len(user)))
    sure = ItemKNN(ItemKNNConfig(shrinkage=10)).fit(dataset).score(Histories.of([[0]]))[0]
    np.testing.assert_allclose(sure, [0, 1 / (np.sqrt(10) + 10), 9 / (10 + 10)], rtol=1e-6)
    assert "seed" not in ItemKNNConfig.model_fields
