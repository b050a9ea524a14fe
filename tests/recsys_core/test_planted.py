"""Each model learns a pattern that its inductive bias can see, and nothing from a log where it is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recsys_core import Histories, Recommender, create, evaluate
from recsys_core.data import Dataset, Vocabulary, leave_one_out
from recsys_core.data.features import Category, Feature, Features, Number, Tags
from recsys_core.data.jagged import Jagged

ORDER_BLIND: dict[str, dict[str, Any]] = {
    "itemknn": {"neighbours": 9, "shrinkage": 1.0},
    "ease": {"l2": 5.0},
    "bpr": {"dim": 8, "epochs": 60, "batch_size": 256},
    "multvae": {"hidden": 32, "dim": 8, "epochs": 60, "batch_size": 40, "learning_rate": 0.01},
    "lightgcn": {"dim": 8, "epochs": 30, "batch_size": 240, "learning_rate": 0.03},
}
SMALL = {"features": True, "dim": 24, "max_length": 10, "batch_size": 32, "learning_rate": 0.01, "dropout": 0.0}
SEQUENTIAL: dict[str, dict[str, Any]] = {
    "gru4rec": {**SMALL, "epochs": 20},
    "sasrec": {**SMALL, "blocks": 1, "epochs": 20},
    "bert4rec": {**SMALL, "blocks": 1, "epochs": 30},
    "hstu": {**SMALL, "blocks": 1, "epochs": 20},
}
blind = pytest.mark.parametrize("name", ORDER_BLIND)
sequential = pytest.mark.parametrize("name", SEQUENTIAL)
of_both_kinds = pytest.mark.parametrize(("name", "kind"), [*((name, "category") for name in SEQUENTIAL), ("sasrec", "number")])


def log(rows: np.ndarray, n_items: int, features: Features | None = None) -> Dataset:
    """A dataset of one row of items a user, in that order."""
    users, length = rows.shape
    names = Vocabulary(f"u{u}" for u in range(users)), Vocabulary(f"i{i}" for i in range(n_items))
    user = np.repeat(np.arange(users), length)
    return Dataset(
        "planted", *names, user, rows.ravel().astype(np.int64), np.arange(rows.size, dtype=np.int64), features=features or Features()
    )


def both_ways(users: int = 200, n_items: int = 20, length: int = 6, seed: int = 0) -> np.ndarray:
    """Walks around a circle of items, half of them forward and half backward: the set of items says nothing about the next."""
    rng = np.random.default_rng(seed)
    step = np.where(np.arange(users) % 2, 1, -1)
    return (rng.integers(0, n_items, users)[:, None] + step[:, None] * np.arange(length)) % n_items


def forward_rather_than_backward(model: Recommender) -> float:
    """How often the item that goes on in the direction of a history outscores the one that turns back."""
    rows = both_ways(60, seed=1)[:, :4]
    step = rows[:, 1] - rows[:, 0]
    candidates = np.stack([rows[:, -1] + step, rows[:, 0] - step], 1) % 20
    ahead, behind = model.score(Histories.of(list(rows)), candidates).T
    return float((ahead > behind).mean())


@blind
def test_co_occurrence_is_learned(name: str) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([u % 4 * 10 + rng.permutation(10)[:6] for u in range(120)])
    model = create(name, **ORDER_BLIND[name]).fit(log(rows, 40))
    known = model.recommend(Histories.of(list(rows[:40]), range(40)), 4).items
    assert (known // 10 == np.arange(40)[:, None] % 4).mean() > 0.95
    # Users never met, from three items of a group.
    strangers = model.recommend(Histories.of([[g * 10 + i for i in range(3)] for g in range(4)]), 6).items
    assert (strangers // 10 == np.arange(4)[:, None]).mean() > 0.95


@blind
def test_order_is_invisible_to_models_without_order(name: str) -> None:
    model = create(name, **ORDER_BLIND[name]).fit(log(both_ways(), 20))
    there, back = model.score(Histories.of([[3, 4, 5], [5, 4, 3]]))
    np.testing.assert_allclose(there, back, rtol=1e-5, atol=1e-5)
    assert 0.25 < forward_rather_than_backward(model) < 0.75


@sequential
def test_order_is_learned(name: str) -> None:
    model = create(name, **SEQUENTIAL[name]).fit(log(both_ways(), 20))
    assert forward_rather_than_backward(model) > 0.95


MARKER, SIGNS, ANSWERS = 0, (1, 2), (3, 4)


def memory(users: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [U, 5]: a sign, three fillers that mean nothing, a marker; and the answer [U] behind it, which the sign decides."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 2, users)
    fillers = 5 + rng.integers(0, 6, (users, 3))
    return np.column_stack([np.array(SIGNS)[which], fillers, np.full(users, MARKER)]), np.array(ANSWERS)[which]


def remembered(model: Recommender) -> float:
    """How often the answer that the sign asks for outscores the other."""
    rows, answers = memory(80, 1)
    right, wrong = model.score(Histories.of(list(rows)), np.stack([answers, sum(ANSWERS) - answers], 1)).T
    return float((right > wrong).mean())


@sequential
def test_a_rule_over_a_long_range_is_learned(name: str) -> None:
    rows, answers = memory(600, 0)
    model = create(name, **SEQUENTIAL[name]).fit(log(np.column_stack([rows, answers]), 20))
    assert remembered(model) > 0.95


def test_a_rule_beyond_the_context_is_not_learned() -> None:
    rows, answers = memory(600, 0)
    model = create("sasrec", **SEQUENTIAL["sasrec"] | {"max_length": 4}).fit(log(np.column_stack([rows, answers]), 20))
    assert 0.3 < remembered(model) < 0.7


@pytest.mark.parametrize("name", [*ORDER_BLIND, *SEQUENTIAL])
def test_nothing_beats_popularity_where_there_is_nothing_else(name: str) -> None:
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 41)
    rows = np.stack([rng.choice(40, 8, replace=False, p=weights / weights.sum()) for _ in range(300)])
    split = leave_one_out(log(rows, 40))
    config = {**ORDER_BLIND, **SEQUENTIAL}[name]
    config = {**config, "epochs": 5} if "epochs" in config else config
    found, floor = (
        evaluate(create(n, **c).fit(split.train), split.test, ("NDCG@10",))["NDCG@10"] for n, c in ((name, config), ("popularity", {}))
    )
    gain = found - floor
    assert gain.mean() < 3 * gain.std() / np.sqrt(len(gain))
    # And what is left of popularity is more than the .11 that a random order has.
    assert found.mean() > (0.05 if name == "ease" else 0.15)


LETTERS = Vocabulary("abcd")


def item_feature(kind: str, group: np.ndarray) -> Feature:
    """The group of each item, as a feature of some kind."""
    if kind == "category":
        return Category("group", LETTERS, group)
    if kind == "tags":
        # The second tag is the same for all.
        return Tags("groups", Vocabulary("abcdx"), Jagged.from_rows([[g, 4] for g in group]))
    return Number("group", group.astype(np.float32))


@pytest.mark.parametrize("kind", ["category", "tags", "number"])
def test_an_item_feature_tells_what_is_next(kind: str) -> None:
    """Groups follow each other around; each item is too rare to be learned by itself."""
    rng = np.random.default_rng(0)
    group = np.arange(400) % (2 if kind == "number" else 4)
    groups = group.max() + 1
    turn = (rng.integers(0, groups, 100)[:, None] + np.arange(9)) % groups
    rows = turn + groups * rng.integers(0, len(group) // groups, turn.shape)

    def found(features: Features) -> float:
        model = create("sasrec", **SEQUENTIAL["sasrec"]).fit(log(rows, 400, features))
        top = model.recommend(Histories.of(list(rows[:, :6])), 20).items
        return float((top % groups == turn[:, 6:7]).mean())

    assert found(Features(item=(item_feature(kind, group),))) > 0.8
    assert found(Features()) < 0.65


@of_both_kinds
def test_a_user_feature_tells_what_is_first(name: str, kind: str) -> None:
    """Users of a kind take their own half of the items; those asked about have no interaction but the feature."""
    rng = np.random.default_rng(0)
    side = np.arange(150) % 2
    rows = side[:, None] * 10 + np.stack([rng.permutation(10)[:4] for _ in side])
    values: Feature = Category("side", LETTERS, side) if kind == "category" else Number("side", side.astype(np.float32) * 7 - 100)

    def found(features: Features) -> float:
        dataset = log(rows, 20, features)
        model = create(name, **SEQUENTIAL[name]).fit(dataset.rows(dataset.user < 100))
        top = model.recommend(Histories.of([[]] * 50, range(100, 150)), 5).items
        return float((top // 10 == side[100:, None]).mean())

    assert found(Features(user=(values,))) > 0.9
    assert found(Features()) == pytest.approx(0.5)


@of_both_kinds
def test_an_interaction_feature_tells_what_is_next(name: str, kind: str) -> None:
    """How an item was taken decides from which half the next one is."""
    rng = np.random.default_rng(0)
    how, rows = rng.integers(0, 2, (250, 6)), rng.integers(0, 10, (250, 6))
    rows[:, 1:] += 10 * how[:, :-1]
    flat, asked = how[:150].ravel(), slice(150, None)
    column: Feature = Category("how", LETTERS, flat) if kind == "category" else Number("how", flat.astype(np.float32))

    def found(features: Features) -> float:
        model = create(name, **SEQUENTIAL[name]).fit(log(rows[:150], 20, features))
        values = how[asked, :5].ravel().astype(np.int64 if kind == "category" else np.float32)
        known = Jagged.from_rows(list(rows[asked, :5]))
        scores = model.score(Histories(known, np.full(100, -1), features={"how": values} if features.interaction else {}))
        return float(((scores[:, 10:].mean(1) > scores[:, :10].mean(1)) == how[asked, 4]).mean())

    assert found(Features(interaction=(column,))) > 0.9
    assert found(Features()) < 0.65
