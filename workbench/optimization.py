"""One stored prompt search: settings in, a run id and its report out, resumable from wherever it stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from agents.chat import Budget, ChatClient, Counts, connect
from recsys_core.errors import DataError
from workbench.config import DataSettings, LLMSettings, ModelSettings, Settings
from workbench.prompts.asking import Asking
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.metrics import DEFAULT_METRICS, Measured
from workbench.prompts.optimize import Report, Rules, Watch, optimize, split_dev
from workbench.prompts.optimizers.registry import create_optimizer, needs_proposer
from workbench.prompts.planning import Estimate, estimate, expected_sd, hold_back, minimum_detectable_effect, outlook, what_is_left
from workbench.prompts.proposing import ChatProposer
from workbench.prompts.ranked import Ranker
from workbench.prompts.rankers import ranker_for
from workbench.prompts.tasks import RankingTask
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trial
from workbench.prompts.versions import from_toml, keep
from workbench.running import marked
from workbench.store import Comparison, Evaluation, PromptTrial, Store, hash_users

RESUME = "workbench optimize --resume"


class TaskSettings(Settings):
    """Which rows."""

    source: Literal["po4isr", "recprompt", "mind", "rerank"]
    """What they are read as; `rerank` takes a dataset and the lists of a recommender."""
    path: str = ""
    """A folder (po4isr, mind), a file (recprompt), or nothing (rerank)."""
    data: DataSettings = DataSettings()
    """For rerank: the log."""
    recommender: ModelSettings = ModelSettings(name="itemknn")
    """For rerank: whose lists are put in order."""
    candidates: int | None = Field(default=None, ge=2)
    """For rerank and mind: candidates a row."""
    train: int | None = Field(default=None, ge=0)
    """Rows for a proposer to look at; by default as many as the source's reader takes."""
    dev: int | None = Field(default=None, ge=2)
    """Rows to choose and to confirm by."""
    test: int | None = Field(default=None, ge=1)
    """Rows to report on, sealed."""


class OptimizeSettings(Settings):
    """The resolved configuration stored with a prompt search: all that is needed to repeat or resume it."""

    task: TaskSettings
    """The rows."""
    template: str
    """The template to start from, as TOML."""
    optimizer: str = "components"
    """Name of the optimizer."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its own settings."""
    llm: LLMSettings = LLMSettings(temperature=0.0, timeout=600.0)
    """The model that ranks, and the bounds of the whole run."""
    proposer: str = ""
    """The model that writes templates, for optimizers that need one; by default the one that ranks."""
    metric: str = "MRR"
    """What is optimized."""
    metrics: tuple[str, ...] = DEFAULT_METRICS
    """What is reported beside it."""
    repetitions: int = Field(default=1, ge=1)
    """Orders in which a model that reads their order is shown the candidates."""
    search_share: float = Field(default=0.5, gt=0, lt=1)
    """Of the dev rows, to choose by; the others confirm."""
    finalists: int = Field(default=3, ge=1)
    """Templates that are looked at again."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of the confirming test."""
    open_test: str = ""
    """Why the test rows are opened at the end; empty leaves them sealed."""
    seed: int = Field(default=0, ge=0)
    """Of every draw."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known before anything is asked.

    search, fresh, test: numbers of rows; final: what confirmation and test take at the end; effects: the least difference in the metric
    that the fresh and the test rows can show (alpha .05, power .8), by `sd`, a guess from baselines; budget: how far it goes, in words.
    """

    search: int
    fresh: int
    test: int
    baselines: list[Measured]
    final: Estimate
    sd: float
    effects: tuple[float, float]
    budget: str


@dataclass(frozen=True, eq=False)
class Optimized:
    """A finished search. counts: of the ranking and of the proposing model in this process; seconds: of wall time in it."""

    run: str
    task: RankingTask
    settings: OptimizeSettings
    plan: Plan
    report: Report
    counts: tuple[Counts, ...]
    seconds: float


