"""Top-k lists from dense scores, and what they are like beside being right: coverage, concentration, popularity, novelty, diversity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Floats, Ints, Jagged, check_rows
from recsys_core.evaluation.metrics import places_of, rows_a_piece
from recsys_core.recommender import check_k, top_k

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = 64 * 2**20


def top_lists(scores: Tensor | NDArray, k: int, excluded: Jagged | None = None) -> Ints:
    """The k best items a user [B, k] int64, best first, equal scores by dense id; -1 where nothing is left. The lists of `recommend`.

    scores: [B, I] of any device, no NaN, left as they are; excluded: B rows never listed, default none. Raises DataError for a k below 1.
    """
    import torch

    check_k(k)
    scores = torch.as_tensor(scores).float()
    users, items = scores.shape
    hidden = excluded or Jagged(np.empty(0, np.int64), np.zeros(users + 1, np.int64))
    check_rows("excluded", hidden, users, items)
    width = min(k, items)
    lists = torch.full((users, k), -1, device=scores.device)
    step = rows_a_piece(scores)
    for start in range(0, users, step):
        stop = min(start + step, users)
        mine = scores[start:stop].clone()
        mine[places_of(hidden.take(np.arange(start, stop)), scores.device)] = -torch.inf
        best, values = top_k(mine, width)
        lists[start:stop, :width] = best.masked_fill(values.isneginf(), -1)
    found: Ints = lists.cpu().numpy()
    return found


def coverage(lists: Ints, n_items: int) -> float:
    """Share of the catalogue that appears in at least one list; lists: [B, k] dense ids, -1 is padding."""
    return float(np.count_nonzero(_exposures(lists, n_items)) / n_items)


def gini(lists: Ints, n_items: int) -> float:
    """Gini coefficient of exposure over the catalogue: 0 when every item is shown equally often, near 1 when one item is all that is shown.

    lists: [B, k] dense ids, -1 is padding. Half the relative mean absolute difference, from sorted counts; 0 when nothing is shown.
    """
    shown = np.sort(_exposures(lists, n_items))
    if not shown.sum():
        return 0.0
    weight = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float((weight * shown).sum() / (n_items * shown.sum()))


def popularity(lists: Ints, item_counts: Ints) -> NDArray[np.float64]:
    """Mean training interactions of each list's items [B]; lists: [B, k], -1 is padding; item_counts: [I]; 0 for an empty list."""
    return _mean_listed(lists, item_counts.astype(np.float64))


def novelty(lists: Ints, item_counts: Ints) -> NDArray[np.float64]:
    """Mean self-information of each list's items in bits [B]: -log2 of the item's share of training interactions (Zhou et al. 2010).

    An item without interactions counts as one with a single one. lists: [B, k], -1 is padding; item_counts: [I]; 0 for an empty list.
    """
    return _mean_listed(lists, -np.log2(np.maximum(item_counts, 1) / max(int(item_counts.sum()), 1)))


def diversity(lists: Ints, vectors: Floats) -> NDArray[np.float64]:
    """Intra-list diversity [B]: 1 - the mean cosine similarity of a list's pairs of items (after Ziegler et al. 2005).

    lists: [B, k], -1 is padding; vectors: [I, d], of any length; one that is 0 is unlike all others. 0 for lists without pairs.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    unit = np.vstack([unit, np.zeros((1, unit.shape[1]), unit.dtype)])  # row -1: padding
    values = np.zeros(len(lists))
    step = max(1, _BYTES // max(1, unit.itemsize * lists.shape[1] * unit.shape[1]))
    for start in range(0, len(lists), step):
        rows = lists[start : start + step]
        chosen = unit[rows]
        # The sum over pairs of a dot product, from the square of the sum.
        similar = (chosen.sum(1, dtype=np.float64) ** 2).sum(1) - (chosen.astype(np.float64) ** 2).sum((1, 2))
        n = (rows >= 0).sum(1)
        pairs = n * (n - 1)
        values[start : start + step] = np.where(pairs > 0, 1 - similar / np.maximum(pairs, 1), 0.0)
    return values


def tag_vectors(tags: tuple[tuple[str, ...], ...]) -> Floats:
    """Items as rows of 0 and 1 over their tags [I, tags] float32, so that the cosine of two items is that of their tag sets."""
    column = {tag: n for n, tag in enumerate(sorted({tag for mine in tags for tag in mine}))}
    vectors = np.zeros((len(tags), len(column)), np.float32)
    for item, mine in enumerate(tags):
        vectors[item, [column[tag] for tag in mine]] = 1.0
    return vectors


def beyond_accuracy(lists: Ints, item_counts: Ints, vectors: Floats | None = None) -> dict[str, float]:
    """Coverage, Gini, mean popularity, novelty and (given item vectors [I, d]) diversity of lists [B, k], named `coverage@k` and so on.

    item_counts: training interactions [I].
    """
    k, n_items = lists.shape[1], len(item_counts)
    found = {
        f"coverage@{k}": coverage(lists, n_items),
        f"gini@{k}": gini(lists, n_items),
        f"popularity@{k}": float(popularity(lists, item_counts).mean()),
        f"novelty@{k}": float(novelty(lists, item_counts).mean()),
    }
    return found if vectors is None else found | {f"diversity@{k}": float(diversity(lists, vectors).mean())}


def _mean_listed(lists: Ints, value: NDArray[np.float64]) -> NDArray[np.float64]:
    listed = lists >= 0
    total: NDArray[np.float64] = np.where(listed, value[lists], 0.0).sum(1) / np.maximum(listed.sum(1), 1)
    return total


def _exposures(lists: Ints, n_items: int) -> Ints:
    return np.bincount(lists[lists >= 0], minlength=n_items)
