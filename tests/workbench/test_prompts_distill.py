"""Pairs from ranked lists: what they say, that a lesson can be learned from them, and that none is where there is nothing to learn."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core import create
from recsys_core.data import Preferences, Split
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.models.bpr import loss_and_gradients
from recsys_core.recommender import FitOptions
from tests.workbench.landscape import rows as made_up
from workbench.config import ModelSettings
from workbench.loop import compare_arms, store_results
from workbench.prompts.distill import CONTROLS, controls, distilled_pairs, export_pairs, learn, pairs_table, preferences
from workbench.prompts.ranked import Ranked
from workbench.prompts.reranking import rerank_rows
from workbench.prompts.tasks import Item, Ranking, Row, by_score, tied
from workbench.store import Store

BPR = ModelSettings(name="bpr", config={"dim": 8, "epochs": 15, "batch_size": 512})


@pytest.fixture(scope="module")
def rows(split: Split) -> list[Row]:
    """Train rows of all users: their training log, and the ten films that popularity would show them."""
    first = create("popularity").fit(split.train)
    return rerank_rows(first, split.train, split.valid, range(len(split.valid)), 10, "train")


def row_of(names: str, user: str = "u1") -> Row:
    return Row(f"row of {user}", (), tuple(Item(name, name) for name in names), {}, user=user)


def by_taste(row: Row) -> Ranked:
    """What a model that knew the planted taste would answer: the user's own genre first."""
    genre = int(row.user[1:]) % 4
    return Ranked(row.id, by_score(row, {item.id: float(int(item.id[1:]) % 4 == genre) for item in row.candidates}), ())


# What pairs say


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    names = draw(st.permutations("abcdef"[: draw(st.integers(1, 6))]))
    cuts = sorted(draw(st.sets(st.integers(1, len(names))))) if len(names) > 1 else []
    return tuple(tuple(names[a:b]) for a, b in itertools.pairwise([0, *cuts, len(names)]) if b > a)


@settings(max_examples=80, deadline=None)
@given(rankings(), st.integers(1, 8))
def test_pairs_are_those_of_a_list_s_head_and_weigh_what_swapping_costs(ranking: Ranking, top: int) -> None:
    names = list(itertools.chain(*ranking))
    row = row_of("".join(sorted(names)))
    found = {(p.preferred, p.other): p for p in distilled_pairs([row], [Ranked(row.id, ranking, ())], top)}
    # Places by their definition: the mean over all orders that the ties leave open.
    orders = [list(itertools.chain(*order)) for order in itertools.product(*(itertools.permutations(group) for group in ranking))]
    mean = {name: float(np.mean([order.index(name) + 1 for order in orders])) for name in names}
    group = {name: n for n, members in enumerate(ranking) for name in members}
    wanted = {(a, b) for a, b in itertools.permutations(names, 2) if group[a] < group[b] and mean[a] <= top}
    assert set(found) == wanted
    for pair in found.values():
        assert (pair.preferred_rank, pair.other_rank) == pytest.approx((mean[pair.preferred], mean[pair.other]))
        assert pair.weight == pytest.approx(1 / math.log2(1 + pair.preferred_rank) - 1 / math.log2(1 + pair.other_rank))
        assert pair.weight > 0


def test_unusable_answers_teach_nothing_and_strangers_are_refused() -> None:
    row = row_of("abc")
    assert distilled_pairs([row], [Ranked(row.id, tied(row), ())]) == []
    with pytest.raises(DataError, match="do not belong to"):
        distilled_pairs([row], [Ranked("other", tied(row), ())])
    with pytest.raises(DataError, match="has no user"):
        distilled_pairs([row_of("abc", "")], [Ranked("row of ", tied(row), ())])
    with pytest.raises(DataError, match="top is 0"):
        distilled_pairs([row], [Ranked(row.id, tied(row), ())], 0)


def test_controls_are_other_orders_of_the_same_candidates(rows: list[Row], split: Split) -> None:
    orders = controls(rows, split.train, seed=3)
    assert tuple(orders) == CONTROLS
    counts = dict(zip(split.train.items.ids, split.train.item_counts.tolist(), strict=True))
    sizes = {name: len(distilled_pairs(rows, lists)) for name, lists in orders.items()}
    assert set(sizes.values()) == {len(rows) * (9 + 8 + 7 + 6 + 5)}
    firsts = []
    for number, row in enumerate(rows):
        order = {name: [group[0] for group in lists[number].ranking] for name, lists in orders.items()}
        assert all(sorted(names) == sorted(item.id for item in row.candidates) for names in order.values())
        popular = [counts[name] for name in order["popularity"]]
        assert popular == sorted(popular, reverse=True)
        assert row.prior is not None
        scores = [row.prior[name] for name in order["prior"]]
        assert scores == sorted(scores, reverse=True)
        firsts.append([item.id for item in row.candidates].index(order["random"][0]))
    # Sixty draws of ten places: no place gets more than about a third.
    assert max(np.bincount(firsts, minlength=10)) < 20
    with pytest.raises(DataError, match="has no scores of the recommender"):
        controls(made_up("train", 1), split.train)


# Learning from them


