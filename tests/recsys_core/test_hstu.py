"""HSTU: it learns order and time, starts from nothing, leaks nothing, and its ranking head scores candidates one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_core import Histories, create, load
from recsys_core.data import Dataset, Vocabulary, leave_one_out
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.models.hstu import HSTU, HSTUConfig, ranking_report
from recsys_core.models.hstu.model import thinned
from recsys_core.models.hstu.ranking import auc
from recsys_core.sequence.batch import history_batch

CHAIN = {"dim": 32, "heads": 2, "max_length": 8, "epochs": 8, "negatives": 40, "batch_size": 32, "dropout": 0.0, "learning_rate": 0.01}


def chain(users: int = 150, n_items: int = 40, length: int = 12, seed: int = 0) -> Dataset:
    """Each user starts anywhere (three times in four at item 7) and takes i, i + 1, ... around a circle: only order tells what is next."""
    rng = np.random.default_rng(seed)
    starts = np.where(rng.random(users) < 0.75, 7, rng.integers(0, n_items, users))
    item = (starts[:, None] + np.arange(length)) % n_items
    user = np.repeat(np.arange(users), length)
    names = Vocabulary(map(str, range(users))), Vocabulary(map(str, range(n_items)))
    return Dataset("chain", *names, user, item.ravel().astype(np.int64), np.arange(user.size))


def paced(users: int = 400, length: int = 8, seed: int = 0) -> Dataset:
    """After a minute comes the next item around a circle, after ten days (3 times in 10) the one opposite; items 0 to 9 rate 5, else 1.

    So the next item follows from the last one and the time of the question; without that time the best guess is right 7 times in 10.
    """
    rng = np.random.default_rng(seed)
    late = rng.random((users, length)) < 0.3
    steps = np.where(late, 10, 1)
    steps[:, 0] = rng.integers(0, 20, users)
    item = np.cumsum(steps, axis=1) % 20
    time = np.cumsum(np.where(late, 864_000, 60), axis=1)
    names = Vocabulary(map(str, range(users))), Vocabulary(map(str, range(20)))
    rating = np.where(item < 10, 5.0, 1.0).ravel().astype(np.float32)
    user = np.repeat(np.arange(users), length)
    return Dataset("paced", *names, user, item.ravel().astype(np.int64), time.ravel().astype(np.int64), rating)


@pytest.fixture(scope="module")
def model() -> HSTU:
    return create("hstu", **CHAIN).fit(chain())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def ranker() -> HSTU:
    settings = {**CHAIN, "actions": True, "tasks": (4.0, 2.0), "ranking_weight": 1.0, "blocks": 2, "epochs": 6}
    return create("hstu", **settings).fit(leave_one_out(paced()).train)  # type: ignore[return-value]


def test_a_markov_chain_is_learned(model: HSTU) -> None:
    rows = [[(s + i) % 40 for i in range(n)] for s in range(5, 20) for n in (1, 3, 7)]
    top = model.recommend(Histories.of(rows), 1).items[:, 0]
    assert (top == [(r[-1] + 1) % 40 for r in rows]).mean() > 0.95


def test_order_is_what_decides(model: HSTU) -> None:
    forward, backward = model.score(Histories.of([[9, 10, 11], [11, 10, 9]]))
    assert forward[12] > backward[12]


def test_an_empty_history_has_a_trained_score(model: HSTU) -> None:
    # Windows of 8 in users of 12 items start at item 7 or soon after it.
    assert model.recommend(Histories.of([[]]), 1).items[0, 0] in range(7, 20)


def test_only_the_latest_items_are_read(model: HSTU) -> None:
    recent = list(range(10, 17))
    long, short = model.score(Histories.of([[30, 2, 25, *recent], recent]))
    np.testing.assert_allclose(long, short, atol=1e-5)


def test_a_published_size_can_be_named_and_changed() -> None:
    large = HSTUConfig(size="large", dropout=0.1, heads=1)
    assert (large.dim, large.blocks, large.heads, large.max_length, large.dropout) == (50, 8, 1, 200, 0.1)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"dim": 10, "heads": 3}, "multiple"), ({"actions": True, "tasks": ()}, "task"), ({"loss": "bce", "sampling": "all"}, "negatives")],
)
def test_config_limits(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        HSTUConfig(**settings)  # type: ignore[arg-type]


def test_states_do_not_see_the_future(model: HSTU) -> None:
    rows = np.arange(7)
    changed = rows.copy()
    changed[4] = 19
    with torch.no_grad():
        before, after = (model.network(history_batch(Histories.of([r]), 40, 8)) for r in (rows, changed))
    torch.testing.assert_close(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:])


@pytest.mark.parametrize(("time", "sees"), [("none", False), ("past", False), ("target", True)])
def test_the_time_of_the_question_tells_only_a_model_that_reads_it(time: str, sees: bool) -> None:
    split = leave_one_out(paced())
    model = create("hstu", **{**CHAIN, "time": time, "epochs": 25, "blocks": 2}).fit(split.train)
    right = (model.score(split.test.histories).argmax(1) == split.test.targets.values).mean()
    assert right > 0.9 if sees else 0.55 < right < 0.8


def test_a_model_of_time_refuses_histories_without() -> None:
    model = create("hstu", **{**CHAIN, "time": "past", "epochs": 1}).fit(chain())
    with pytest.raises(DataError, match="have none"):
        model.score(Histories.of([[1, 2]]))


def test_the_ranking_head_predicts_the_rating(ranker: HSTU) -> None:
    split = leave_one_out(paced())
    high, low = ranking_report(ranker, split.test, (0.5, 0.5))
    assert high.auc > 0.95
    assert high.normalized_entropy < 0.5
    assert (high.task, high.n, low.rate) == (4.0, 400, high.rate)


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_candidates_are_scored_as_if_each_were_alone(ranker: HSTU, micro_batch: int) -> None:
    """The oracle appends one candidate to the whole sequence and runs the plain network over it."""
    test = leave_one_out(paced()).test.histories
    chosen = Histories(test.items.take(range(5)), test.users[:5], test.timestamps[:35], test.ratings[:35], test.at[:5])  # type: ignore[index]
    rows = Histories(Jagged.from_rows([*(chosen.items[r] for r in range(5)), []]), np.full(6, -1), chosen.timestamps, chosen.ratings)
    candidates = np.random.default_rng(0).integers(0, 20, (6, 7))
    answer = ranker.score_candidates(rows, candidates, micro_batch)
    for column in range(7):
        batch = history_batch(rows, 20, ranker.config.max_length)
        targets = batch.tokens.roll(-1)
        targets[batch.last] = torch.from_numpy(candidates[:, column])
        with torch.no_grad():
            states = ranker.network.interleaved(type(batch)(**{**vars(batch), "targets": targets}))[1][batch.last]
            alone = ranker.network.tasks(states).sigmoid()  # type: ignore[misc]
        np.testing.assert_allclose(answer[:, column], alone.numpy(), atol=1e-5)


def test_candidates_in_time_are_scored_as_if_each_were_alone() -> None:
    split = leave_one_out(paced(users=60))
    model = create("hstu", **{**CHAIN, "actions": True, "time": "target", "epochs": 1, "heads": 1}).fit(split.train)
    assert isinstance(model, HSTU)
    histories = split.test.histories
    candidates = split.test.targets.values[:, None]
    batch = history_batch(histories, 20, model.config.max_length)
    targets = batch.tokens.roll(-1)
    targets[batch.last] = torch.from_numpy(candidates[:, 0])
    with torch.no_grad():
        states = model.network.interleaved(type(batch)(**{**vars(batch), "targets": targets}))[1][batch.last]
        alone = model.network.tasks(states).sigmoid()  # type: ignore[misc]
    np.testing.assert_allclose(model.score_candidates(histories, candidates)[:, 0], alone.numpy(), atol=1e-5)


def test_ratings_are_needed_for_actions(model: HSTU, ranker: HSTU, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs ratings"):
        create("hstu", actions=True).fit(chain())
    with pytest.raises(DataError, match="ranking head"):
        model.score_candidates(Histories.of([[1]]), np.array([[2]]))
    with pytest.raises(DataError, match=r"candidates hold item ids -1 \.\. 2"):
        ranker.score_candidates(Histories.of([[1]]), np.array([[2, -1]]))
    ranker.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, HSTU)
    histories, candidates = leave_one_out(paced()).test.histories, np.tile(np.arange(20), (400, 1))
    np.testing.assert_array_equal(again.score_candidates(histories, candidates), ranker.score_candidates(histories, candidates))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=20), st.integers(4, 60), st.floats(1.2, 2.0), st.integers(0, 2**20))
def test_stochastic_length_thins_only_long_rows_and_keeps_their_order(lengths: list[int], longest: int, alpha: float, seed: int) -> None:
    rows = Jagged.from_rows([list(range(min(n, longest))) for n in lengths])
    kept = thinned(rows, longest, alpha, np.random.default_rng(seed))
    limit = int(longest ** (alpha / 2))
    for r in range(len(rows)):
        assert len(kept[r]) in {len(rows[r]), min(limit, len(rows[r]))}
        assert (np.diff(kept[r]) > 0).all()


def test_stochastic_length_thins_as_often_as_stated() -> None:
    rows = Jagged.from_rows([list(range(100))] * 4000)
    short = thinned(rows, 100, 1.8, np.random.default_rng(0)).lengths < 100
    assert short.mean() == pytest.approx(1 - 100**1.8 / 100**2, abs=0.03)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_auc_counts_pairs(pairs: list[tuple[bool, int]]) -> None:
    yes, score = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float)
    won = [(a > b) + (a == b) / 2 for a in score[yes] for b in score[~yes]]
    assert auc(yes, score) == pytest.approx(np.mean(won) if won else 0.5)