def run_search(store: Store, settings: OptimizeSettings, on_plan: Callable[[Plan], None], watch: Watch) -> Optimized:
    """Starts a new search. On any error or interrupt the run is marked, what was answered stays, and the error says how to resume."""
    work = _prepare(store, settings)
    config = settings.model_dump(mode="json") | {"task_hash": work.task.content_hash}
    run = store.start_run("optimize", work.task.name, config, settings.seed)
    with marked(store, run, RESUME):
        return _run(store, run, work, on_plan, watch)


def resume_search(store: Store, run: str, on_plan: Callable[[Plan], None], watch: Watch, llm: LLMSettings | None = None) -> Optimized:
    """Goes on with a search that stopped: it is replayed, and what was answered before is not asked again.

    llm: other bounds, or another endpoint of the same model. Raises DataError where the rows are not those the run began with.
    """
    run = store.resolve(run, "optimize")
    summary = store.run(run)
    if summary.status == "finished":
        raise DataError(f"run {run} is finished; there is nothing to resume")
    settings, began = stored_settings(summary.config)
    work = _prepare(store, settings.model_copy(update={"llm": llm}) if llm else settings)
    if work.task.content_hash != began:
        raise DataError(f"run {run} began on rows {began[:12]}, they are now {work.task.content_hash[:12]}; bring the old ones back")
    store.record_status(run, "resumed")
    with marked(store, run, RESUME):
        return _run(store, run, work, on_plan, watch)


def stored_settings(config: dict[str, Any]) -> tuple[OptimizeSettings, str]:
    """The settings of a stored run, and the hash of its rows."""
    return OptimizeSettings(**{name: value for name, value in config.items() if name != "task_hash"}), str(config["task_hash"])


def load_task(settings: TaskSettings, seed: int) -> RankingTask:
    """The rows of a task; raises what its reader raises."""
    from workbench.prompts import readers

    sizes = {name: size for name in ("train", "dev", "test") if (size := getattr(settings, name)) is not None}
    match settings.source:
        case "po4isr":
            return readers.po4isr_task(Path(settings.path), **sizes, seed=seed)
        case "recprompt":
            return readers.recprompt_task(Path(settings.path), **sizes, seed=seed)
        case "mind":
            return readers.mind_task(Path(settings.path), settings.candidates, **sizes, seed=seed)
        case "rerank":
            from recsys_core import create
            from workbench.data import load_split
            from workbench.prompts.reranking import rerank_task

            dataset, split = load_split(settings.data)
            first = create(settings.recommender.name, **settings.recommender.config).fit(split.train)
            return rerank_task(first, dataset, split, settings.candidates or 20, **sizes, seed=seed, reached_only=True)


@dataclass(frozen=True, eq=False)
class _Work:
    """What a search is made of; clients: the ranking one, and the proposing one where it is needed."""

    settings: OptimizeSettings
    task: RankingTask
    start: Template
    clients: tuple[ChatClient, ...]
    budget: Budget

    def ranker(self, template: Template) -> Ranker:
        return ranker_for(self.clients[0], template, repetitions=self.settings.repetitions, seed=self.settings.seed)


def _prepare(store: Store, settings: OptimizeSettings) -> _Work:
    """All that may fail before a run is stored."""
    llm, cache = settings.llm, store.response_cache()
    budget = Budget(tokens=llm.max_tokens, cost=llm.max_cost, calls=llm.max_calls, wall=llm.max_seconds)
    specs = (llm.spec, *((settings.proposer or llm.spec,) if needs_proposer(settings.optimizer) else ()))
    clients = tuple(
        connect(spec, cache=cache, concurrency=llm.concurrency, timeout=llm.timeout, retries=llm.retries, budget=budget) for spec in specs
    )
    work = _Work(settings, load_task(settings.task, settings.seed), from_toml(settings.template), clients, budget)
    work.ranker(work.start)  # a model that cannot do what the template needs is refused here
    return work


