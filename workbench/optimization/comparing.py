"""Prompt searches side by side: what their favourites are worth on the same rows, and what each search took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_core.errors import DataError
from recsys_core.evaluation import Comparison, compare, holm
from recsys_core.evaluation import Evaluation as Measured
from workbench.optimization.settings import stored_settings
from workbench.store import Evaluation, StoreReader


@dataclass(frozen=True)
class Compared:
    """A search's favourite. value, low, high: of the metric, 95% interval; adjusted: p-value after Holm.

    questions: all that the search asked, those that the store answered among them, so that a search does not look cheap for coming second,
    each once, so that it does not look dear for having been resumed.

    difference: the favourite minus the template that the first search began with, paired by row; a search that found nothing keeps its
    start.
    """

    run: str
    optimizer: str
    questions: int
    template: str
    value: float
    low: float
    high: float
    difference: Comparison
    adjusted: float


def compare_searches(store: StoreReader, runs: Sequence[str], metric: str = "MRR", part: str = "test", seed: int = 0) -> list[Compared]:
    """The favourites of finished searches on the `test` or `fresh` rows, in the order given.

    Raises DataError for searches that were measured on other rows, whose part stayed sealed, or that lack the metric.
    """
    found = []
    for name in dict.fromkeys(store.resolve(run, "optimize") for run in runs):
        arms = {e.arm: e for e in store.evaluations(name) if e.part == part and e.metric == metric}
        if "start" not in arms:
            raise DataError(f"run {name} has no {metric} on {part} rows; name a finished search that opened them, and a metric it reports")
        found.append((name, arms["start"], arms.get("favourite", arms["start"])))
    if not found:
        raise DataError("no searches to compare; name at least one run")
    base = found[0][1]
    if other := next((name for name, start, _ in found if start.users_hash != base.users_hash), None):
        raise DataError(f"runs {found[0][0]} and {other} were measured on different {part} rows; compare searches of one task and seed")
    differences = [compare(_measured(favourite), _measured(base), metric, seed) for _, _, favourite in found]
    adjusted = holm([difference.p_value for difference in differences])
    return [
        Compared(
            name, stored_settings(store.run(name).config)[0].optimizer, store.call_totals(name).questions, favourite.model,
            favourite.mean, favourite.low, favourite.high, difference, p,
        )
        for (name, _, favourite), difference, p in zip(found, differences, adjusted, strict=True)
    ]  # fmt: skip


def _measured(stored: Evaluation) -> Measured:
    """As the paired tests take it; rows of equal hash are in one order, so their places do for names."""
    return Measured(stored.model, np.arange(len(stored.per_user)), {stored.metric: stored.per_user.astype(np.float64)})
