"""Runs a recommender over held-out users and keeps every user's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Floats, Ints
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError, unknown_name
from recsys_core.evaluation import lists as of_lists
from recsys_core.evaluation.compare import bootstrap_means
from recsys_core.evaluation.metrics import rank
from recsys_core.evaluation.names import ACCURACY, OF_ALL_LISTS, metric_names, parse_metric
from recsys_core.recommender import Recommender

DEFAULT_METRICS = ("HR@10", "NDCG@10", "MRR")
_SCORE_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Per-user values of one recommender on one holdout.

    model: the recommender's name; users: [B] int64 dense user ids, -1 for unknown ones; values: metric name to [B] float64.
    training: loss, negatives and use of time, as the recommender says it. totals: metrics of all lists together (coverage, Gini), which
    have no value a user. lists: [B, k] int64 dense item ids, -1 is padding, for the longest k of the metrics of lists; None without such.
    """

    model: str
    users: Ints
    values: Mapping[str, NDArray[np.float64]]
    training: str = "not stated"
    totals: Mapping[str, float] = field(default_factory=dict)
    lists: Ints | None = None

    def __getitem__(self, metric: str) -> NDArray[np.float64]:
        """Per-user values [B] of a metric; raises UnknownNameError for one that was not evaluated or has none."""
        if metric not in self.values:
            raise unknown_name("per-user metric of this evaluation", metric, self.values)
        return self.values[metric]

    @property
    def means(self) -> dict[str, float]:
        """The mean over users of each metric, and the totals."""
        return {name: float(values.mean()) for name, values in self.values.items()} | dict(self.totals)

    def interval(self, metric: str, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
        """The 95% percentile-bootstrap interval of the mean over users (users are drawn, the trained model stays)."""
        low, high = np.quantile(bootstrap_means(self[metric], np.random.default_rng(seed), resamples), (0.025, 0.975))
        return float(low), float(high)


def evaluate(
    recommender: Recommender,
    holdout: Holdout,
    metrics: Sequence[str] = DEFAULT_METRICS,
    exclude_seen: bool = True,
    train: Dataset | None = None,
    vectors: Floats | None = None,
    block: int = 1024,
) -> Evaluation:
    """Ranks the full catalogue for every held-out user, ties against the recommender, and lists the best items where a metric needs them.

    With `exclude_seen`, items of a user's history are neither negatives nor listed: a target among them is missed.
    train: the training log, whose counts give popularity and novelty; vectors: item vectors [I, d] for diversity, default the log's tags.
    Scores stay on the recommender's device. They are asked for at most `block` users and 256 MiB at a time, which bounds memory for any
    catalogue. Raises UnknownNameError or DataError for metrics before anything is scored.
    """
    names = metric_names(metrics)
    if not len(holdout):
        raise DataError("the holdout has no users; split a dataset with longer histories")
    if block < 1:
        raise DataError(f"block is {block}; it must be at least 1 user")
    parsed = {name: parse_metric(name) for name in names}
    accuracy = [name for name, (kind, _) in parsed.items() if kind in ACCURACY]
    listed = {name: (kind, k or 0) for name, (kind, k) in parsed.items() if kind not in ACCURACY}
    longest = max((k for _, k in listed.values()), default=0)
    counts, vectors = _about_items(recommender, {kind for kind, _ in listed.values()}, train, vectors)

    block = max(1, min(block, _SCORE_BYTES // max(1, 4 * len(recommender.items or ()))))
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in accuracy}
    tops: list[Ints] = []
    for start in range(0, len(holdout), block):
        stop = min(start + block, len(holdout))
        histories = holdout.histories.slice(start, stop)
        scores, seen = recommender.scores(histories), histories.items if exclude_seen else None
        if accuracy:
            ranking = rank(scores, holdout.targets.take(range(start, stop)), seen, "AUC" in names, checked=True)
            for name in accuracy:
                parts[name].append(ranking.metric(name))
        if longest:
            tops.append(of_lists.top_lists(scores, longest, seen))

    top = np.concatenate(tops) if tops else None
    found: dict[str, NDArray[np.float64]] = {name: np.concatenate(values) for name, values in parts.items()}
    totals = {}
    for name, (kind, k) in listed.items():
        assert top is not None
        if kind in OF_ALL_LISTS:
            totals[name] = (of_lists.coverage if kind == "coverage" else of_lists.gini)(top[:, :k], len(counts))
        elif kind == "diversity":
            assert vectors is not None
            found[name] = of_lists.diversity(top[:, :k], vectors)
        else:
            found[name] = (of_lists.popularity if kind == "popularity" else of_lists.novelty)(top[:, :k], counts)
    values = {name: found[name] for name in names if name in found}
    return Evaluation(recommender.name, holdout.users, values, recommender.training, totals, top)


def _about_items(recommender: Recommender, kinds: set[str], train: Dataset | None, vectors: Floats | None) -> tuple[Ints, Floats | None]:
    """What metrics of lists need: training counts [I] and item vectors [I, d]; raises DataError where a metric lacks its own."""
    n_items = len(recommender.items or ())
    if missing := sorted(kinds & {"popularity", "novelty"}) if train is None else []:
        raise DataError(f"metric {missing[0]!r} needs the training log; evaluate with train=split.train")
    if "diversity" in kinds and vectors is None:
        if train is None or not train.tags:
            raise DataError("metric 'diversity' needs item vectors or a training log with tags; evaluate with vectors=...")
        vectors = of_lists.tag_vectors(train.tags)
    counts = np.zeros(n_items, np.int64) if train is None else train.item_counts
    for what, rows in (("training log", len(counts)), ("item vectors", n_items if vectors is None else len(vectors))):
        if kinds and rows != n_items:
            raise DataError(f"the {what} cover {rows} items, {recommender.name} was trained on {n_items}; give those of its own catalogue")
    return counts, vectors
