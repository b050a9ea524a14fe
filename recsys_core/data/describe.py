"""What a log looks like in a few numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset

_QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def describe(dataset: Dataset) -> dict[str, Any]:
    """Sizes, distributions, time span and hash of a dataset, ready for JSON.

    density: interactions over users x items. history_length and item_popularity: quantiles (linear interpolation) over all users and all
    items of the vocabularies. popularity_gini: 0 when every item is equally popular, towards 1 when few items take everything.
    ratings: {rating: interactions}, or None. time: first and last interaction (ISO 8601, UTC) and the days between, or None for an
    empty log.
    """
    users, items = len(dataset.users), len(dataset.items)
    time = None
    if len(dataset):
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
        "history_length": _quantiles(np.diff(dataset.offsets)),
        "item_popularity": _quantiles(dataset.item_counts),
        "popularity_gini": gini(dataset.item_counts),
        "time": time,
        "tie_rule": dataset.tie_rule,
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


def _quantiles(values: NDArray) -> dict[str, float]:
    return {name: float(np.quantile(values, q)) if len(values) else 0.0 for name, q in _QUANTILES.items()}


def _iso(seconds: int) -> str:
    # A log in milliseconds still gets described; only its years are beyond what a calendar holds.
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
