"""The whole loop of one experiment: data, baselines, simulated users, retraining on what they did, and the effect on untouched data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from agents.chat import CallRecord
from recsys_core import Comparison
from recsys_core.data import Dataset, Split
from recsys_core.errors import DataError
from recsys_core.progress import Progress
from simulators.events import PageRecord
from workbench.augment import build_arms
from workbench.config import Experiment, ModelSettings
from workbench.data import load_split
from workbench.loop import Trained, compare_arms, store_results, train_and_evaluate
from workbench.prompts.channel import ranking_through
from workbench.recommenders import folder_of, refuse_leaks, refuse_twins, resolved_model
from workbench.running import ended
from workbench.simulate import Outcome, simulate
from workbench.store import Store

Step = Callable[[str], AbstractContextManager[Progress]]
"""Opens one named piece of work and gives where it reports to."""


@dataclass(frozen=True, eq=False)
class Loop:
    """Retraining on every arm. run: where it is stored; trained: one a model and arm; comparisons: (model, arm, that arm against none)."""

    run: str
    trained: list[Trained]
    comparisons: list[tuple[str, str, Comparison]]
    added: int
    users: int


@dataclass(frozen=True, eq=False)
class Report:
    """All that an experiment found."""

    experiment: Experiment
    dataset: Dataset
    split: Split
    baselines: list[Trained]
    simulations: list[Outcome]
    loop: Loop


def run_experiment(store: Store, experiment: Experiment, step: Step) -> Report:
    """Runs every part in order; each is a stored run of its own, so what is done stays done if a later part fails."""
    with step(f"loading {experiment.data.name}"):
        dataset, split = load_split(experiment.data)
    # What is wrong is refused now, not when its turn comes.
    refuse_twins(experiment.baselines, "baselines")
    _check_loop(experiment.loop.models)
    for model in (*experiment.baselines, *(s.recommender for s in experiment.simulations), *experiment.loop.models):
        found = resolved_model(store, model, split.train)
        refuse_leaks([found], "an experiment that judges by the test part")
    with step(f"training {len(experiment.baselines)} recommenders") as progress:
        metrics, calls = experiment.loop.metrics, list[CallRecord]()
        config = {"baselines": _resolved(store, experiment.baselines, split.train), "data": experiment.data.model_dump()}
        with ranking_through(store, calls.append):
            baselines = train_and_evaluate({"none": split.train}, split.test, experiment.baselines, 1, metrics, progress)
        run = store.start_run("evaluate", experiment.name, config, experiment.seed, dataset, split)
        with ended(store, run):
            store.sink(run).calls(calls)
            store_results(store, run, baselines, [])
    outcomes = []
    for settings in experiment.simulations:
        with step(f"simulating {settings.agents} {settings.policy} agents on {settings.recommender.name}") as progress:
            outcomes.append(simulate(store, experiment, settings, progress))
    with step("retraining on what they did, beside the controls") as progress:
        loop = close_loop(store, experiment, dataset, split, [o.run for o in outcomes], progress)
    return Report(experiment, dataset, split, baselines, outcomes, loop)


def close_loop(store: Store, experiment: Experiment, dataset: Dataset, split: Split, runs: Sequence[str], progress: Progress) -> Loop:
    """Pools the interactions of simulation runs, trains every loop model on every arm and compares each arm with `none`, by user."""
    _check_loop(experiment.loop.models)
    recommenders = (ModelSettings(**store.run(run).config["simulation"]["recommender"]) for run in runs)
    refuse_leaks(list(recommenders), "retraining on what its users did")
    pages: list[PageRecord] = [page for run in runs for page in store.pages(run)]
    arms = build_arms(split.train, pages, experiment.seed)
    settings = experiment.loop
    loop = settings.model_dump() | {"models": _resolved(store, settings.models, split.train)}
    config: dict[str, Any] = {"loop": loop, "data": experiment.data.model_dump(), "simulations": list(runs)}
    run = store.start_run("augment", experiment.name, config, experiment.seed, dataset, split)
    sink = store.sink(run)
    with ended(store, run):
        with ranking_through(store, lambda record: sink.calls([record])):
            trained = train_and_evaluate(arms, split.test, settings.models, settings.seeds, settings.metrics, progress)
        comparisons = compare_arms(trained, settings.metrics)
        store_results(store, run, trained, comparisons)
    added = len(arms["synthesized"]) - len(split.train)
    return Loop(run, trained, comparisons, added, len({p.user for p in pages}))


def _check_loop(models: Sequence[ModelSettings]) -> None:
    """Raises DataError for models that no arm can train, or of which results could not be told apart."""
    refuse_twins(models, "models to retrain")
    for model in models:
        if folder_of(model) is not None:
            raise DataError(f"{model.name} is trained already, and every arm trains its models anew; name a recommender, such as ease")


def _resolved(store: Store, models: Sequence[ModelSettings], train: Dataset) -> list[dict[str, Any]]:
    """Full configurations, as a run stores them."""
    return [resolved_model(store, model, train).model_dump() for model in models]
