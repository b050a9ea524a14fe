"""The engine: pages never repeat, order and interruption leave no trace, and errors keep what is stored."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agents.persona import LogProfile
from agents.session import SessionModel, fit_session
from agents.statistical import StatisticalPolicy
from agents.types import Decision, PageContext, Policy, Watch
from recsys_core import create
from recsys_core.data import Jagged, Split
from recsys_core.errors import DataError, UnavailableError
from recsys_core.models.ease import EASE
from recsys_core.recommender import Histories, Recommendations, Recommender
from simulators.engine import Simulation, SimulationConfig, SimulationResult
from simulators.environment import RecommenderEnvironment
from simulators.events import PageRecord
from workbench.store import Store


class TakeFirst:
    """Takes the first item of every page; leaves, or breaks, where told."""

    name = "take-first"

    def __init__(self, leave_at: int = 99, break_after: int = 10**9) -> None:
        self.leave_at, self.break_after, self.asked = leave_at, break_after, 0

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        self.asked += len(contexts)
        if self.asked > self.break_after:
            raise UnavailableError("the model went away")
        return [Decision((Watch(1, 4.0, "satisfied"),), c.page >= self.leave_at, "satisfied") for c in contexts]


def simulation(
    split: Split, policy: Policy, session: SessionModel | None = None, recommender: Recommender | None = None, **config: int
) -> Simulation:
    never = SessionModel(intercept=-50)
    model = (recommender or create("ease")).fit(split.train)
    return Simulation(LogProfile(split.train), model, policy, session or never, SimulationConfig(**config))


def run(sim: Simulation, split: Split, store: Store, run_id: str) -> SimulationResult:
    return asyncio.run(sim.run(split.test.users[:20], store.sink(run_id)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.sqlite")


def begin(store: Store, split: Split) -> str:
    return store.start_run("simulate", "test", {}, 0, split.train, split)


def by_user(pages: list[PageRecord]) -> dict[int, list[PageRecord]]:
    found: dict[int, list[PageRecord]] = {}
    for page in pages:
        found.setdefault(page.user, []).append(page)
    return found


def test_no_item_is_shown_twice_and_none_of_the_history(split: Split, store: Store) -> None:
    run_id = begin(store, split)
    result = run(simulation(split, StatisticalPolicy.fit(split.train), pages=4), split, store, run_id)
    sequences = split.train.sequences()
    pages = by_user(store.pages(run_id))
    assert len(pages) == result.agents == 20
    for user, records in pages.items():
        shown = [e.item for r in records for e in r.exposures]
        assert len(shown) == len(set(shown))
        assert not set(shown) & set(sequences[user].tolist())
        assert [r.page for r in records] == list(range(len(records)))
        assert [bool(r.exit) for r in records] == [False] * (len(records) - 1) + [True]
        assert all(e.position == n and e.propensity == 1 for r in records for n, e in enumerate(r.exposures))


def test_lists_are_refreshed_by_what_was_taken(split: Split) -> None:
    profile, ease = LogProfile(split.train), create("ease").fit(split.train)
    user = int(split.test.users[0])

    async def second_page(take: int) -> list[int]:
        environment = RecommenderEnvironment(profile, ease, 10, asyncio.Lock())
        first = await environment.reset([user], {})
        (second,) = await environment.step(first, [[first[0].items[take].item]])
        return [i.item for i in second.items]

    pages = [asyncio.run(second_page(n)) for n in range(10)]
    assert len({tuple(p) for p in pages}) > 1


def test_an_agent_that_leaves_is_gone(split: Split, store: Store) -> None:
    run_id = begin(store, split)
    result = run(simulation(split, TakeFirst(leave_at=1), pages=5), split, store, run_id)
    assert result.exits == {"policy": 20}
    assert result.pages == 40


def test_the_catalogue_runs_out_without_an_error(split: Split, store: Store) -> None:
    run_id = begin(store, split)
    result = run(simulation(split, TakeFirst(), pages=50), split, store, run_id)
    assert result.exits == {"catalogue": 20}
    last = by_user(store.pages(run_id))[int(split.test.users[0])]
    assert sum(len(p.exposures) for p in last) == 80 - 14
    assert last[-1].exposures == ()


@pytest.mark.parametrize("cohort", [1, 7, 20])
def test_the_log_does_not_depend_on_cohorts(split: Split, store: Store, cohort: int) -> None:
    session = fit_session(split.train)
    one, other = begin(store, split), begin(store, split)
    policy = StatisticalPolicy.fit(split.train)
    run(simulation(split, policy, session, cohort=16), split, store, one)
    run(simulation(split, policy, session, cohort=cohort), split, store, other)
    decisions = [[(p.user, p.page, p.exit, p.feeling, p.actions) for p in store.pages(r)] for r in (one, other)]
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("break_after", [1, 16, 30, 55])
def test_a_broken_run_resumes_to_the_log_of_a_whole_one(split: Split, store: Store, break_after: int) -> None:
    whole, broken = begin(store, split), begin(store, split)
    run(simulation(split, TakeFirst(), pages=4, cohort=6), split, store, whole)
    with pytest.raises(UnavailableError, match="went away"):
        run(simulation(split, TakeFirst(break_after=break_after), pages=4, cohort=6), split, store, broken)
    stored = len(store.pages(broken))
    assert stored <= break_after
    policy = TakeFirst()
    result = run(simulation(split, policy, pages=4, cohort=6), split, store, broken)
    assert result.resumed_pages == stored
    assert policy.asked == 80 - stored
    assert store.log_hash(broken) == store.log_hash(whole)


def test_another_seed_gives_another_log(split: Split, store: Store) -> None:
    policy = StatisticalPolicy.fit(split.train)
    hashes = []
    for seed in (0, 0, 1):
        run_id = begin(store, split)
        run(simulation(split, policy, fit_session(split.train), seed=seed), split, store, run_id)
        hashes.append(store.log_hash(run_id))
    assert hashes[0] == hashes[1] != hashes[2]


def test_page_size_must_be_positive(split: Split) -> None:
    with pytest.raises(DataError, match="page_size is 0"):
        RecommenderEnvironment(LogProfile(split.train), create("popularity").fit(split.train), 0, asyncio.Lock())


def test_boredom_ends_sessions_that_find_nothing(split: Split, store: Store) -> None:
    class TakeNothing(TakeFirst):
        async def decide(self, contexts: list[PageContext]) -> list[Decision]:
            return [Decision((), leave=False, feeling="indifferent") for _ in contexts]

    run_id = begin(store, split)
    result = run(simulation(split, TakeNothing(), SessionModel(boredom=0.5), pages=5), split, store, run_id)
    pages = np.array([len(p) for p in by_user(store.pages(run_id)).values()])
    assert result.actions == 0
    assert 1.3 < pages.mean() < 2.8


# Recommenders that take their time


class Slow(EASE):
    """EASE that does something first, which is told how many lists were asked for before."""

    def __init__(self, first: Callable[[int], object]) -> None:
        super().__init__()
        self.first, self.asked = first, 0

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        self.asked += 1
        self.first(self.asked - 1)
        return super().recommend(histories, k, exclude)


def test_agents_are_answered_while_a_recommender_ranks(split: Split, store: Store) -> None:
    ranking, answered = threading.Event(), threading.Event()

    def wait(before: int) -> None:
        if before == 1:
            ranking.set()
            assert answered.wait(20), "the first cohort heard nothing while the second's list was made"

    class Heard(TakeFirst):
        async def decide(self, contexts: list[PageContext]) -> list[Decision]:
            while not ranking.is_set():
                await asyncio.sleep(0.001)
            answered.set()
            return await super().decide(contexts)

    slow, plain = begin(store, split), begin(store, split)
    run(simulation(split, Heard(), recommender=Slow(wait), cohort=10), split, store, slow)
    run(simulation(split, TakeFirst(), cohort=10), split, store, plain)
    assert store.log_hash(slow) == store.log_hash(plain)


def test_a_recommender_makes_one_batch_at_a_time(split: Split, store: Store) -> None:
    free = threading.Lock()

    def alone(_: int) -> None:
        assert free.acquire(blocking=False), "asked while it ranked"
        time.sleep(0.002)
        free.release()

    run_id = begin(store, split)
    assert run(simulation(split, TakeFirst(), recommender=Slow(alone), cohort=1), split, store, run_id).pages == 60


def test_ctrl_c_while_a_recommender_ranks_keeps_what_is_stored(split: Split, store: Store, interrupt: Callable[[], None]) -> None:
    ended = []

    def interrupted(before: int) -> None:
        if before == 5:
            interrupt()
            time.sleep(0.2)
            ended.append(before)

    whole, broken = begin(store, split), begin(store, split)
    run(simulation(split, TakeFirst(), cohort=5), split, store, whole)
    slow = Slow(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(simulation(split, TakeFirst(), recommender=slow, cohort=5), split, store, broken)
    assert (ended, slow.asked) == ([5], 6)
    stored = len(store.pages(broken))
    assert 0 < stored < 60
    assert run(simulation(split, TakeFirst(), cohort=5), split, store, broken).resumed_pages == stored
    assert store.log_hash(broken) == store.log_hash(whole)


def test_a_recommender_that_fails_ends_the_run_with_its_error(split: Split, store: Store) -> None:
    def fail(before: int) -> None:
        if before == 5:
            raise UnavailableError("the ranking service went away")

    run_id = begin(store, split)
    with pytest.raises(UnavailableError, match="service went away"):
        run(simulation(split, TakeFirst(), recommender=Slow(fail), cohort=5), split, store, run_id)
    assert 0 < len(store.pages(run_id)) < 60
