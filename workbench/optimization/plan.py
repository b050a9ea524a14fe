"""What a prompt search is made of, and what is known of it before anything is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.chat import Budget, ChatClient
from workbench.llm import budget_of, chat_client
from workbench.optimization.settings import OptimizeSettings, load_task
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.metrics import Measured
from workbench.prompts.optimize import split_dev
from workbench.prompts.optimizers.registry import needs_proposer
from workbench.prompts.planning import Estimate, estimate, expected_sd, hold_back, minimum_detectable_effect, outlook
from workbench.prompts.ranked import Ranker
from workbench.prompts.rankers import ranker_for
from workbench.prompts.tasks import RankingTask
from workbench.prompts.templates import Template
from workbench.prompts.versions import from_toml
from workbench.store import Store


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known before anything is asked.

    search, fresh, test: numbers of rows, test 0 where they stay sealed; final: what confirmation and test take at the end; fresh_effect,
    test_effect: the least difference of the metric that these rows show with 80% chance, by `sd`, a guess from baselines;
    searching: the budget of the search, which leaves enough for the end; outlook: how far it goes, in words.
    """

    search: int
    fresh: int
    test: int
    baselines: list[Measured]
    final: Estimate
    sd: float
    fresh_effect: float
    test_effect: float
    searching: Budget
    outlook: str


@dataclass(frozen=True, eq=False)
class Work:
    """What a search is made of; clients: the ranking one, and the proposing one where it is needed, inside one budget."""

    settings: OptimizeSettings
    task: RankingTask
    start: Template
    clients: tuple[ChatClient, ...]
    budget: Budget

    def ranker(self, template: Template) -> Ranker:
        """The ranker of a template."""
        return ranker_for(self.clients[0], template, repetitions=self.settings.repetitions, seed=self.settings.seed)


def prepare(store: Store, settings: OptimizeSettings) -> Work:
    """Rows, template and models; raises what may be wrong with them, before a run is stored."""
    budget, needed = budget_of(settings.llm), needs_proposer(settings.optimizer)
    specs = (settings.llm.spec, *((settings.proposer or settings.llm.spec,) if needed else ()))
    clients = tuple(chat_client(store, settings.llm, budget, spec) for spec in specs)
    work = Work(settings, load_task(store, settings.task, settings.seed), from_toml(settings.template), clients, budget)
    work.ranker(work.start)  # a model that cannot do what the template needs is refused here
    return work


def make_plan(work: Work) -> Plan:
    """What is known of the work. Raises DataError for a budget that does not cover the final scoring."""
    settings, task = work.settings, work.task
    rules = settings.rules
    search, fresh = split_dev(task, rules)
    tested = len(task.test) if settings.open_test else 0
    client, ranker = work.clients[0], work.ranker(work.start)
    of_fresh, of_both = (estimate(ranker, fresh, scored=client.can_score, price=client.price, unseen=n) for n in (0, tested))
    # Start and each finalist on the fresh rows, start and favourite on the test rows.
    final = of_both * 2 + of_fresh * (rules.finalists - 1)
    # Half of a bound on time is kept for the end: how long an answer takes is not known before.
    searching = hold_back(work.budget, final, (work.budget.wall or 0.0) / 2)
    baselines = measure_baselines(task.train, fresh, rules.reported)
    sd = expected_sd(baselines, rules.metric)
    # Several finalists share the level of the confirming test; the test rows see one.
    effects = [
        minimum_detectable_effect(n, sd, alpha) if n > 1 else math.inf
        for n, alpha in ((len(fresh), rules.alpha / rules.finalists), (tested, rules.alpha))
    ]
    return Plan(len(search), len(fresh), tested, baselines, final, sd, effects[0], effects[1], searching, outlook(work.budget, final))
