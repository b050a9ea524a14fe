"""What a log looks like in numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset
from recsys_core.data.features import OWNERS, Category, Feature, Number

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def describe(dataset: Dataset) -> dict[str, Any]:
    """Sizes, distributions, ties, time span, features and hash of a dataset, ready for JSON.

    density: interactions over users x items. history_length and item_popularity: quantiles (linear interpolation) and mean over all users
    and all items of the vocabularies; their histograms: `histogram` on powers of two. popularity_gini: 0 when every item is equally
    popular, towards 1 when few items take everything; popularity_share: the share of interactions that the most popular 1% and 10% of
    items have (at least one item). ratings: {rating: interactions}, or None. timed: whether timestamps are seconds; time: first and last
    interaction (ISO 8601, UTC) and the days between, or None where there are none. ties: see `ties`. features: owner, name, kind, coverage
    (share of rows that are not missing) and what the values are.
    """
    users, items = len(dataset.users), len(dataset.items)
    lengths = np.diff(dataset.offsets)
    time = None
    if len(dataset) and dataset.timed:
        first, last = (int(t) for t in (dataset.timestamp.min(), dataset.timestamp.max()))
        time = {"first": _iso(first), "last": _iso(last), "days": round((last - first) / 86400, 2)}
    ratings = None
    if dataset.rating is not None:
        values, counts = np.unique(dataset.rating, return_counts=True)
        ratings = {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}
    return {
        "name": dataset.name,
        "users": users,
        "items": items,
        "interactions": len(dataset),
        "density": len(dataset) / (users * items) if users and items else 0.0,
        "ratings": ratings,
        "history_length": _quantiles(lengths),
        "history_length_histogram": histogram(lengths),
        "item_popularity": _quantiles(dataset.item_counts),
        "item_popularity_histogram": histogram(dataset.item_counts),
        "popularity_gini": gini(dataset.item_counts),
        "popularity_share": {f"top {percent}%": top_share(dataset.item_counts, percent / 100) for percent in (1, 10)},
        "timed": dataset.timed,
        "time": time,
        "ties": ties(dataset),
        "tie_rule": dataset.tie_rule,
        "text": {"titles": bool(dataset.titles), "tags": _share([bool(tags) for tags in dataset.tags])},
        "features": [_feature(owner, feature) for owner in OWNERS for feature in getattr(dataset.features, owner)],
        "provenance": dataset.provenance,
        "hash": dataset.content_hash,
    }


def gini(counts: NDArray) -> float:
    """Gini coefficient of non-negative counts [N]: sum over i < j of |x_i - x_j|, over N times their sum; 0 for none."""
    total, size = float(counts.sum()), len(counts)
    if total == 0:
        return 0.0
    rank = np.arange(1, size + 1)
    return float(((2 * rank - size - 1) * np.sort(counts)).sum() / (size * total))


def top_share(counts: NDArray, share: float) -> float:
    """Part of the sum of counts [N] that the largest `share` of them hold, at least one; 0 for none."""
    total = float(counts.sum())
    top = max(1, round(share * len(counts)))
    return float(np.sort(counts)[::-1][:top].sum()) / total if total else 0.0


def histogram(counts: NDArray) -> list[dict[str, int]]:
    """How many counts [N] lie in low .. high: 0, 1, 2 .. 3, 4 .. 7 and so on, from the first of these that is not empty to the last."""
    if not len(counts):
        return []
    # Bin 0 holds zeros, bin b the counts of b binary digits.
    found = np.bincount(np.frexp(counts.astype(np.float64))[1])
    return [
        {"low": 1 << b >> 1, "high": (1 << b) - 1, "count": int(found[b])} for b in range(int(np.flatnonzero(found)[0]), len(found))
    ]  # fmt: skip


def ties(dataset: Dataset) -> dict[str, float]:
    """How much the tie rule decides.

    interactions: share of a user's interactions after the first whose timestamp is that of the one before. last: share of users with two
    interactions or more whose last two have one timestamp, so that the tie rule chooses which item leave-one-out holds out.
    """
    time, user = dataset.timestamp[dataset.order], dataset.user[dataset.order]
    follows = user[1:] == user[:-1]
    tied = follows & (time[1:] == time[:-1])
    last = dataset.offsets[1:][np.diff(dataset.offsets) >= 2] - 2
    return {"interactions": float(tied.sum() / follows.sum()) if follows.any() else 0.0, "last": _share(tied[last])}


def _feature(owner: str, feature: Feature) -> dict[str, Any]:
    if isinstance(feature, Number):
        present = feature.values[~np.isnan(feature.values)]
        values: dict[str, Any] = {key: value for key, value in _quantiles(present).items() if key in ("min", "median", "max")}
        covered: Any = ~np.isnan(feature.values)
    else:
        codes = feature.codes if isinstance(feature, Category) else feature.codes.values
        found = np.bincount(codes[codes >= 0], minlength=len(feature.vocabulary))
        common = np.argsort(-found, kind="stable")[:3]
        values = {"distinct": len(feature.vocabulary), "most common": feature.vocabulary.decode(common)}
        covered = feature.codes >= 0 if isinstance(feature, Category) else feature.codes.lengths > 0
    return {"owner": owner, "name": feature.name, "kind": type(feature).__name__.lower(), "coverage": _share(covered), "values": values}


def _share(flags: Any) -> float:
    return float(np.mean(flags)) if len(flags) else 0.0


def _quantiles(values: NDArray) -> dict[str, float]:
    found = {name: float(np.quantile(values, q)) if len(values) else 0.0 for name, q in _QUANTILES.items()}
    return found | {"mean": float(values.mean()) if len(values) else 0.0}


def _iso(seconds: int) -> str:
    # Files in milliseconds are refused, but a log made in memory may have years beyond what a calendar holds.
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
