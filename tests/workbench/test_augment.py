"""Arms of the closed loop: equal in number, different in source, and the test split untouched."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from agents.persona import LogProfile
from agents.session import fit_session
from agents.statistical import StatisticalPolicy
from recsys_core import create
from recsys_core.data import Split
from recsys_core.errors import DataError
from simulators.engine import Simulation, SimulationConfig
from simulators.events import PageRecord
from workbench.augment import ARMS, build_arms, from_pages, popularity_control, shown_control
from workbench.config import ModelSettings
from workbench.loop import compare_arms, train_and_evaluate
from workbench.store import Store


@pytest.fixture(scope="module")
def pages(split: Split, tmp_path_factory: pytest.TempPathFactory) -> list[PageRecord]:
    """Pages of forty statistical agents."""
    with Store.open(tmp_path_factory.mktemp("store") / "store.sqlite") as store:
        run = store.start_run("simulate", "test", {}, 0, split.train, split)
        policy, session = StatisticalPolicy.fit(split.train), fit_session(split.train)
        simulation = Simulation(LogProfile(split.train), create("ease").fit(split.train), policy, session, SimulationConfig())
        asyncio.run(simulation.run(split.test.users[:40], store.sink(run)))
        return store.pages(run)


def test_every_arm_adds_as_many_a_user(split: Split, pages: list[PageRecord]) -> None:
    arms = build_arms(split.train, pages, seed=0)
    assert tuple(arms) == ARMS
    added = [np.bincount(arms[a].user, minlength=60) - np.bincount(split.train.user, minlength=60) for a in ARMS[1:]]
    assert added[0].sum() > 50
    assert (added[0] == added[1]).all()
    assert (added[0] == added[2]).all()
    for arm in ARMS[1:]:
        pairs = arms[arm].user * 80 + arms[arm].item
        assert len(np.unique(pairs)) == len(pairs), f"{arm} repeats an item a user already has"
        assert sorted(arms[arm].rating[len(split.train) :]) == sorted(arms["synthesized"].rating[len(split.train) :])


def test_additions_come_last_and_leave_the_real_log_alone(split: Split, pages: list[PageRecord]) -> None:
    arms = build_arms(split.train, pages, seed=0)
    real, longer = split.train.sequences(), arms["synthesized"].sequences()
    for user in range(60):
        assert (longer[user][: len(real[user])] == real[user]).all()
    taken = from_pages(pages)
    first = int(taken.user[0])
    assert longer[first][len(real[first]) :].tolist() == taken.item[taken.user == first].tolist()


def test_shown_control_draws_from_what_was_shown(split: Split, pages: list[PageRecord]) -> None:
    shown = {(p.user, e.item) for p in pages for e in p.exposures}
    control = shown_control(pages, from_pages(pages), seed=3)
    assert set(zip(control.user.tolist(), control.item.tolist(), strict=True)) <= shown


def test_popularity_control_follows_popularity(split: Split, pages: list[PageRecord]) -> None:
    counts = split.train.item_counts
    drawn = np.concatenate([popularity_control(split.train, from_pages(pages), seed).item for seed in range(20)])
    assert counts[drawn].mean() > counts.mean() * 1.1
    assert (counts[drawn] > 0).all()


def test_fallback_pages_are_not_the_agents_own(split: Split, pages: list[PageRecord]) -> None:
    marked = [replace(p, fallback="statistical: no answer") if p.user % 2 else p for p in pages]
    assert set(from_pages(marked).user % 2) == {0}
    with pytest.raises(DataError, match="no interactions to train on"):
        build_arms(split.train, [replace(p, fallback="x") for p in pages], 0)


def test_loop_compares_by_user_on_one_untouched_split(split: Split, pages: list[PageRecord]) -> None:
    before = split.content_hash
    arms = build_arms(split.train, pages, seed=0)
    models = (ModelSettings(name="ease"), ModelSettings(name="random"))
    trained = train_and_evaluate(arms, split.test, models, 2, ("NDCG@10", "MRR"), lambda share, text: None)
    assert [(t.model, t.arm, len(t.runs)) for t in trained] == [("ease", a, 1) for a in ARMS] + [("random", a, 2) for a in ARMS]
    rows = compare_arms(trained, ("NDCG@10", "MRR"))
    assert len(rows) == 2 * 3 * 2
    for _, _, c in rows:
        assert c.low <= c.difference <= c.high
        assert c.difference == pytest.approx(c.mean_a - c.mean_b)
    # A recommender that ignores its training data cannot gain from more of it: the comparison must say exactly nothing changed.
    assert all(c.difference == c.low == c.high == 0 for model, _, c in rows if model == "random")
    fresh = replace(split)
    assert fresh.content_hash == before


def test_oracle_interactions_help_and_the_loop_sees_it(split: Split) -> None:
    """Adding each user's own test item is cheating, and it must show: the loop can detect an effect that exists."""
    test = split.test
    stamp = np.full(len(test), 10**9)
    rating = np.full(len(test), 5, np.float32)
    cheated = split.train.append(test.users, test.targets.values, stamp, rating, "cheated")
    trained = train_and_evaluate(
        {"none": split.train, "cheated": cheated}, test, (ModelSettings(name="ease", config={"l2": 1.0}),), 1, ("MRR",), lambda s, t: None
    )
    ((_, _, comparison),) = compare_arms(trained, ("MRR",))
    assert comparison.low > 0
