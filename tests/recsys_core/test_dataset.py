"""The dataset's contracts, over random logs."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import logs

from recsys_core.data import Dataset, Histories, Jagged, Vocabulary
from recsys_core.errors import DataError


def change(dataset: Dataset, **new: object) -> Dataset:
    return Dataset(**({f.name: getattr(dataset, f.name) for f in fields(Dataset)} | new))


def bumped(column: np.ndarray) -> np.ndarray:
    """A copy whose first value is another one."""
    other = column.copy()
    other[0] += 1
    return other


@given(logs())
def test_file_order_is_kept_among_ties(dataset: Dataset) -> None:
    dataset = change(dataset, tie_rule="file-order")
    expected: list[list[int]] = [[] for _ in dataset.users.ids]
    for row in sorted(range(len(dataset)), key=lambda r: int(dataset.timestamp[r])):
        expected[dataset.user[row]].append(int(dataset.item[row]))
    assert [row.tolist() for row in map(dataset.sequences().__getitem__, range(len(dataset.users)))] == expected


@given(logs(), st.integers(0, 99))
def test_a_shuffle_moves_ties_and_nothing_else(dataset: Dataset, seed: int) -> None:
    shuffled = change(dataset, tie_rule=f"shuffled:{seed}")
    time, user = shuffled.timestamp[shuffled.order], shuffled.user[shuffled.order]
    assert sorted(shuffled.order.tolist()) == list(range(len(dataset)))
    assert ((np.diff(user) > 0) | ((np.diff(user) == 0) & (np.diff(time) >= 0))).all()
    assert np.array_equal(shuffled.order, change(dataset, tie_rule=f"shuffled:{seed}").order)


@given(logs(), st.data())
def test_a_part_orders_its_rows_as_the_whole_does(dataset: Dataset, data: st.DataObject) -> None:
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(dataset), max_size=len(dataset))))
    part = dataset.rows(keep)
    whole = dataset.order[keep[dataset.order]]
    assert np.array_equal(part.item[part.order], dataset.item[whole])
    assert np.array_equal(part.timestamp[part.order], dataset.timestamp[whole])


def test_shuffles_differ_by_seed_and_are_fair() -> None:
    """Two items a user at one time: over 2,000 users and each of 5 seeds, each comes first about half the time (5 sigma)."""
    user = np.repeat(np.arange(2000), 2)
    item = np.tile([0, 1], 2000)
    users, items = Vocabulary(map(str, range(2000))), Vocabulary("ab")
    first = []
    for seed in range(5):
        dataset = Dataset("ties", users, items, user, item, np.zeros(4000, np.int64), tie_rule=f"shuffled:{seed}")
        first.append(dataset.sequences().values[::2])
        assert abs(first[-1].mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)
    agreement = [(a == b).mean() for i, a in enumerate(first) for b in first[:i]]
    assert max(abs(share - 0.5) for share in agreement) < 5 * 0.5 / np.sqrt(2000)


@given(logs())
def test_the_hash_changes_with_every_part_that_can_change_a_number(dataset: Dataset) -> None:
    items = len(dataset.items)
    texts = change(dataset, titles=("a",) * items, tags=(("b", "c"),) * items)
    wider = {"users": Vocabulary([*dataset.users.ids, "new"]), "items": Vocabulary([*dataset.items.ids, "new"])}
    variants = [
        dataset,
        texts,
        change(texts, titles=("ab",) * items),
        change(texts, tags=(("bc",),) * items),
        change(dataset, titles=("",) * items),
        change(dataset, timestamp=bumped(dataset.timestamp)),
        change(dataset, rating=bumped(dataset.rating)),
        change(dataset, rating=None),
        change(dataset, users=wider["users"], user=bumped(dataset.user)),
        change(dataset, items=wider["items"], item=bumped(dataset.item)),
        change(dataset, users=wider["users"]),
        change(dataset, items=wider["items"]),
        dataset.rows(np.arange(len(dataset) - 1)),
        *(change(dataset, tie_rule=rule) for rule in ("file-order", "shuffled:0", "shuffled:7", "shuffled:8") if rule != dataset.tie_rule),
    ]
    hashes = Counter(v.content_hash for v in variants)
    assert hashes.most_common(1)[0][1] == 1
    assert change(dataset, name="other", provenance="elsewhere").content_hash == dataset.content_hash


@given(logs(), logs())
def test_append_keeps_what_was_there(dataset: Dataset, other: Dataset) -> None:
    user, item = other.user % len(dataset.users), other.item % len(dataset.items)
    before = dataset.content_hash
    joined = dataset.append(user, item, other.timestamp, other.rating, "joined")
    assert len(joined) == len(dataset) + len(other)
    assert joined.rows(np.arange(len(dataset)), dataset.name).content_hash == before
    assert np.array_equal(joined.item[len(dataset) :], item)
    assert np.array_equal(joined.item_counts, dataset.item_counts + np.bincount(item, minlength=len(dataset.items)))
    assert dataset.content_hash == before
    with pytest.raises(DataError, match="give both or neither"):
        dataset.append(user, item, other.timestamp, None, "joined")


@given(logs())
def test_columns_cannot_be_written(dataset: Dataset) -> None:
    for column in (dataset.user, dataset.item, dataset.timestamp, dataset.rating):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"item": np.array([0, 5])}, r"column item holds ids 0 \.\. 5, the vocabulary allows 0 \.\. 1"),
        ({"user": np.array([0, -1])}, "column user holds ids -1"),
        ({"timestamp": np.array([1])}, r"column timestamp has shape \(1,\)"),
        ({"titles": ("only one",)}, "1 titles for 2 items"),
        ({"item": np.array([0.0, 1.0])}, "column item is of type float64, .* give it as int64"),
        ({"timestamp": np.array([1.0, np.nan])}, "column timestamp is of type float64"),
        ({"rating": np.array([5.0, np.nan])}, "column rating holds nan in row 1; give finite ratings"),
        ({"rating": np.array([1e39, 1.0])}, r"column rating holds 1e\+39 in row 0"),
        ({"tie_rule": "5"}, "tie_rule '5' is not"),
        ({"tie_rule": "shuffled:-1"}, "tie_rule 'shuffled:-1' is not"),
    ],
)
def test_broken_datasets_are_refused(new: dict[str, object], message: str) -> None:
    whole = Dataset("d", Vocabulary("u"), Vocabulary("ab"), np.array([0, 0]), np.array([0, 1]), np.array([1, 2]))
    with pytest.raises(DataError, match=message):
        change(whole, **new)


@given(logs())
def test_the_type_in_which_numbers_are_given_does_not_matter(dataset: Dataset) -> None:
    given = change(
        dataset,
        user=dataset.user.astype(np.uint16),
        item=dataset.item.astype(np.int32).tolist(),
        rating=None if dataset.rating is None else dataset.rating.astype(np.float64),
    )
    assert given.content_hash == dataset.content_hash
    assert (given.user.dtype, given.item.dtype) == (np.int64, np.int64)


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6))
def test_jagged_round_trip(rows: list[list[int]]) -> None:
    jagged = Jagged.from_rows(rows)
    assert [jagged[i].tolist() for i in range(len(jagged))] == rows
    assert jagged.lengths.tolist() == [len(r) for r in rows]
    assert jagged.row_ids.tolist() == [i for i, r in enumerate(rows) for _ in r]
    backwards = list(range(len(rows)))[::-1]
    assert [jagged.take(backwards)[i].tolist() for i in range(len(rows))] == rows[::-1]


def test_rows_may_be_those_of_a_matrix() -> None:
    rows = Histories.of(np.array([[1, 2], [3, 0]])).items
    assert [rows[r].tolist() for r in range(2)] == [[1, 2], [3, 0]]


def test_jagged_and_vocabulary_refuse_nonsense() -> None:
    for offsets in ([0, 2, 1, 3], [1, 3], [0, 2], []):
        with pytest.raises(DataError, match="offsets must rise"):
            Jagged(np.arange(3), np.array(offsets, np.int64))
    with pytest.raises(IndexError):
        Jagged.from_rows([[1]])[-1]
    with pytest.raises(DataError, match="'a' occurs twice"):
        Vocabulary(["a", "b", "a"])
    for wrong in (5, np.int64(5)):
        with pytest.raises(DataError, match=r"id 5 is of type int.*; external ids are text, give '5'"):
            Vocabulary(["4", wrong])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"1 unknown id\(s\): 'z'"):
        Histories.external(Vocabulary("ab"), [["a"], ["z"]])
    with pytest.raises(DataError, match="give one id a history"):
        Histories.of([[0], [1]], users=[0])