def test_a_lesson_is_learned_and_noise_is_not_taken_for_one(split: Split, tmp_path: Path) -> None:
    """Pairs that know the planted taste, of films drawn by chance, help on untouched ones; as many pairs in random order do harm."""
    offered = rerank_rows(create("random").fit(split.train), split.train, split.valid, range(len(split.valid)), 30, "train")
    orders = {"taste": [by_taste(row) for row in offered], "random": controls(offered, split.train)["random"]}
    arms = {name: preferences(distilled_pairs(offered, lists), split.train) for name, lists in orders.items()}
    steps: list[float] = []
    trained = learn(arms, split.train, split.test, BPR, 2, ("AUC", "MRR"), lambda share, text: steps.append(share))
    assert [(t.model, t.arm, len(t.runs)) for t in trained] == [("bpr", a, 2) for a in ("none", "taste", "random")]
    assert steps[-1] == 1
    found = {arm: c for _, arm, c in compare_arms(trained, ("AUC",))}
    assert found["taste"].low > 0
    assert found["random"].high < 0
    with Store.open(tmp_path / "store.sqlite") as store:
        run = store.start_run("distill", "test", {}, 0, split.train, split)
        store_results(store, run, trained, compare_arms(trained, ("AUC",)))
        assert {e.arm for e in store.evaluations(run)} == {"none", "taste", "random"}


def test_no_preferences_change_nothing(split: Split) -> None:
    model = create("bpr", **BPR.config)
    none = Preferences(*(np.empty(0, np.int64) for _ in range(3)), np.empty(0, np.float32))
    plain, given_none = model.fit(split.train)._state(), create("bpr", **BPR.config).fit(split.train, options=FitOptions(preferences=none))
    for name, array in given_none._state().items():
        np.testing.assert_array_equal(array, plain[name])


def test_weighted_gradients_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((7, 3), (9, 3), (9,))]
    user, item, other = (torch.randint(n, (20,), generator=generator) for n in (7, 9, 9))
    weight = torch.rand(20, generator=generator)
    users, items, bias = tables
    margin = (users[user] * (items[item] - items[other])).sum(1) + bias[item] - bias[other]
    expected = (weight * torch.nn.functional.softplus(-margin)).mean()
    with torch.no_grad():
        loss, gradients = loss_and_gradients(users, items, bias, user, item, other, 0.0, weight)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, tables))


def test_a_pair_moves_its_two_items_apart_for_its_user(split: Split) -> None:
    pair = Preferences(np.array([7]), np.array([70]), np.array([71]), np.array([50.0], np.float32))
    margins = []
    for taught in (None, pair):
        model = create("bpr", **BPR.config).fit(split.train, options=FitOptions(preferences=taught))
        state = model._state()
        scores = state["user_factors"] @ state["item_factors"].T + state["item_bias"]
        margins.append(scores[:, 70] - scores[:, 71])
    moved = margins[1] - margins[0]
    assert moved[7] > 1
    assert moved[7] == moved.max()


def test_models_that_would_ignore_pairs_refuse_them(split: Split) -> None:
    one = Preferences(np.array([0]), np.array([1]), np.array([2]), np.ones(1, np.float32))
    for name in ("ease", "popularity", "hstu", "llm"):
        with pytest.raises(DataError, match="is not trained on pairs"):
            create(name).fit(split.train, options=FitOptions(preferences=one))
    beyond = Preferences(np.array([0]), np.array([80]), np.array([2]), np.ones(1, np.float32))
    with pytest.raises(DataError, match=r"item of preferences holds ids 80 \.\. 80, the log knows 0 \.\. 79"):
        create("bpr").fit(split.train, options=FitOptions(preferences=beyond))


def test_broken_preferences_are_refused(split: Split) -> None:
    ids = np.array([0, 1])
    for columns, why in (
        ((ids, ids, ids[:1], np.ones(2, np.float32)), "four of one length"),
        ((ids, ids, ids, np.ones(2, np.float32)), "preferred to itself"),
        ((ids, ids, ids + 1, np.zeros(2, np.float32)), "finite number above 0"),
        ((ids, ids, ids + 1, np.array([1, np.nan], np.float32)), "finite number above 0"),
    ):
        with pytest.raises(DataError, match=why):
            Preferences(*columns)
    pairs = distilled_pairs([row_of("ab", "nobody")], [Ranked("row of nobody", (("a",), ("b",)), ())])
    with pytest.raises((DataError, UnknownNameError)):
        preferences(pairs, split.train)


# Outside the process


def test_pairs_are_exported_whole_with_where_they_come_from(rows: list[Row], tmp_path: Path) -> None:
    pairs = distilled_pairs(rows, [by_taste(row) for row in rows])
    export_pairs(pairs, tmp_path / "out" / "pairs.parquet", {"llm": "test", "rows": len(rows)})
    table = pq.read_table(tmp_path / "out" / "pairs.parquet")
    assert table.equals(pairs_table(pairs))
    assert table.column("preferred").to_pylist() == [pair.preferred for pair in pairs]
    assert json.loads(table.schema.metadata[b"workbench"]) == {"llm": "test", "rows": len(rows)}
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["pairs.parquet"]
    with pytest.raises(DataError, match="no pairs to export"):
        export_pairs([], tmp_path / "none.parquet", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the export"):
        export_pairs(pairs, tmp_path / "file" / "pairs.parquet", {})
    odd = distilled_pairs([row_of("ab", "\ud800")], [Ranked("row of \ud800", (("a",), ("b",)), ())])
    assert pairs_table(odd).column("user").to_pylist() == ["?"]
