"""Runs a recommender over held-out users and keeps every user's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Ints, Jagged
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError, unknown_name
from recsys_core.evaluation.compare import bootstrap_means
from recsys_core.evaluation.metrics import metric_names, rank
from recsys_core.recommender import Recommender

DEFAULT_METRICS = ("HR@10", "NDCG@10", "MRR", "Recall@10", "AUC")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Per-user values of one recommender on one holdout.

    model: the recommender's name; users: [B] int64 dense user ids, -1 for unknown ones; values: metric name to [B] float64.
    training: loss, negatives and use of time, as the recommender says it.
    """

    model: str
    users: Ints
    values: Mapping[str, NDArray[np.float64]]
    training: str = "not stated"

    def __getitem__(self, metric: str) -> NDArray[np.float64]:
        """Per-user values [B] of a metric; raises UnknownNameError for one that was not evaluated."""
        if metric not in self.values:
            raise unknown_name("metric of this evaluation", metric, self.values)
        return self.values[metric]

    @property
    def means(self) -> dict[str, float]:
        """The mean over users of each metric."""
        return {name: float(values.mean()) for name, values in self.values.items()}

    def interval(self, metric: str, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """The 95% percentile-bootstrap interval of the mean over users (users are drawn, the trained model stays)."""
        low, high = np.quantile(bootstrap_means(self[metric], np.random.default_rng(seed), resamples), (0.025, 0.975))
        return float(low), float(high)


def evaluate(
    recommender: Recommender,
    holdout: Holdout,
    metrics: Sequence[str] = DEFAULT_METRICS,
    exclude_seen: bool = True,
    block: int = 1024,
) -> Evaluation:
    """Ranks the full catalogue for every held-out user, in blocks of `block` users, ties against the recommender.

    With `exclude_seen`, items of a user's history are neither negatives nor reachable: a target among them is missed.
    Memory: about three [block, I] float32 arrays.
    """
    names = metric_names(metrics)
    if not len(holdout):
        raise DataError("the holdout has no users; split a dataset with longer histories")
    if block < 1:
        raise DataError(f"block is {block}; it must be at least 1 user")
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for start in range(0, len(holdout), block):
        stop = min(start + block, len(holdout))
        histories = holdout.histories.slice(start, stop)
        targets: Jagged = holdout.targets.take(range(start, stop))
        ranking = rank(recommender.score(histories), targets, histories.items if exclude_seen else None)
        for name in names:
            parts[name].append(ranking.metric(name))
    return Evaluation(
        recommender.name, holdout.users, {name: np.concatenate(values) for name, values in parts.items()}, recommender.training
    )
