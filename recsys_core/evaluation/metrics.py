"""Where held-out items land in the ranked catalogue, from dense scores on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Ints, Jagged, check_rows
from recsys_core.errors import DataError
from recsys_core.evaluation.names import ACCURACY, parse_metric

if TYPE_CHECKING:
    from torch import Tensor

CPU_PIECE = 4 * 2**20
"""Bytes of scores that are worked on at once: on a processor a piece stays in its cache, so that memory is read once."""
GPU_PIECE = 256 * 2**20
"""The same on a GPU, where few large kernels are fastest."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the held-out items of B users landed in the ranked catalogue.

    ranks: jagged float64, B rows of the distinct positives' ranks, 1 is the top, rising; inf where a positive can never be shown.
    auc: [B] float64 in 0 .. 1, or None where it was not asked for.
    """

    ranks: Jagged
    auc: NDArray[np.float64] | None = None

    def metric(self, name: str) -> NDArray[np.float64]:
        """Per-user values [B] float64 of `HR@k`, `NDCG@k`, `Recall@k`, `MRR`, `MRR@k` or `AUC`.

        HR: 1 if any positive is in the top k. Recall: share of all positives in the top k. MRR: 1 / rank of the first positive, 0 beyond
        k when k is given. NDCG: binary gains 1 / log2(1 + rank), divided by the gain of the best possible order, min(k, positives) items
        long. Raises UnknownNameError or DataError for a name outside this list.
        """
        kind, k = parse_metric(name)
        if kind == "AUC" and self.auc is not None:
            return self.auc
        if kind not in ACCURACY or kind == "AUC":
            raise DataError(f"this ranking has no {name}; {'rank with auc=True' if kind == 'AUC' else 'it is a metric of top-k lists'}")
        rank, users = self.ranks.values, self.ranks.row_ids
        inside = np.isfinite(rank) if k is None else rank <= k
        if kind == "MRR":
            first = self.ranks.offsets[:-1]
            return np.where(inside[first], 1 / rank[first], 0.0)
        if kind == "NDCG":
            assert k is not None
            gain = np.bincount(users, np.where(inside, 1 / np.log2(1 + rank), 0.0), len(self.ranks))
            longest = int(self.ranks.lengths.max(initial=0))
            ideal: NDArray[np.float64] = np.cumsum(1 / np.log2(np.arange(2, longest + 2)))
            ndcg: NDArray[np.float64] = gain / ideal[np.minimum(self.ranks.lengths, k) - 1]
            return ndcg
        hits = np.bincount(users, inside, len(self.ranks))
        return np.minimum(hits, 1.0) if kind == "HR" else hits / self.ranks.lengths


def rank(scores: Tensor | NDArray, targets: Jagged, excluded: Jagged | None = None, auc: bool = True, checked: bool = False) -> Ranking:
    """Ranks each user's positives among the items that may be shown, ties against the model.

    scores: [B, I] of any device, no NaN, left as they are; targets: B rows of at least one dense item id, repeated ids count once;
    excluded: B rows never shown (seen items), default none. Negatives are the items in neither. auc: costs as much again as the ranks.
    checked: the scores are known to hold no NaN, as those of `Recommender.scores` are.

    A positive's rank is 1 + the negatives that score at least as high + the positives ranked before it. A positive that is excluded, or
    scored -inf (which `recommend` never lists), is missed: its rank is inf.

    AUC is the Mann-Whitney statistic, the share of (positive, negative) pairs in the right order. Equal scores count half, as in
    sklearn's roc_auc_score; this is the one metric where a tie is not held against the model. An excluded positive loses all its pairs; a
    user without negatives gets 0.5.

    Comparisons are counted where the scores are and nothing is sorted: O(I) a positive, and only four numbers a positive leave the device.
    """
    import torch

    scores = torch.as_tensor(scores)
    scores = scores if scores.is_floating_point() else scores.float()
    users, items = scores.shape
    hidden = excluded or Jagged(np.empty(0, np.int64), np.zeros(users + 1, np.int64))
    check_rows("targets", targets, users, items)
    check_rows("excluded", hidden, users, items)
    if len(targets) and targets.lengths.min() == 0:
        raise DataError(f"targets of row {int(targets.lengths.argmin())} are empty; every evaluated user needs a held-out item")
    pair = np.unique(targets.row_ids * items + targets.values)
    user, item = np.divmod(pair, max(items, 1))
    lengths = np.bincount(user, minlength=users)
    positives = Jagged(item, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    counts = [*_counts(scores, user, positives, hidden, auc)]
    own, shown, at_least, above = torch.cat(counts, 1).cpu().numpy() if counts else np.empty((4, 0))
    if not checked and users and bool(scores.amax().isnan()):
        raise DataError("scores hold NaN, which has no rank; the recommender must give a number for each item")

    listed = (shown > 0) & ~np.isneginf(own)
    order = np.lexsort((np.where(listed, -own, np.inf), user))
    before = np.arange(len(pair)) - np.repeat(positives.offsets[:-1], lengths)
    ranks = Jagged(np.where(listed[order], 1.0 + at_least[order] + before, np.inf), positives.offsets)
    if not auc:
        return Ranking(ranks)
    masked = np.sort(np.concatenate([pair, hidden.row_ids * items + hidden.values]))
    masked = masked[np.diff(masked, prepend=-1) > 0]
    negatives = items - np.bincount(masked // max(items, 1), minlength=users)
    won = np.bincount(user, np.where(shown > 0, negatives[user] - (at_least + above) / 2, 0.0), users)
    pairs = negatives * lengths
    return Ranking(ranks, np.divide(won, pairs, out=np.full(users, 0.5), where=pairs > 0))


def _counts(scores: Tensor, user: Ints, positives: Jagged, hidden: Jagged, auc: bool) -> Iterator[Tensor]:
    """For pieces of the P positives (row `user` of the scores, by user): [4, piece] float64 on the device of the scores.

    The rows are: the positive's score, 1 if it may be shown, negatives that score at least as much, and negatives that score more (0
    without `auc`).
    """
    import torch

    device, items = scores.device, scores.shape[1]
    step = rows_a_piece(scores)
    # Comparisons are written as 0.0 and 1.0: adding these up is several times faster than counting booleans, and exact below 2^24.
    work = torch.empty(min(step, len(user)), items, device=device, dtype=torch.float32 if items < 2**24 else torch.float64)
    for start in range(0, len(user), step):
        rows = user[start : start + step]
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        mine = scores[rows[0] : rows[-1] + 1] if contiguous else scores[torch.from_numpy(rows).to(device)]
        places = torch.arange(len(rows), device=device), torch.from_numpy(positives.values[start : start + step]).to(device)
        never, competing = places_of(hidden.take(rows), device), places_of(positives.take(rows), device)
        own = mine[places]
        won = torch.ge(mine, own[:, None], out=work[: len(rows)])
        won[never] = 0.0
        shown = won[places]
        won[competing] = 0.0
        at_least = won.sum(1)
        above = torch.zeros_like(at_least)
        if auc:
            torch.gt(mine, own[:, None], out=won)
            won[never] = 0.0
            won[competing] = 0.0
            above = won.sum(1)
        yield torch.stack([c.double() for c in (own, shown, at_least, above)])


def rows_a_piece(scores: Tensor) -> int:
    """Rows of scores [B, I] to work on at once."""
    piece = CPU_PIECE if scores.device.type == "cpu" else GPU_PIECE
    return max(1, piece // max(1, 4 * scores.shape[1]))


def places_of(rows: Jagged, device: object) -> tuple[Tensor, Tensor]:
    """Where the values of jagged rows stand in a matrix with one row each: row and column indices on a device."""
    import torch

    return torch.from_numpy(rows.row_ids).to(device), torch.from_numpy(rows.values).to(device)  # type: ignore[call-overload]
