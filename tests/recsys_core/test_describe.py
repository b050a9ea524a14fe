"""What `describe` counts, against counting by hand."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import logs

from recsys_core.data import Category, Dataset, Features, Jagged, Number, Tags, Vocabulary, describe, gini
from recsys_core.data.describe import histogram, top_share


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_is_its_definition(counts: list[int]) -> None:
    x = np.array(counts)
    pairs = np.abs(x[:, None] - x[None, :]).sum() / 2
    expected = pairs / (len(x) * x.sum()) if x.sum() else 0.0
    assert gini(x) == pytest.approx(expected)


@given(st.lists(st.integers(0, 5000), max_size=30))
def test_a_histogram_holds_every_count_once(counts: list[int]) -> None:
    bins = histogram(np.array(counts, np.int64))
    assert [b["count"] for b in bins] == [sum(b["low"] <= c <= b["high"] for c in counts) for b in bins]
    assert sum(b["count"] for b in bins) == len(counts)
    assert all(after["low"] == before["high"] + 1 for before, after in pairwise(bins))
    assert not bins or bins[0]["count"] > 0 < bins[-1]["count"]


@given(logs())
def test_ties_are_counted_as_by_hand(dataset: Dataset) -> None:
    times = defaultdict(list)
    for user, time in zip(dataset.user.tolist(), dataset.timestamp.tolist(), strict=True):
        times[user].append(time)
    histories = [sorted(t) for t in times.values()]
    pairs = [a == b for t in histories for a, b in pairwise(t)]
    last = [t[-1] == t[-2] for t in histories if len(t) > 1]
    facts = describe(dataset)["ties"]
    assert facts["interactions"] == pytest.approx(np.mean(pairs) if pairs else 0)
    assert facts["last"] == pytest.approx(np.mean(last) if last else 0)


@given(logs())
def test_sizes_and_shares_are_counted_as_by_hand(dataset: Dataset) -> None:
    facts = describe(dataset)
    popular = [count for _, count in Counter(dataset.item.tolist()).most_common()]
    assert facts["density"] == pytest.approx(len(dataset) / len(dataset.users) / len(dataset.items))
    # Of at most 6 items, 1% and 10% are one.
    assert facts["popularity_share"] == {"top 1%": popular[0] / len(dataset), "top 10%": popular[0] / len(dataset)}
    assert facts["item_popularity"]["mean"] == pytest.approx(len(dataset) / len(dataset.items))
    assert json.loads(json.dumps(facts)) == facts


def test_the_share_of_the_top_ten_percent() -> None:
    counts = np.array([1] * 18 + [40, 42])
    assert top_share(counts, 0.1) == 0.82
    assert top_share(counts, 1.0) == 1.0
    assert top_share(np.zeros(3), 0.1) == 0.0


def log(**more: object) -> Dataset:
    vocabularies = Vocabulary(["u1", "u2"]), Vocabulary("ab")
    return Dataset("small", *vocabularies, np.array([0, 1, 0]), np.array([0, 1, 1]), np.array([10, 20, 30]), **more)  # type: ignore[arg-type]


def test_features_tell_coverage_and_values() -> None:
    age = Number("age", np.array([20, np.nan], np.float32))
    kind = Category("kind", Vocabulary(["x", "y"]), np.array([1, -1]))
    topics = Tags("topics", Vocabulary("pq"), Jagged.from_rows([[1, 0, 1], []]))
    facts = describe(log(features=Features((age,), (kind, topics)), tags=(("t",), ()), titles=("A", "B")))
    assert facts["features"] == [
        {"owner": "user", "name": "age", "kind": "number", "coverage": 0.5, "values": {"min": 20.0, "median": 20.0, "max": 20.0}},
        {"owner": "item", "name": "kind", "kind": "category", "coverage": 0.5, "values": {"distinct": 2, "most common": ["y", "x"]}},
        {"owner": "item", "name": "topics", "kind": "tags", "coverage": 0.5, "values": {"distinct": 2, "most common": ["q", "p"]}},
    ]
    assert facts["text"] == {"titles": True, "tags": 0.5}


def test_time_of_timed_untimed_and_empty_logs() -> None:
    facts = describe(log())
    assert facts["density"] == 0.75
    assert facts["time"] == {"first": "1970-01-01T00:00:10Z", "last": "1970-01-01T00:00:30Z", "days": 0.0}
    untimed = describe(log(timed=False))
    assert (untimed["timed"], untimed["time"]) == (False, None)
    empty = describe(log().rows(np.zeros(3, bool)))
    assert (empty["interactions"], empty["time"], empty["popularity_gini"]) == (0, None, 0.0)
    assert json.loads(json.dumps(empty)) == empty