def _run(store: Store, run: str, work: _Work, on_plan: Callable[[Plan], None], watch: Watch) -> Optimized:
    settings, started = work.settings, time.monotonic()
    rules = Rules(settings.metric, settings.metrics, settings.search_share, settings.finalists, settings.alpha, settings.seed)
    proposer = ChatProposer(work.clients[1]) if len(work.clients) > 1 else None
    optimizer = create_optimizer(settings.optimizer, proposer, settings.seed, settings.settings)
    plan = _plan(work, rules)
    # Half of a bound on time is kept for the end: how long an answer takes is not known before.
    searching = hold_back(work.budget, plan.final, (work.budget.wall or 0.0) / 2)
    on_plan(plan)
    sink, keeper = store.sink(run), _Keeper(store, run)
    for client in work.clients:
        client.on_call, client.budget = lambda record: sink.calls([record]), searching

    def release() -> None:
        rest = what_is_left(work.budget, searching)
        for client in work.clients:
            client.budget = rest

    def seen(part: str, trial: Trial) -> None:
        keeper.keep(part, trial)
        watch(part, trial)

    test = (f"{settings.open_test} ({run})", store) if settings.open_test else None
    report = asyncio.run(optimize(work.task, work.start, optimizer, work.ranker, rules, test=test, watch=seen, after_search=release))
    _keep_results(store, run, settings, report)
    counts = tuple(client.counts for client in work.clients)
    return Optimized(run, work.task, settings, plan, report, counts, time.monotonic() - started)


def _plan(work: _Work, rules: Rules) -> Plan:
    task = work.task
    search, fresh = split_dev(task, rules)
    tested = len(task.test) if work.settings.open_test else 0
    baselines = measure_baselines(task.train, fresh, rules.reported)
    price, ranker, asking = work.clients[0].price, work.ranker(work.start), Asking()
    scored = work.clients[0].can_score
    of_fresh, of_both = (estimate(ranker, fresh, asking=asking, scored=scored, price=price, unseen=n) for n in (0, tested))
    # Start and each finalist on the fresh rows, start and favourite on the test rows.
    final = of_both * 2 + of_fresh * (rules.finalists - 1)
    sd = expected_sd(baselines, rules.metric)
    effects = (minimum_detectable_effect(len(fresh), sd), minimum_detectable_effect(max(tested, 2), sd))
    return Plan(len(search), len(fresh), tested, baselines, final, sd, effects, outlook(work.budget, final))


class _Keeper:
    """Writes trials and their templates into the store, those that a resumed search repeats only once."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        known = store.trials(run)
        self._seen = {(t.prompt_id, t.part, t.n, t.mean) for t in known}
        self._next = len(known)
        self._rows: dict[str, str] = {}

    def keep(self, part: str, trial: Trial) -> None:
        version = trial.template.version
        if version not in self._rows:
            self._rows[version] = keep(self._store, trial.template).id
        metric = next(iter(trial.measured.values))
        mean, (low, high) = trial.measured.mean(metric), trial.measured.interval(metric)
        if (key := (self._rows[version], part, len(trial.rows), mean)) in self._seen:
            return
        self._seen.add(key)
        self._store.add_trial(self._run, PromptTrial(self._next, *key[:2], metric, key[2], mean, low, high, time.time()))
        self._next += 1


def _keep_results(store: Store, run: str, settings: OptimizeSettings, report: Report) -> None:
    """Means, intervals and differences, once: a run that was stopped behind them has them already."""
    if store.evaluations(run):
        return
    rows, comparisons = [], []
    for name, part in (("fresh", report.fresh), ("test", report.test)):
        if part is None:
            continue
        arms = [("start", part.before), *([("favourite", part.after)] if part.after is not part.before else [])]
        for arm, measured in (*arms, *(("baseline", m) for m in part.baselines)):
            rows += _evaluations(settings.seed, name, arm, measured)
        comparisons += [
            Comparison(settings.optimizer, "start", "favourite", name, c.metric, c.difference, c.low, c.high, c.p_value)
            for c in part.differences.values()
        ]
    if not store.comparisons(run):
        store.add_comparisons(run, comparisons)
    store.add_evaluations(run, rows)


def _evaluations(seed: int, part: str, arm: str, measured: Measured) -> list[Evaluation]:
    found, users = measured.evaluation, hash_users(measured.evaluation.users)
    return [
        Evaluation(measured.name, arm, seed, part, metric, measured.mean(metric), *found.interval(metric, seed, 2000), values, users)
        for metric, values in ((metric, measured[metric].astype("float32")) for metric in measured.values)
    ]
