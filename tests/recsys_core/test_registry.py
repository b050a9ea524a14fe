"""Registered datasets, and the filters that every dataset can be put through."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import logs

from recsys_core import assets
from recsys_core.data import (
    Category,
    Columns,
    Dataset,
    FeatureColumns,
    Features,
    Number,
    Vocabulary,
    global_time,
    k_core,
    known_datasets,
    leave_one_out,
    load_dataset,
    positives,
)
from recsys_core.errors import DataError, UnavailableError


def external(dataset: Dataset) -> list[tuple[str, str, int]]:
    users, items = dataset.users.decode(dataset.user), dataset.items.decode(dataset.item)
    return list(zip(users, items, dataset.timestamp.tolist(), strict=True))


def peeled(rows: list[tuple[str, str, int]], k: int) -> list[tuple[str, str, int]]:
    """The k-core by the book: takes away one user or item at a time, whichever is found first."""
    while True:
        users, items = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
        poor = next(((0, u) for u, n in users.items() if n < k), None) or next(((1, i) for i, n in items.items() if n < k), None)
        if poor is None:
            return rows
        rows = [r for r in rows if r[poor[0]] != poor[1]]


@given(logs(), st.integers(1, 6))
def test_a_k_core_is_a_fixed_point_and_the_largest(dataset: Dataset, k: int) -> None:
    expected = peeled(external(dataset), k)
    if not expected:
        with pytest.raises(DataError, match=f"no {k}-core"):
            k_core(dataset, k)
        return
    kept = k_core(dataset, k)
    assert external(kept) == expected
    assert set(kept.users.ids) == {r[0] for r in expected}
    assert set(kept.items.ids) == {r[1] for r in expected}
    assert np.bincount(kept.user).min() >= k
    assert kept.item_counts.min() >= k
    assert k_core(kept, k).content_hash == kept.content_hash
    assert kept.tie_rule == dataset.tie_rule


@given(logs(), st.integers(1, 4))
def test_a_k_core_keeps_what_belongs_to_a_user_and_an_item(dataset: Dataset, k: int) -> None:
    """Titles, tags and features move with their owners: each is made to name its owner, and must still do so."""
    users, items = dataset.users, dataset.items
    features = Features(
        (Category("id", users, np.arange(len(users))),),
        (Number("id", np.arange(len(items), dtype=np.float32)),),
        (Category("user", users, dataset.user.copy()),),
    )
    tags = tuple((i,) for i in items.ids)
    told = replace(dataset, titles=items.ids, tags=tags, features=features)
    try:
        kept = k_core(told, k)
    except DataError:
        return
    (user,), (item,), (interaction,) = kept.features.user, kept.features.item, kept.features.interaction
    assert kept.titles == kept.items.ids == tuple(t for (t,) in kept.tags)
    assert isinstance(user, Category)
    assert isinstance(item, Number)
    assert isinstance(interaction, Category)
    assert user.vocabulary.decode(user.codes) == list(kept.users.ids)
    assert items.decode(item.values.astype(np.int64)) == list(kept.items.ids)
    assert users.decode(interaction.codes) == kept.users.decode(kept.user)


def test_filters_apply_in_order_and_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    lines = [
        "user,item,timestamp,rating",
        *(f"u{u},i{i},1,{5 if (u + i) % 3 else 1}" for u in range(4) for i in range(4)),
        "u9,i0,1,5",
        "u9,i1,1,1",
    ]
    path.write_text("\n".join(lines) + "\n")
    both = load_dataset(path, min_rating=4, k_core=2, tie_rule="shuffled:7")
    assert both.name == "log/rating>=4/2-core/shuffled:7"
    assert both.content_hash == replace(k_core(positives(load_dataset(path), 4), 2), tie_rule="shuffled:7").content_hash
    assert "u9" not in both.users
    other_order = positives(k_core(load_dataset(path), 2), 4)
    assert other_order.content_hash != replace(both, tie_rule="file-order").content_hash
    hashes = {load_dataset(path, **f).content_hash for f in ({}, {"min_rating": 4}, {"k_core": 3}, {"tie_rule": "shuffled:7"})}  # type: ignore[arg-type]
    assert len(hashes) == 4
    with pytest.raises(DataError, match="k_core is 0"):
        load_dataset(path, k_core=0)
    with pytest.raises(DataError, match=r"has no 9-core.*lower k_core"):
        load_dataset(path, k_core=9)
    with pytest.raises(DataError, match="min_rating is nan"):
        load_dataset(path, min_rating=float("nan"))


def test_a_named_dataset_declares_its_columns_itself() -> None:
    with pytest.raises(DataError, match="columns and features cannot be given for 'ml-100k'"):
        load_dataset("ml-100k", columns=Columns(), features=FeatureColumns())


def test_an_untimed_log_has_an_order_and_no_times() -> None:
    user, item, place = np.array([0] * 4), np.array([3, 1, 0, 2]), np.array([0, 1, 2, 3])
    log = Dataset("order", Vocabulary("u"), Vocabulary("abcd"), user, item, place, timed=False)
    assert log.content_hash != replace(log, timed=True).content_hash
    assert log.rows(np.arange(2)).timed is False
    split = leave_one_out(log)
    assert split.test.targets[0].tolist() == [2]
    for part in (split.valid, split.test):
        assert part.histories.timestamps is None
        assert part.histories.at is None
    with pytest.raises(DataError, match="not their times; use leave_one_out"):
        global_time(log)


def test_every_name_has_an_asset_and_a_description() -> None:
    assert set(known_datasets()) == {
        "ml-100k", "ml-1m", "ml-20m", "ml-latest-small", "amazon-beauty", "amazon-sports", "amazon-toys",
        "beauty-s3rec", "ml-1m-sequences", "agent4rec-ml-1m",
    }  # fmt: skip
    assert all(assets.assets()[name].licence for name in known_datasets())
    assert "leaks" in known_datasets()["beauty-s3rec"]
    assert "not for accuracy" in known_datasets()["ml-1m-sequences"]


def at_hand(name: str) -> Dataset:
    """A named dataset; skips, with what was tried, where it is not on this machine and nobody offers it."""
    try:
        return load_dataset(name)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "timed"),
    [
        ("beauty-s3rec", 22_363, 12_101, 198_502, False),
        ("ml-1m-sequences", 6_040, 3_416, 987_019, False),
        ("ml-latest-small", 610, 9_724, 100_836, True),
        ("agent4rec-ml-1m", 1_000, 3_292, 185_249, False),
        ("ml-100k", 943, 1_682, 100_000, True),
    ],
)
def test_datasets_at_hand_are_the_published_ones(name: str, users: int, items: int, interactions: int, timed: bool) -> None:
    dataset = at_hand(name)
    assert (len(dataset.users), len(dataset.items), len(dataset), dataset.timed) == (users, items, interactions, timed)
    assert all(len(f) == items for f in dataset.features.item)


def test_beauty_has_titles_and_keeps_the_order_of_its_lines() -> None:
    dataset = at_hand("beauty-s3rec")
    assert dataset.items.decode(dataset.sequences()[0]) == ["1", "2", "3", "4", "5"]
    assert dataset.titles[0].startswith("OPI Nail Lacquer")
    assert dataset.tags[0] == ("Beauty", "Makeup", "Nails", "Nail Polish")
    (categories,) = dataset.features.item
    assert [categories.vocabulary.ids[c] for c in categories.codes[0]] == list(dataset.tags[0])  # type: ignore[union-attr, index]


def test_films_have_features_of_users_and_items() -> None:
    dataset = at_hand("ml-100k")
    age, gender, occupation = dataset.features.user
    genres, year = dataset.features.item
    assert isinstance(age, Number)
    assert isinstance(gender, Category)
    assert isinstance(occupation, Category)
    assert isinstance(year, Number)
    # The first line of the official u.user: 1|24|M|technician|85711.
    assert (age.values[0], gender.vocabulary.ids[gender.codes[0]], occupation.vocabulary.ids[occupation.codes[0]]) == (
        24,
        "M",
        "technician",
    )
    assert (len(occupation.vocabulary), year.values[0], int(np.isnan(year.values).sum())) == (21, 1995, 1)
    assert [genres.vocabulary.ids[c] for c in genres.codes[0]] == ["Animation", "Children's", "Comedy"]  # type: ignore[union-attr, index]
