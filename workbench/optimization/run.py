"""One stored prompt search: settings in, a run id and its report out, resumable from wherever it stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from agents.chat import Counts
from recsys_core.errors import DataError
from workbench.config import LLMSettings
from workbench.llm import used_by
from workbench.optimization.keeping import TrialKeeper, keep_results
from workbench.optimization.plan import Plan, Work, make_plan, prepare
from workbench.optimization.settings import OptimizeSettings, stored_settings
from workbench.prompts.optimize import Report, Watch, optimize
from workbench.prompts.optimizers.registry import create_optimizer
from workbench.prompts.planning import what_is_left
from workbench.prompts.proposing import ChatProposer
from workbench.prompts.tasks import RankingTask
from workbench.prompts.trials import Trial
from workbench.running import marked
from workbench.store import Store

RESUME = "workbench optimize --resume"


@dataclass(frozen=True, eq=False)
class Optimized:
    """A finished search.

    counts: of the ranking and of the proposing model in this process; openings: how often these test rows were opened, by this search and
    before it; seconds: of wall time in this process.
    """

    run: str
    task: RankingTask
    settings: OptimizeSettings
    plan: Plan
    report: Report
    counts: tuple[Counts, ...]
    openings: int
    seconds: float


def run_search(store: Store, settings: OptimizeSettings, on_plan: Callable[[Plan], None], watch: Watch) -> Optimized:
    """Starts a new search. On any error or interrupt the run is marked, what was answered stays, and the error says how to resume."""
    work = prepare(store, settings)
    config = settings.model_dump(mode="json") | {"task_hash": work.task.content_hash}
    run = store.start_run("optimize", work.task.name, config, settings.seed)
    with marked(store, run, RESUME):
        return _run(store, run, work, on_plan, watch)


def resume_search(store: Store, run: str, on_plan: Callable[[Plan], None], watch: Watch, llm: LLMSettings | None = None) -> Optimized:
    """Goes on with a search that stopped: it is replayed, and what was answered before is not asked again.

    llm: other bounds, or another endpoint of the same model. Raises DataError where the rows are not those the run began with, and
    HeldError where another process works on the run.
    """
    run = store.resolve(run, "optimize")
    with store.working_on(run):
        summary = store.run(run)
        if summary.status == "finished":
            raise DataError(f"run {run} is finished; there is nothing to resume")
        settings, began = stored_settings(summary.config)
        work = prepare(store, settings.model_copy(update={"llm": llm}) if llm else settings)
        if work.task.content_hash != began:
            raise DataError(f"run {run} began on rows {began[:12]}, they are now {work.task.content_hash[:12]}; bring the old ones back")
        store.record_status(run, "resumed")
        with marked(store, run, RESUME):
            return _run(store, run, work, on_plan, watch)


def _run(store: Store, run: str, work: Work, on_plan: Callable[[Plan], None], watch: Watch) -> Optimized:
    settings, started = work.settings, time.monotonic()
    work.budget.used = used_by(store, run)
    proposer = ChatProposer(work.clients[1]) if len(work.clients) > 1 else None
    optimizer = create_optimizer(settings.optimizer, proposer, settings.seed, settings.settings)
    plan = make_plan(work)
    on_plan(plan)
    sink, keeper = store.sink(run), TrialKeeper(store, run)
    for client in work.clients:
        client.on_call, client.budget = lambda record: sink.calls([record]), plan.searching

    def release() -> None:
        rest = what_is_left(work.budget, plan.searching)
        for client in work.clients:
            client.budget = rest

    def seen(part: str, trial: Trial) -> None:
        keeper.keep(part, trial)
        watch(part, trial)

    test = (f"{settings.open_test} ({run})", store) if settings.open_test else None
    search = optimize(work.task, work.start, optimizer, work.ranker, settings.rules, test=test, watch=seen, after_search=release)
    report = asyncio.run(search)
    keep_results(store, run, settings.optimizer, settings.seed, report)
    counts = tuple(client.counts for client in work.clients)
    openings = len(store.openings(work.task.test.content_hash))
    return Optimized(run, work.task, settings, plan, report, counts, openings, time.monotonic() - started)
