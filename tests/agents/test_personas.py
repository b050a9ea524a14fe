"""Personas, memory and the models fitted to a training log."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.memory import Memory
from agents.persona import LogProfile, build_personas
from agents.ratings import fit_ratings
from agents.seeding import stream
from agents.session import SessionModel, fit_session, records_before, session_lengths
from agents.statistical import StatisticalPolicy
from agents.taste import fit_taste
from agents.types import FEELINGS, PageContext
from recsys_core.data import Dataset, Split, Vocabulary
from recsys_core.errors import DataError


def test_personas_find_the_planted_taste(split: Split) -> None:
    personas = build_personas(LogProfile(split.train), np.arange(60))
    genres = ("Comedy", "Drama", "Horror", "Western")
    assert sum(p.liked_tags[:1] == (genres[p.user % 4],) for p in personas) >= 55
    assert not any(genres[p.user % 4] in p.disliked_tags for p in personas)
    assert all(1 <= tier <= 3 for p in personas for tier in (p.activity, p.conformity, p.diversity))
    assert [sum(p.conformity == tier for p in personas) for tier in (1, 2, 3)] == [20, 20, 20]


def test_a_persona_sees_the_training_log_only(films: Dataset, split: Split) -> None:
    changed = films.rows(np.arange(len(films)))
    held = np.concatenate([split.valid.targets.values, split.test.targets.values])
    personas = build_personas(LogProfile(split.train), np.arange(60))
    for user in range(60):
        later = {films.title(int(i)) for i in (split.valid.targets[user][0], split.test.targets[user][0])}
        assert not later & set(personas[user].liked_titles)
    assert len(held) == 120
    assert changed.content_hash == films.content_hash


def test_a_log_without_ratings_tags_or_titles_still_gives_personas() -> None:
    bare = Dataset(
        "bare", Vocabulary(["a", "b"]), Vocabulary(["x", "y"]), np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1, 2, 3]), None
    )
    personas = build_personas(LogProfile(bare), np.arange(2))
    assert personas[0].liked_titles == ("y", "x")
    assert personas[0].liked_tags == ()
    assert personas[1].mean_rating == 1


def test_taste_prefers_what_the_user_will_take(split: Split) -> None:
    taste = fit_taste(split.train, seed=0)
    users = split.test.users
    sequences, rng = split.train.sequences(), np.random.default_rng(0)
    unseen = [np.setdiff1d(np.arange(80), [*sequences[int(u)], t]) for u, t in zip(users, split.test.targets.values, strict=True)]
    others = np.array([rng.choice(items, 20) for items in unseen])
    theirs = taste.logits(users, split.test.targets.values)[:, None]
    assert (theirs > taste.logits(np.repeat(users, 20), others.ravel()).reshape(60, 20)).mean() > 0.7


def test_take_rate_must_be_a_probability(split: Split) -> None:
    with pytest.raises(DataError, match=r"take_rate is 1\.5"):
        fit_taste(split.train, take_rate=1.5)


def test_ratings_have_the_logs_own_histogram(films: Dataset) -> None:
    model = fit_ratings(LogProfile(films))
    drawn = model.draw(films.user, films.item, np.random.default_rng(1).standard_normal(len(films)))
    assert set(drawn) <= set(np.unique(films.rating))
    for level in (1, 2, 3, 4, 5):
        assert abs((drawn == level).mean() - (films.rating == level).mean()) < 0.03


def test_session_hazard_recovers_a_planted_one() -> None:
    planted = SessionModel(intercept=-1.0, slope=-0.4)
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(4000):
        k = 1
        while rng.random() > planted.hazard(k):
            k += 1
        lengths.append(k)
    user = np.zeros(sum(lengths), np.int64)
    starts = np.repeat(np.arange(len(lengths)) * 10_000_000, lengths)
    time = starts + np.concatenate([np.arange(n) for n in lengths])
    log = Dataset("sessions", Vocabulary(["a"]), Vocabulary(["x"]), user, np.zeros_like(user), time)
    assert list(session_lengths(log)) == lengths
    fitted = fit_session(log)
    assert abs(fitted.intercept - planted.intercept) < 0.1
    assert abs(fitted.slope - planted.slope) < 0.1


def log_of_sessions(users: list[list[int]]) -> Dataset:
    """Users with sessions of the given lengths, a day apart."""
    user = np.concatenate([np.full(sum(lengths), n) for n, lengths in enumerate(users)])
    time = np.concatenate([np.concatenate([np.arange(k) + 86_400 * s for s, k in enumerate(lengths)]) for lengths in users])
    ids = Vocabulary(f"u{n}" for n in range(len(users)))
    return Dataset("sessions", ids, Vocabulary(["x"]), user.astype(np.int64), np.zeros(len(user), np.int64), time.astype(np.int64))


def test_habits_recover_planted_ones_and_first_sessions_do_not_matter() -> None:
    """Who took more before leaves sooner, who took long sessions stays longer; and all begin with a long one."""
    rng, volume, pace = np.random.default_rng(0), 0.4, -0.6
    users = []
    for _ in range(1500):
        lengths = [int(rng.integers(20, 80))]
        for _ in range(4):
            habit = volume * np.log(sum(lengths)) + pace * np.log(np.mean(lengths))
            k = 1
            while rng.random() > SessionModel(intercept=-1.0, slope=-0.3).hazard(k, habit):
                k += 1
            lengths.append(k)
        users.append(lengths)
    fitted = fit_session(log_of_sessions(users))
    assert abs(fitted.slope + 0.3) < 0.05
    assert abs(fitted.volume - volume) < 0.1
    assert abs(fitted.pace - pace) < 0.1
    expected = [volume * np.log(sum(lengths)) + pace * np.log(np.mean(lengths)) for lengths in users]
    assert np.corrcoef(fitted.habits, expected)[0, 1] > 0.98
    # Of two users, the one with the higher habit leaves sooner.
    low, high = (float(fitted.habits[n]) for n in (np.argmin(fitted.habits), np.argmax(fitted.habits)))
    assert fitted.exit_probability(0, 4, 0.0, low) < fitted.exit_probability(0, 4, 0.0, high)
    assert fitted.habit(len(users)) == 0.0, "nobody the log knows"


def test_a_log_in_which_nobody_returns_has_no_habits() -> None:
    lengths = np.random.default_rng(0).geometric(0.2, 3000)
    fitted = fit_session(log_of_sessions([[int(n)] for n in lengths]))
    assert abs(float(fitted.hazard(1)) - 0.2) < 0.03
    assert fitted.habits.size == 0
    assert (fitted.volume, fitted.pace) == (0.0, 0.0)


def test_records_know_what_came_before_and_nothing_of_what_comes() -> None:
    records = records_before(np.array([0, 0, 0, 4, 4]), np.array([10, 2, 6, 3, 5]))
    assert not np.isfinite(records[[0, 3]]).any()
    assert np.exp(records[[1, 2, 4]]) == pytest.approx(np.array([[10, 10], [12, 6], [3, 3]]))


@given(st.integers(0, 50), st.integers(0, 10), st.floats(-1, 1), st.floats(-5, 5), st.floats(-2, 2))
def test_exit_is_a_probability_and_falls_with_mood(before: int, taken: int, mood: float, intercept: float, slope: float) -> None:
    model = SessionModel(intercept=intercept, slope=slope)
    probability = model.exit_probability(before, taken, mood)
    assert 0 < probability < 1
    assert model.exit_probability(before, taken, 1.0) <= probability <= model.exit_probability(before, taken, -1.0)


@given(st.lists(st.sampled_from(FEELINGS), max_size=20))
def test_mood_stays_in_bounds_and_memory_is_a_fold(feelings: list) -> None:
    memory = Memory()
    for feeling in feelings:
        memory = memory.after(((1, "A", 4.0),), feeling)
    assert -1 <= memory.mood <= 1
    assert len(memory.taken) == len(feelings)
    assert bool(memory.text()) == bool(feelings)


@given(st.integers(), st.text(), st.integers(0, 10**6))
def test_streams_depend_on_their_key_alone(seed: int, name: str, user: int) -> None:
    first = stream(seed, name, user).random(3)
    stream(seed, "other", user).random(5)
    assert (stream(seed, name, user).random(3) == first).all()
    assert (stream(seed, name, user + 1).random(3) != first).any()


async def test_statistical_decisions_do_not_depend_on_the_batch(split: Split) -> None:
    profile = LogProfile(split.train)
    policy = StatisticalPolicy.fit(split.train, seed=0)
    rng = np.random.default_rng(0)
    personas = build_personas(profile, np.arange(30))
    contexts = [PageContext(p, 0, profile.page_items(rng.choice(80, 10, replace=False)), "", (), 7) for p in personas]
    together = await policy.decide(contexts)
    alone = [(await policy.decide([c]))[0] for c in reversed(contexts)][::-1]
    for a, b in zip(together, alone, strict=True):
        assert dataclasses.replace(a, preference=()) == dataclasses.replace(b, preference=())
        assert np.allclose(a.preference, b.preference)
    assert await policy.decide([]) == []
    taken = sum(len(d.watched) for d in together)
    assert 20 < taken < 200
