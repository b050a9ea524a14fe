"""The closed loop's second half: retrain on every arm, judge on one untouched test split, compare pair by pair."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from recsys_core import Comparison, Evaluation, compare, create, evaluate
from recsys_core.data import Dataset, Holdout
from recsys_core.evaluation import metric_names
from recsys_core.progress import Progress
from workbench.config import ModelSettings
from workbench.prompts.recommender import LLMRanker
from workbench.recommenders import class_of, folder_of, ready, refuse_twins
from workbench.store import Comparison as StoredComparison
from workbench.store import Evaluation as StoredEvaluation
from workbench.store import Store, hash_users

BASE = "none"
_WORTH_PROCESSES = 1_000_000
"""Interactions to train on, over all jobs; below, starting processes takes longer than the work."""


@dataclass
class Trained:
    """Evaluations of one model on one arm, one a seed; seconds of training, summed, None for a model that was loaded."""

    model: str
    arm: str
    runs: list[Evaluation] = field(default_factory=list)
    seconds: float | None = 0.0


def train_and_evaluate(
    arms: Mapping[str, Dataset], holdout: Holdout, models: Sequence[ModelSettings], seeds: int, metrics: Sequence[str], progress: Progress
) -> list[Trained]:
    """Trains every model on every arm with seeds 0 .. seeds-1 (one where the model draws nothing) and evaluates each on `holdout`.

    The histories at evaluation are the real ones in every arm: only what the model was trained on differs. Raises DataError for a model
    that is named twice.
    """
    refuse_twins(models, "models")
    metrics = metric_names(metrics)
    jobs = [Job(model, arm, seed) for model in models for arm in arms for seed in range(seeds if is_random(model) else 1)]
    results: dict[tuple[str, str], Trained] = {}
    for done, (job, evaluation, seconds) in enumerate(_results(jobs, arms, holdout, metrics), 1):
        trained = results.setdefault((job.model.name, job.arm), Trained(job.model.name, job.arm))
        trained.runs.append(evaluation)
        trained.seconds = None if seconds is None else (trained.seconds or 0.0) + seconds
        progress(done / len(jobs), f"{job.model.name} on {job.arm}, seed {job.seed}")
    return list(results.values())


@dataclass(frozen=True)
class Job:
    """One training: a model on an arm with a seed."""

    model: ModelSettings
    arm: str
    seed: int


Result = tuple[Job, Evaluation, float | None]


def _results(jobs: Sequence[Job], arms: Mapping[str, Dataset], holdout: Holdout, metrics: tuple[str, ...]) -> Iterator[Result]:
    """Results in the order of the jobs, from one process a core where the work is worth starting them.

    Every worker computes on one thread: small models gain little from a second one, and lose much where it has to wait for its core.
    """
    workers = min(os.cpu_count() or 1, len(jobs))
    small = sum(len(arms[job.arm]) for job in jobs) < _WORTH_PROCESSES
    # What a language model is asked goes through this process's channel, and its answers are what is waited for.
    if workers == 1 or small or any(issubclass(class_of(job.model), LLMRanker) for job in jobs):
        yield from (_run(job, arms[job.arm], holdout, metrics) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        try:
            for future in [pool.submit(_run, job, arms[job.arm], holdout, metrics) for job in jobs]:
                yield future.result()
        except BaseException:
            # Futures are left to the pool, which fails them all: one cancelled here could stop it short, and us in waiting for it.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _start_worker() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)


def _run(job: Job, train: Dataset, holdout: Holdout, metrics: tuple[str, ...]) -> Result:
    config = {**job.model.config, "seed": job.seed} if is_random(job.model) else job.model.config
    start = time.perf_counter()
    recommender = ready(job.model.model_copy(update={"config": config}), train)
    seconds = time.perf_counter() - start
    evaluation = evaluate(recommender, holdout, metrics, train=train)
    return job, evaluation, seconds if folder_of(job.model) is None else None


def is_random(model: ModelSettings) -> bool:
    """Whether training draws random numbers: its configuration has a seed, and the user has not fixed it. A trained model draws none."""
    if folder_of(model) is not None:
        return False
    return "seed" in type(create(model.name, **model.config).config).model_fields and "seed" not in model.config


def compare_arms(trained: Sequence[Trained], metrics: Sequence[str]) -> list[tuple[str, str, Comparison]]:
    """(model, arm, comparison of that arm with `BASE`) for every model, other arm and metric with per-user values, paired by user."""
    by_key = {(t.model, t.arm): t for t in trained}
    rows = []
    for item in trained:
        if item.arm != BASE:
            for metric in (m for m in metrics if m in item.runs[0].values):
                rows.append((item.model, item.arm, compare(item.runs, by_key[item.model, BASE].runs, metric)))
    return rows


def store_results(
    store: Store, run: str, trained: Sequence[Trained], comparisons: Sequence[tuple[str, str, Comparison]], part: str = "test"
) -> None:
    """Keeps every seed's per-user values and every comparison under `run`."""
    evaluations: list[StoredEvaluation] = []
    for item in trained:
        for seed, evaluation in enumerate(item.runs):
            evaluations += stored_evaluations(evaluation, item.model, item.arm, seed, part)
    store.add_evaluations(run, evaluations)
    store.add_comparisons(
        run, [StoredComparison(model, BASE, arm, part, c.metric, c.difference, c.low, c.high, c.p_value) for model, arm, c in comparisons]
    )


def stored_evaluations(evaluation: Evaluation, model: str, arm: str, seed: int, part: str) -> list[StoredEvaluation]:
    """One record a metric; a total has no per-user values, and its interval is the figure itself."""
    users, none = hash_users(evaluation.users), np.empty(0, np.float32)
    records = []
    for metric, values in evaluation.values.items():
        figures = (float(values.mean()), *evaluation.interval(metric))
        records.append(StoredEvaluation(model, arm, seed, part, metric, *figures, values.astype(np.float32), users))
    return records + [StoredEvaluation(model, arm, seed, part, m, t, t, t, none, users) for m, t in evaluation.totals.items()]
