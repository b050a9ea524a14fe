"""Ranking metrics of one user at a time, from dense scores over the whole catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Ints, Jagged
from recsys_core.errors import DataError, unknown_name

PER_USER = ("HR", "NDCG", "MRR", "Recall", "AUC")
_NEEDS_CUTOFF = {"HR", "NDCG", "Recall"}
_GATHER_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the held-out items of B users landed in the ranked catalogue.

    ranks: jagged float64, B rows of the distinct positives' ranks, 1 is the top, rising; inf where a positive can never be shown.
    auc: [B] float64 in 0 .. 1.
    """

    ranks: Jagged
    auc: NDArray[np.float64]

    def metric(self, name: str) -> NDArray[np.float64]:
        """Per-user values [B] float64 of `HR@k`, `NDCG@k`, `Recall@k`, `MRR`, `MRR@k` or `AUC`.

        HR: 1 if any positive is in the top k. Recall: share of all positives in the top k. MRR: 1 / rank of the first positive, 0 beyond
        k when k is given. NDCG: binary gains 1 / log2(1 + rank), divided by the gain of the best possible order, min(k, positives) items
        long. Raises UnknownNameError or DataError for a name outside this list.
        """
        kind, k = parse_metric(name)
        if kind == "AUC":
            return self.auc
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


def parse_metric(name: str) -> tuple[str, int | None]:
    """Splits `NDCG@10` into `("NDCG", 10)`; raises UnknownNameError for another metric and DataError for a missing or bad cut-off."""
    kind, at, cutoff = name.partition("@")
    if kind not in PER_USER:
        raise unknown_name("metric", name, [f"{m}@k" if m in _NEEDS_CUTOFF else m for m in PER_USER])
    if (kind in _NEEDS_CUTOFF and not at) or (at and (kind == "AUC" or not re.fullmatch("[1-9][0-9]*", cutoff))):
        raise DataError(f"metric {name!r} has {'no' if not at else 'a bad'} cut-off; write {'AUC' if kind == 'AUC' else kind + '@10'}")
    return kind, int(cutoff) if at else None


def rank(scores: NDArray, targets: Jagged, excluded: Jagged | None = None) -> Ranking:
    """Ranks each user's positives among the items that may be shown, ties against the model.

    scores: [B, I], no NaN; targets: B rows of at least one dense item id, repeated ids count once; excluded: B rows never shown
    (seen items), default none. Negatives are the items in neither.

    A positive's rank is 1 + the negatives that score at least as high + the positives ranked before it. A positive that is excluded, or
    scored -inf (which `recommend` never lists), is missed: its rank is inf. Comparisons are counted, nothing is sorted: O(I) a positive.

    AUC is the Mann-Whitney statistic, the share of (positive, negative) pairs in the right order. Equal scores count half, as in
    sklearn's roc_auc_score; this is the one metric where a tie is not held against the model. An excluded positive loses all its pairs; a
    user without negatives gets 0.5.
    """
    users, items = len(scores), scores.shape[1]
    _check_rows("targets", targets, users, items)
    if len(targets) and targets.lengths.min() == 0:
        raise DataError(f"targets of row {int(targets.lengths.argmin())} are empty; every evaluated user needs a held-out item")
    if np.isnan(scores).any():
        raise DataError("scores hold NaN, which has no rank; the recommender must give a number for each item")
    pair = np.unique(targets.row_ids * items + targets.values) if items else np.empty(0, np.int64)
    user, item = np.divmod(pair, max(items, 1))
    positive = np.asarray(scores[user, item])
    shown = np.ones(len(pair), bool)
    negatives = scores.astype(np.result_type(scores, np.float32), copy=True)
    if excluded is not None:
        _check_rows("excluded", excluded, users, items)
        negatives[excluded.row_ids, excluded.values] = np.nan
        shown = ~np.isnan(negatives[user, item])
    # NaN compares false with everything, so what is marked is no longer a negative.
    negatives[user, item] = np.nan
    at_least, above = _count_above(negatives, user, positive)

    listed = shown & ~np.isneginf(positive)
    order = np.lexsort((np.where(listed, -positive, np.inf), user))
    lengths = np.bincount(user, minlength=users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    before = np.arange(len(pair)) - np.repeat(offsets[:-1], lengths)
    ranks = np.where(listed[order], 1.0 + at_least[order] + before, np.inf)

    n_negatives = items - np.isnan(negatives).sum(axis=1)
    won = np.bincount(user, np.where(shown, n_negatives[user] - (at_least + above) / 2, 0.0), users)
    pairs = n_negatives * lengths
    return Ranking(Jagged(ranks, offsets), np.divide(won, pairs, out=np.full(users, 0.5), where=pairs > 0))


def _count_above(negatives: NDArray, user: Ints, positive: NDArray) -> tuple[Ints, Ints]:
    """How many negatives score at least, and strictly, more than each positive; [P] int64 each, gathered in bounded blocks."""
    at_least, above = np.empty(len(user), np.int64), np.empty(len(user), np.int64)
    step = max(1, _GATHER_BYTES // max(1, negatives.itemsize * negatives.shape[1]))
    for start in range(0, len(user), step):
        block = slice(start, start + step)
        rows, threshold = negatives[user[block]], positive[block, None]
        at_least[block] = np.count_nonzero(rows >= threshold, axis=1)
        above[block] = np.count_nonzero(rows > threshold, axis=1)
    return at_least, above


def _check_rows(what: str, rows: Jagged, users: int, items: int) -> None:
    if len(rows) != users:
        raise DataError(f"{what} have {len(rows)} rows for {users} rows of scores; give one a user")
    values = rows.values
    if len(values) and not (values.min() >= 0 and values.max() < items):
        raise DataError(f"{what} hold item ids {values.min()} .. {values.max()}; the scores cover 0 .. {items - 1}")


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


def mean_popularity(lists: Ints, item_counts: Ints) -> float:
    """Mean training interactions of the listed items, in interactions; lists: [B, k], -1 is padding; item_counts: [I]; NaN for no items."""
    listed = lists[lists >= 0]
    return float(item_counts[listed].mean()) if len(listed) else float("nan")


def novelty(lists: Ints, item_counts: Ints) -> float:
    """Mean self-information of the listed items in bits: -log2 of the item's share of training interactions (Zhou et al. 2010).

    An item without interactions counts as one with a single one. lists: [B, k], -1 is padding; item_counts: [I]; NaN for no items.
    """
    listed = lists[lists >= 0]
    share = np.maximum(item_counts[listed], 1) / max(int(item_counts.sum()), 1)
    return float(-np.log2(share).mean()) if len(listed) else float("nan")


def beyond_accuracy(lists: Ints, item_counts: Ints) -> dict[str, float]:
    """Coverage, Gini, mean popularity and novelty of lists [B, k] against training counts [I], named `coverage@k` and so on."""
    k, n_items = lists.shape[1], len(item_counts)
    return {
        f"coverage@{k}": coverage(lists, n_items),
        f"gini@{k}": gini(lists, n_items),
        f"popularity@{k}": mean_popularity(lists, item_counts),
        f"novelty@{k}": novelty(lists, item_counts),
    }


def metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each checked, in order and without repeats."""
    for name in names:
        parse_metric(name)
    return tuple(dict.fromkeys(names))


def _exposures(lists: Ints, n_items: int) -> Ints:
    return np.bincount(lists[lists >= 0], minlength=n_items)
