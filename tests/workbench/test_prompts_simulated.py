"""Simulated pages as rows: what the recommender was given is what a row says, and no report rests on them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from agents.persona import LogProfile
from agents.session import SessionModel
from agents.statistical import StatisticalPolicy
from agents.types import Decision, PageContext
from recsys_core import create
from recsys_core.data import Jagged, Split, leave_one_out
from recsys_core.errors import DataError
from recsys_core.models.ease import EASE
from recsys_core.recommender import Histories, Recommendations
from simulators.engine import Simulation, SimulationConfig
from tests.conftest import film_log
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.sealed import MemoryJournal
from workbench.prompts.simulated import simulated_rows, simulated_task
from workbench.prompts.tasks import SIMULATED, RankingTask, Row
from workbench.store import Evaluation, PageRecord, Store


class Watched(EASE):
    """Writes down what it was asked, page by page, and what it answered."""

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        found = super().recommend(histories, k, exclude)
        for place, user in enumerate(histories.users.tolist()):
            seen[user].append((histories.items[place].tolist(), found.items[place].tolist(), found.scores[place].tolist()))
        return found


seen: dict[int, list[tuple[list[int], list[int], list[float]]]] = defaultdict(list)


class Doubtful:
    """A policy whose every third page of odd users was decided by a fallback."""

    def __init__(self, policy: StatisticalPolicy) -> None:
        self.policy, self.name = policy, policy.name

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        decided = await self.policy.decide(contexts)
        return [
            replace(d, fallback="statistical: no answer") if c.persona.user % 2 and c.page % 3 == 0 else d
            for c, d in zip(contexts, decided, strict=True)
        ]


@dataclass
class Ran:
    store: Store
    run: str
    pages: list[PageRecord]


@pytest.fixture(scope="module")
def ran(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Thirty agents on up to four pages."""
    with Store.open(tmp_path_factory.mktemp("store") / "store.sqlite") as store:
        run = store.start_run("simulate", "test", {}, 0, split.train, split)
        policy = Doubtful(StatisticalPolicy.fit(split.train))
        config = SimulationConfig(pages=4, page_size=6)
        simulation = Simulation(
            LogProfile(split.train), Watched().fit(split.train), policy, SessionModel(intercept=-2.0, slope=-0.5), config
        )
        asyncio.run(simulation.run(split.test.users[:30], store.sink(run)))
        yield Ran(store, run, store.pages(run))


@pytest.fixture(scope="module")
def rows(ran: Ran, split: Split) -> list[Row]:
    return simulated_rows(ran.store, ran.run, split)


def test_a_row_says_what_the_recommender_was_given_and_what_was_taken(rows: list[Row], ran: Ran, split: Split) -> None:
    by_id = {row.id: row for row in rows}
    items, users = split.train.items.ids, split.train.users.ids
    used = 0
    for page in ran.pages:
        row = by_id.get(f"{SIMULATED}{ran.run}/{users[page.user]}/{page.page}")
        assert (row is not None) == (not page.fallback and 0 < len(page.actions) < len(page.exposures))
        if row is None:
            continue
        history, shown, scores = seen[page.user][page.page]
        assert [item.id for item in row.history] == [items[i] for i in history]
        assert [item.id for item in row.candidates] == [items[i] for i in shown]
        assert list((row.prior or {}).values()) == pytest.approx(scores)
        assert row.positives == {items[action.item] for action in page.actions}
        assert row.user == users[page.user]
        assert row.candidates[0].title.startswith("Film ")
        assert row.candidates[0].fields["tags"]
        used += 1
    assert used == len(rows) > 20
    # What a fallback took is no verdict, yet it is history on the next page.
    doubtful = next(p for p in ran.pages if p.fallback and p.actions and len(seen[p.user]) > p.page + 1)
    assert seen[doubtful.user][doubtful.page + 1][0][-1] in {action.item for action in doubtful.actions}


def test_baselines_measure_them_and_the_shown_order_is_the_prior(rows: list[Row]) -> None:
    measured = {m.name: m for m in measure_baselines(rows[:10], rows, ("MRR", "AUC"))}
    assert {"random", "popularity", "prior", "category match"} <= set(measured)
    place = [next(n for n, item in enumerate(row.candidates, 1) if item.id in row.positives) for row in rows]
    assert measured["prior"].mean("MRR") == pytest.approx(np.mean([1 / p for p in place]))


def test_a_task_is_tested_on_real_people_nobody_simulated(ran: Ran, split: Split) -> None:
    ease = create("ease").fit(split.train)
    task = simulated_task(ran.store, ran.run, ease, split, train=5, dev=20, test=25, seed=1)
    assert (len(task.train), len(task.dev)) == (5, 20)
    assert all(row.id.startswith(SIMULATED) for row in (*task.train, *task.dev))
    assert not {row.user for row in task.train} & {row.user for row in task.dev}
    test = task.test.open("to see what is in it", MemoryJournal())
    agents = {agent.external for agent in ran.store.agents(ran.run)}
    assert len(agents) == 30
    for row in test:
        assert not row.id.startswith(SIMULATED)
        assert row.user not in agents
        assert len(row.candidates) == 6
        target = split.test.targets[split.test.users.tolist().index(split.train.users.encode([row.user])[0])]
        assert row.positives <= {split.train.items.ids[int(i)] for i in target}
    assert "real users whom nobody simulated" in task.source
    assert "fidelity AUC: not measured" in task.source
    judged = Evaluation("statistical", "uniform negatives", 0, "fidelity", "AUC", 0.61, 0.5, 0.7, np.zeros(3, np.float32), "")
    ran.store.add_evaluations(ran.run, [judged])
    again = simulated_task(ran.store, ran.run[:-2], ease, split, train=5, dev=20, test=25, seed=1)
    assert again.content_hash == task.content_hash
    assert "fidelity AUC: statistical 0.610 (uniform negatives)" in again.source
    with pytest.raises(DataError, match="31 test rows are asked for, 30 held-out users were not simulated"):
        simulated_task(ran.store, ran.run, ease, split, train=5, dev=20, test=31)
    with pytest.raises(DataError, match="ask for fewer"):
        simulated_task(ran.store, ran.run, ease, split, train=5000)


def test_they_are_refused_as_test_rows(rows: list[Row]) -> None:
    with pytest.raises(DataError, match="would be tested on row 'simulated/"):
        RankingTask("cheat", "made up", [], rows[:1], rows[1:2])


def test_another_split_is_refused(ran: Ran) -> None:
    with pytest.raises(DataError, match="was simulated on split"):
        simulated_rows(ran.store, ran.run, leave_one_out(film_log(seed=1)))
