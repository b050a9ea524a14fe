"""The asyncio engine: cohorts of agents page through a recommender, and every page is stored before the next one is asked for.

A cohort is the unit of work: its agents are served and decide as one batch, and each of its steps is one transaction. Cohorts advance
independently, so a slow answer holds up its own cohort only, and a slow recommender those that wait for its lists. Nothing an agent does
depends on another agent or on timing, so a run that stops anywhere resumes from the stored pages to the same log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from agents.memory import Memory
from agents.persona import LogProfile, build_personas
from agents.seeding import stream
from agents.session import SessionModel
from agents.types import Decision, PageContext, Persona, Policy
from recsys_core.data.jagged import Ints
from recsys_core.recommender import Recommender
from simulators.environment import Page, RecommenderEnvironment
from simulators.events import Action, EventSink, PageRecord


class SimulationConfig(BaseModel):
    """How agents and pages are arranged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pages: int = Field(default=3, ge=1)
    """Most pages a session may have."""
    page_size: int = Field(default=10, ge=1)
    """Items on a page."""
    cohort: int = Field(default=16, ge=1)
    """Agents that are served together; 1 gives every agent its own pace, larger ones batch the recommender."""
    seed: int = 0
    """Drives every draw of every agent."""


@dataclass
class SimulationResult:
    """Totals over the whole run, stored pages of an earlier attempt included. exits: reason of each ended session."""

    agents: int = 0
    pages: int = 0
    exposures: int = 0
    actions: int = 0
    fallbacks: int = 0
    resumed_pages: int = 0
    exits: Counter[str] = field(default_factory=Counter)

    def add(self, record: PageRecord) -> None:
        """Counts one page."""
        self.pages += 1
        self.exposures += len(record.exposures)
        self.actions += len(record.actions)
        self.fallbacks += bool(record.fallback)
        if record.exit:
            self.exits[record.exit] += 1


@dataclass(frozen=True, eq=False)
class Simulation:
    """One recommender, one policy, a set of users. `profile` is of the training log: personas and pages see nothing else."""

    profile: LogProfile
    recommender: Recommender
    policy: Policy
    session: SessionModel
    config: SimulationConfig
    on_page: Callable[[PageRecord], None] = lambda record: None

    async def run(self, users: Ints, sink: EventSink) -> SimulationResult:
        """Runs the sessions of `users` (dense ids) to their ends; on an error the pages stored so far stay and a second call goes on.

        The first error of any cohort stops the others at their next await and is raised.
        """
        personas = build_personas(self.profile, users)
        sink.agents(personas, self.policy.name)
        result = SimulationResult(agents=len(personas))
        size, turn = self.config.cohort, asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(personas), size):
                    group.create_task(self._cohort(personas[start : start + size], turn, sink, result))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return result

    async def _cohort(self, personas: list[Persona], turn: asyncio.Lock, sink: EventSink, result: SimulationResult) -> None:
        environment = RecommenderEnvironment(self.profile, self.recommender, self.config.page_size, turn)
        stored = {p.user: sink.finished_pages(p.user) for p in personas}
        for record in (r for pages in stored.values() for r in pages):
            result.add(record)
            result.resumed_pages += 1
            self.on_page(record)
        going = {p.user: p for p in personas if not (stored[p.user] and stored[p.user][-1].exit)}
        memory = {user: self._remember(stored[user]) for user in going}
        pages = await environment.reset(list(going), stored)
        while pages:
            contexts = [self._context(going[p.user], p, memory[p.user], environment) for p in pages if p.items]
            answers = dict(zip((c.persona.user for c in contexts), await self.policy.decide(contexts), strict=True))
            records = [self._record(p, answers.get(p.user), memory[p.user]) for p in pages]
            sink.pages(records)
            for page, record in zip(pages, records, strict=True):
                memory[page.user] = memory[page.user].after(self._facts(record), record.feeling)
                result.add(record)
                self.on_page(record)
            on = [(p, r) for p, r in zip(pages, records, strict=True) if not r.exit]
            pages = await environment.step([p for p, _ in on], [[a.item for a in r.actions] for _, r in on])

    def _context(self, persona: Persona, page: Page, memory: Memory, environment: RecommenderEnvironment) -> PageContext:
        return PageContext(persona, page.number, page.items, memory.text(), environment.history(persona.user), self.config.seed)

    def _record(self, page: Page, decision: Decision | None, memory: Memory) -> PageRecord:
        """The page as it is stored; `decision` is None for a page without items."""
        decision = decision or Decision((), leave=False, feeling="indifferent")
        actions = tuple(Action(w.number - 1, page.items[w.number - 1].item, w.rating, w.feeling) for w in decision.watched)
        return PageRecord(
            user=page.user,
            page=page.number,
            arm=self.recommender.name,
            policy=self.policy.name,
            exposures=page.exposures,
            actions=actions,
            feeling=decision.feeling,
            exit=self._exit(page, decision, memory),
            fallback=decision.fallback,
            calls=decision.calls,
        )

    def _exit(self, page: Page, decision: Decision, memory: Memory) -> str:
        """Why the session ends with this page, or an empty string."""
        if not page.items:
            return "catalogue"
        if decision.leave:
            return "policy"
        mood = memory.after((), decision.feeling).mood
        probability = self.session.exit_probability(len(memory.taken), len(decision.watched), mood, self.session.habit(page.user))
        if stream(self.config.seed, "exit", page.user, page.number).random() < probability:
            return "hazard"
        return "pages" if page.number + 1 >= self.config.pages else ""

    def _remember(self, records: list[PageRecord]) -> Memory:
        memory = Memory()
        for record in records:
            memory = memory.after(self._facts(record), record.feeling)
        return memory

    def _facts(self, record: PageRecord) -> tuple[tuple[int, str, float], ...]:
        return tuple((a.item, self.profile.log.title(a.item), a.rating) for a in record.actions)
