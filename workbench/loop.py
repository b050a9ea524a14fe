"""The closed loop's second half: retrain on every arm, judge on one untouched test split, compare pair by pair."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys_core import Comparison, Evaluation, compare, create, evaluate
from recsys_core.data import Dataset, Holdout
from recsys_core.progress import Progress
from workbench.config import ModelSettings
from workbench.store import Comparison as StoredComparison
from workbench.store import Evaluation as StoredEvaluation
from workbench.store import Store, hash_users

BASE = "none"


@dataclass
class Trained:
    """Evaluations of one model on one arm, one a seed; seconds of training, summed."""

    model: str
    arm: str
    runs: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0

    def averaged(self, metric: str) -> Evaluation:
        """Per-user values averaged over seeds, as one evaluation, for an interval over users."""
        values = {metric: np.mean([run[metric] for run in self.runs], axis=0)}
        return Evaluation(self.model, self.runs[0].users, values)


def train_and_evaluate(
    arms: Mapping[str, Dataset], holdout: Holdout, models: Sequence[ModelSettings], seeds: int, metrics: Sequence[str], progress: Progress
) -> list[Trained]:
    """Trains every model on every arm with seeds 0 .. seeds-1 (one where the model draws nothing) and evaluates each on `holdout`.

    The histories at evaluation are the real ones in every arm: only what the model was trained on differs.
    """
    jobs = [(model, arm, seed) for model in models for arm in arms for seed in range(seeds if is_random(model) else 1)]
    results: dict[tuple[str, str], Trained] = {}
    for done, (model, arm, seed) in enumerate(jobs):
        progress(done / len(jobs), f"{model.name} on {arm}, seed {seed}")
        config = {**model.config, "seed": seed} if is_random(model) else model.config
        start = time.perf_counter()
        recommender = create(model.name, **config).fit(arms[arm])
        trained = results.setdefault((model.name, arm), Trained(model.name, arm))
        trained.seconds += time.perf_counter() - start
        trained.runs.append(evaluate(recommender, holdout, tuple(metrics)))
    progress(1.0, "evaluated")
    return list(results.values())


def is_random(model: ModelSettings) -> bool:
    """Whether training draws random numbers: its configuration has a seed, and the user has not fixed it."""
    return "seed" in type(create(model.name, **model.config).config).model_fields and "seed" not in model.config


def compare_arms(trained: Sequence[Trained], metrics: Sequence[str], base: str = BASE) -> list[tuple[str, str, Comparison]]:
    """(model, arm, comparison of that arm with `base`) for every model, arm and metric, paired by user."""
    by_key = {(t.model, t.arm): t for t in trained}
    rows = []
    for item in trained:
        if item.arm != base:
            for metric in metrics:
                rows.append((item.model, item.arm, compare(item.runs, by_key[item.model, base].runs, metric)))
    return rows


def store_results(
    store: Store, run: str, trained: Sequence[Trained], comparisons: Sequence[tuple[str, str, Comparison]], part: str = "test"
) -> None:
    """Keeps every seed's per-user values and every comparison under `run`."""
    evaluations = []
    for item in trained:
        for seed, evaluation in enumerate(item.runs):
            users = hash_users(evaluation.users)
            for metric, values in evaluation.values.items():
                figures = (float(values.mean()), *evaluation.interval(metric))
                evaluations.append(StoredEvaluation(item.model, item.arm, seed, part, metric, *figures, values.astype(np.float32), users))
    store.add_evaluations(run, evaluations)
    store.add_comparisons(
        run, [StoredComparison(model, BASE, arm, part, c.metric, c.difference, c.low, c.high, c.p_value) for model, arm, c in comparisons]
    )
