"""The splits' contracts, over random logs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from random_logs import logs

from recsys_core.data import Dataset, Vocabulary, global_time, leave_one_out
from recsys_core.errors import DataError


@given(logs(), st.integers(3, 5))
def test_leave_one_out_divides_each_held_out_sequence(dataset: Dataset, min_length: int) -> None:
    whole = dataset.sequences()
    assume(whole.lengths.max() >= min_length)
    split = leave_one_out(dataset, min_length)
    train = split.train.sequences()
    assert split.test.users.tolist() == np.flatnonzero(whole.lengths >= min_length).tolist() == split.valid.users.tolist()
    for row, user in enumerate(split.test.users.tolist()):
        parts = [train[user], split.valid.targets[row], split.test.targets[row]]
        assert [len(p) for p in parts[1:]] == [1, 1]
        assert np.concatenate(parts).tolist() == whole[user].tolist()
        assert split.valid.histories.items[row].tolist() == parts[0].tolist()
        assert split.test.histories.items[row].tolist() == np.concatenate(parts[:2]).tolist()
    for user in set(range(len(dataset.users))) - set(split.test.users.tolist()):
        assert train[user].tolist() == whole[user].tolist()
    assert len(split.train) + len(split.valid) + len(split.test) == len(dataset)


@given(logs(), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_global_time_never_learns_from_what_it_judges(dataset: Dataset, valid_share: float, test_share: float) -> None:
    times = np.sort(dataset.timestamp)
    cuts = [times[min(int(len(times) * share), len(times) - 1)] for share in (1 - valid_share - test_share, 1 - test_share)]
    if not times[0] < cuts[0] < cuts[1]:
        with pytest.raises(DataError, match="do not separate"):
            global_time(dataset, valid_share, test_share)
        return
    split = global_time(dataset, valid_share, test_share)
    # The parts are a partition of the log at two points in time, found again from the sizes of the parts alone.
    cut_valid = split.train.timestamp.max()
    later = dataset.timestamp > cut_valid
    assert np.array_equal(split.train.timestamp, dataset.timestamp[~later])
    held = np.sort(dataset.timestamp[later])
    assert len(split.valid.targets.values) + len(split.test.targets.values) == len(held)
    cut_test = held[len(split.valid.targets.values)]
    expected = {
        "valid": (later & (dataset.timestamp < cut_test), ~later),
        "test": (dataset.timestamp >= cut_test, dataset.timestamp < cut_test),
    }
    for part, (targets, known) in ((split.valid, expected["valid"]), (split.test, expected["test"])):
        assert part.users.tolist() == np.unique(dataset.user[targets]).tolist()
        for row, user in enumerate(part.users.tolist()):
            for jagged, mask in ((part.targets, targets), (part.histories.items, known)):
                assert Counter(jagged[row].tolist()) == Counter(dataset.item[mask & (dataset.user == user)].tolist())


def timed(times: list[int], users: list[int], **more: object) -> Dataset:
    user = np.array(users, np.int64)
    vocabulary = Vocabulary(map(str, range(max(users) + 1)))
    return Dataset("timed", vocabulary, Vocabulary("abcdefghij"), user, np.arange(len(times)), np.array(times, np.int64), **more)


def test_cold_users_have_an_empty_history() -> None:
    split = global_time(timed(list(range(10)), [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), 0.1, 0.1)
    assert (split.valid.users.tolist(), split.valid.histories.items.lengths.tolist()) == ([1], [0])
    assert (split.test.users.tolist(), split.test.histories.items.lengths.tolist()) == ([2], [0])
    assert split.test.targets[0].tolist() == [9]
    assert len(split.train.users) == 3


def test_ties_at_a_cut_go_to_the_later_part_together() -> None:
    split = global_time(timed([0, 1, 2, 3, 4, 5, 6, 6, 6, 9], [0] * 10), 0.2, 0.1)
    assert split.train.timestamp.tolist() == [0, 1, 2, 3, 4, 5]
    assert split.valid.targets[0].tolist() == [6, 7, 8]


@given(logs())
def test_the_hash_names_the_split(dataset: Dataset) -> None:
    assume(dataset.sequences().lengths.max() >= 4)
    first = leave_one_out(dataset)
    assert leave_one_out(dataset).content_hash == first.content_hash
    assert leave_one_out(dataset.rows(np.arange(len(dataset)))).content_hash == first.content_hash
    target = dataset.order[dataset.offsets[int(first.test.users[0]) + 1] - 1]
    item = dataset.item.copy()
    item[target] = (item[target] + 1) % len(dataset.items)
    assume(item[target] != dataset.item[target])
    moved = Dataset(dataset.name, dataset.users, dataset.items, dataset.user, item, dataset.timestamp, dataset.rating)
    original = Dataset(dataset.name, dataset.users, dataset.items, dataset.user, dataset.item, dataset.timestamp, dataset.rating)
    assert leave_one_out(moved).content_hash != leave_one_out(original).content_hash


def test_splits_refuse_what_they_cannot_do() -> None:
    short = timed([1, 2], [0, 0])
    with pytest.raises(DataError, match="min_length is 2"):
        leave_one_out(short, 2)
    with pytest.raises(DataError, match="no user of 'timed' has 3 interactions"):
        leave_one_out(short)
    with pytest.raises(DataError, match="do not separate"):
        global_time(timed([5] * 10, [0] * 10))
    with pytest.raises(DataError, match="sum to less than 1"):
        global_time(short, 0.5, 0.5)
    with pytest.raises(DataError, match="no interactions"):
        global_time(short.rows(np.zeros(2, bool)))
