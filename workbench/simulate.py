"""One stored simulation run: settings in, a run id and its totals out, resumable from wherever it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agents.chat import ChatClient, Counts
from agents.llm import LLMPolicy
from agents.persona import LogProfile
from agents.seeding import stream
from agents.session import fit_session
from agents.statistical import StatisticalPolicy
from agents.types import Policy
from recsys_core.data import Dataset, Ints, Split
from recsys_core.errors import DataError
from recsys_core.progress import Progress
from simulators.engine import Simulation, SimulationConfig, SimulationResult
from simulators.events import PageRecord
from simulators.fidelity import measure
from workbench.config import DataSettings, Experiment, LLMSettings, Settings, SimulationSettings
from workbench.data import load_split
from workbench.llm import budget_of, chat_client, used_by
from workbench.prompts.channel import added, ranking_through
from workbench.prompts.ranked import Rates
from workbench.recommenders import ready, resolved_model
from workbench.running import marked
from workbench.store import Evaluation, Store, hash_users

FIDELITY_USERS = {"statistical": 200, "llm": 20}


class RunSettings(Settings):
    """The resolved configuration stored with a simulation run: all that is needed to repeat or resume it."""

    name: str
    """Name of the experiment."""
    seed: int
    """Seed of the run."""
    data: DataSettings
    """The log."""
    simulation: SimulationSettings
    """The simulated users."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run was.

    settings: as the run keeps them; counts: model calls of this process, the agents' and the recommender's, None without a model;
    rates: what the answers to a recommender that ranks by a language model were of use for, None where none did.
    """

    run: str
    settings: SimulationSettings
    result: SimulationResult
    counts: Counts | None
    log_hash: str
    rates: Rates | None = None


def simulate(store: Store, experiment: Experiment, settings: SimulationSettings, progress: Progress) -> Outcome:
    """Starts a new run. On any error or interrupt the run is marked, what was stored stays, and the error says how to resume."""
    dataset, split = load_split(experiment.data)
    settings = settings.model_copy(update={"recommender": resolved_model(store, settings.recommender, split.train)})
    resolved = RunSettings(name=experiment.name, seed=experiment.seed, data=experiment.data, simulation=settings)
    users = pick_users(split, settings, experiment.seed)
    client = _agents_client(settings, store)
    run = store.start_run("simulate", experiment.name, resolved.model_dump(mode="json"), experiment.seed, dataset, split)
    with marked(store, run, "workbench simulate --resume"):
        return _run(store, run, resolved, split, users, client, progress)


def resume(store: Store, run: str, progress: Progress, llm: LLMSettings | None = None) -> Outcome:
    """Goes on with a run that stopped. llm: other bounds or another endpoint for the same model; what was stored is not asked again.

    Raises DataError where the dataset, or a recommender that was trained before, is not the one the run began with, and HeldError
    where another process works on the run.
    """
    run = store.resolve(run, "simulate")
    with store.working_on(run, progress):
        summary = store.run(run)
        resolved = RunSettings(**summary.config)
        if llm is not None:
            resolved = resolved.model_copy(update={"simulation": resolved.simulation.model_copy(update={"llm": llm})})
        dataset, split = load_split(resolved.data)
        if (dataset.content_hash, split.content_hash) != (summary.dataset_hash, summary.split_hash):
            raise DataError(
                f"run {run} began on dataset {summary.dataset_hash[:12]}, {resolved.data.name!r} is now {dataset.content_hash[:12]}; "
                "bring the old data back or start a new run"
            )
        if summary.status == "finished":
            raise DataError(f"run {run} is finished; there is nothing to resume")
        users = pick_users(split, resolved.simulation, resolved.seed)
        resolved_model(store, resolved.simulation.recommender, split.train)
        client = _agents_client(resolved.simulation, store)
        store.record_status(run, "resumed")
        with marked(store, run, "workbench simulate --resume"):
            return _run(store, run, resolved, split, users, client, progress)


def pick_users(split: Split, settings: SimulationSettings, seed: int) -> Ints:
    """The simulated users [agents]: a seeded order of the users with test items, sliced; raises DataError where there are too few."""
    order = stream(seed, "agents").permutation(split.test.users)
    wanted = order[settings.skip : settings.skip + settings.agents]
    if len(wanted) < settings.agents:
        held = f"the split has {len(order)} held-out users"
        raise DataError(f"{settings.agents} agents after skipping {settings.skip} are too many, {held}; lower agents or skip")
    return np.sort(wanted)


def _agents_client(settings: SimulationSettings, store: Store) -> ChatClient | None:
    """The client of an `llm` policy; None for policies without a model."""
    return chat_client(store, settings.llm) if settings.policy == "llm" else None


def _run(
    store: Store, run: str, settings: RunSettings, split: Split, users: Ints, client: ChatClient | None, progress: Progress
) -> Outcome:
    simulation, seed = settings.simulation, settings.seed
    sink = store.sink(run)
    build = _policy_builder(simulation, client, seed)
    if client is not None:
        client.on_call = lambda record: sink.calls([record])
    progress(0.0, "training the recommender and fitting the agents")
    recommender = ready(simulation.recommender, split.train)
    session = fit_session(split.train, simulation.session_gap, simulation.boredom)
    policy = build(split.train)
    config = SimulationConfig(pages=simulation.pages, page_size=simulation.page_size, cohort=simulation.cohort, seed=seed)
    finished = 0

    def on_page(record: PageRecord) -> None:
        nonlocal finished
        finished += bool(record.exit)
        progress(finished / len(users), f"{finished} of {len(users)} agents finished")

    async def work() -> SimulationResult:
        progress(0.0, "measuring how far the agents can be trusted")
        await _measure_fidelity(store, run, simulation, build, split, users, seed)
        return await Simulation(LogProfile(split.train), recommender, policy, session, config, on_page).run(users, sink)

    # A recommender that asks a model, too, keeps to the bounds of the run and is counted with it.
    budget = client.budget if client else budget_of(simulation.llm)
    budget.used = used_by(store, run)
    with ranking_through(store, lambda record: sink.calls([record]), budget, simulation.llm) as channel:
        result = asyncio.run(work())
    counts = added(client.counts if client else Counts(), channel.counts)
    rates = channel.rates if channel.rates.replies else None
    return Outcome(run, simulation, result, counts if client or rates else None, store.log_hash(run), rates)


def _policy_builder(settings: SimulationSettings, client: ChatClient | None, seed: int) -> Callable[[Dataset], Policy]:
    """Makes the run's policy from a log, so that fidelity can be measured on a policy that has seen less of it."""

    def build(log: Dataset) -> Policy:
        statistical = StatisticalPolicy.fit(log, seed, settings.take_rate)
        if client is None:
            return statistical
        levels = (1.0,) if log.rating is None else tuple(float(x) for x in np.unique(log.rating))
        return LLMPolicy(client, statistical, levels, settings.llm.elicit, settings.take_rate, settings.llm.temperature)

    return build


async def _measure_fidelity(
    store: Store, run: str, settings: SimulationSettings, build: Callable[[Dataset], Policy], split: Split, users: Ints, seed: int
) -> None:
    """Measures the policy once a run and stores it beside the run."""
    count = settings.fidelity_users if settings.fidelity_users is not None else FIDELITY_USERS[settings.policy]
    if not count or store.evaluations(run):
        return
    fidelity = await measure(build, split.train, users[:count], seed)
    rows = []
    for part in fidelity.discrimination:
        for judge, values in part.auc.items():
            figures = part.interval(judge, seed)
            per_user = values.astype(np.float32)
            rows.append(
                Evaluation(judge, f"{part.negatives} negatives", seed, "fidelity", "AUC", *figures, per_user, hash_users(part.users))
            )
    if ratings := fidelity.ratings:
        errors = (ratings.given - ratings.own).astype(np.float32)
        for (rater, measured), figures in ratings.figures(seed).items():
            rows.append(Evaluation(rater, "ratings", seed, "fidelity", measured, *figures, errors, ""))
    store.add_evaluations(run, rows)
