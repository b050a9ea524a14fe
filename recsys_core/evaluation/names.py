"""Metric names as people write them: `NDCG@10`, `MRR`, `coverage@10`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from recsys_core.errors import DataError, refuse_text, unknown_name

ACCURACY = ("HR", "NDCG", "MRR", "Recall", "AUC")
"""Metrics of where the held-out items landed; one value a user."""
OF_LISTS = ("popularity", "novelty", "diversity", "coverage", "gini")
"""Metrics of the top-k lists themselves."""
OF_ALL_LISTS = ("coverage", "gini")
"""Those that exist for all lists together only, not for one user."""
_CUTOFF = {"MRR": "optional", "AUC": "none"}


def parse_metric(name: str) -> tuple[str, int | None]:
    """Splits `NDCG@10` into `("NDCG", 10)`; raises UnknownNameError for another metric and DataError for a missing or bad cut-off."""
    kind, at, cutoff = name.partition("@")
    if kind not in ACCURACY + OF_LISTS:
        raise unknown_name("metric", name, [m if m in _CUTOFF else f"{m}@k" for m in ACCURACY + OF_LISTS])
    wanted = _CUTOFF.get(kind, "needed")
    if (wanted == "needed" and not at) or (at and (wanted == "none" or not re.fullmatch("[1-9][0-9]*", cutoff))):
        raise DataError(f"metric {name!r} has {'no' if not at else 'a bad'} cut-off; write {'AUC' if kind == 'AUC' else kind + '@10'}")
    return kind, int(cutoff) if at else None


def metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each checked, in order and without repeats; raises DataError where there is none, and what `parse_metric` raises."""
    refuse_text("metrics", names)
    if not names:
        raise DataError("no metric is named; name at least one, such as NDCG@10")
    for name in names:
        parse_metric(name)
    return tuple(dict.fromkeys(names))
