"""ItemKNN: items are recommended by the items that users took with them (Deshpande & Karypis 2004, doi 10.1145/963770.963776)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender

# Pairs of items, or cells of a table, at a time: with 8-byte numbers and a few copies about 200 MB.
_BUDGET = 2**22


class ItemKNNConfig(ModelConfig):
    """Settings of ItemKNN; chosen on the validation part of MovieLens-100K (leave-one-out; NDCG@10 .069)."""

    neighbours: int = Field(200, ge=1)
    """Most similar items that each item keeps."""
    shrinkage: float = Field(50.0, ge=0)
    """Added to the cosine's denominator: the larger, the less a similarity from few users counts."""


class ItemKNN(Recommender):
    """Scores an item by the sum of its similarities to the history's items that are among its nearest; order and repeats do not matter.

    similarity(i, j) = users of both / (sqrt(users of i * users of j) + shrinkage). Ties between neighbours go to the lower dense id.
    Fitting takes as many steps as there are pairs of items in the users' histories, plus I x I for the nearest. Memory: about 200 MB plus
    12 bytes a neighbour; more only where the users of one item took more than 4 million items together (then about 50 bytes each).
    """

    name = "itemknn"
    Config = ItemKNNConfig
    config: ItemKNNConfig
    # Row j of `sources` holds the items that have j among their nearest, and `weights` their similarities.
    sources: Jagged
    weights: Floats

    @property
    def training(self) -> str:
        return "cosine with shrinkage, no order"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        baskets = dataset.sequences().distinct()
        counts = np.bincount(baskets.values, minlength=len(dataset.items))
        # The same pairs by item: a stable sort keeps the users of an item in order.
        owners = Jagged(baskets.row_ids[np.argsort(baskets.values, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))
        found: list[tuple[Ints, Ints, Floats]] = []
        pairs = np.bincount(owners.row_ids, baskets.lengths[owners.values], len(counts))
        for items in _runs(pairs + len(counts)):
            together = _together(items, owners, baskets, len(counts))
            similarity = together / (np.sqrt(counts[items, None] * counts) + self.config.shrinkage).clip(min=1e-9)
            similarity[np.arange(len(items)), items] = 0
            rows, near, weights = nearest(similarity.astype(np.float32), self.config.neighbours)
            found.append((items[rows], near, weights))
            progress(0.99 * (items[-1] + 1) / len(counts), "comparing items")
        targets, near, weights = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(near, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(near, minlength=len(counts)))]).astype(np.int64)
        self.sources, self.weights = Jagged(targets[order], offsets), weights[order]
        progress(1.0, "compared")

    def _score(self, histories: Histories) -> NDArray:
        n_items, rows = len(self.sources), histories.items.distinct()
        scores = np.empty((len(rows), n_items), np.float32)
        starts, lengths = self.sources.offsets[:-1], self.sources.lengths
        reach = np.bincount(rows.row_ids, lengths[rows.values], len(rows))
        # An eighth of the budget: the numbers of a run are read several times, and so few are still in the processor's cache.
        for users in _runs(8 * (reach + n_items)):
            block = rows.take(users)
            counts = lengths[block.values]
            ends = counts.cumsum()
            places = np.arange(counts.sum()) + np.repeat(starts[block.values] - (ends - counts), counts)
            cells = self.sources.values[places] + np.repeat(block.row_ids * n_items, counts)
            sums = np.bincount(cells, self.weights[places], len(block) * n_items)
            scores[users] = sums.reshape(len(block), n_items)
        return scores

    def _state(self) -> dict[str, NDArray]:
        return {"targets": self.sources.values, "offsets": self.sources.offsets, "weights": self.weights}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.sources, self.weights = Jagged(state["targets"], state["offsets"]), state["weights"]


def _runs(costs: NDArray) -> list[Ints]:
    """The indices of `costs` in runs of a bounded sum, or of one index."""
    return np.split(np.arange(len(costs)), np.flatnonzero(np.diff(np.cumsum(costs) // _BUDGET)) + 1)


def _together(items: Ints, owners: Jagged, baskets: Jagged, n_items: int) -> Ints:
    """Users who took both, for some items and all items [N, I] int64."""
    users = owners.take(items)
    taken = baskets.take(users.values)
    cells = users.row_ids[taken.row_ids] * n_items + taken.values
    return np.bincount(cells, minlength=len(items) * n_items).reshape(len(items), n_items)


def nearest(similarity: Floats, count: int) -> tuple[Ints, Ints, Floats]:
    """The `count` largest positive values of each row: rows, columns and values [*]. Of equal values the lower columns are kept."""
    size = similarity.shape[1]
    # Positive floats order as their bits do, so one integer holds a value and, below it, what breaks a tie.
    keys = similarity.view(np.int32).astype(np.int64) << 32 | (size - 1 - np.arange(size))
    if count < size:
        keys = np.partition(keys, size - count, axis=1)[:, size - count :]
    values = (keys >> 32).astype(np.int32).view(np.float32)
    rows, places = np.nonzero(values > 0)
    return rows, size - 1 - (keys[rows, places] & 0xFFFFFFFF), values[rows, places]
