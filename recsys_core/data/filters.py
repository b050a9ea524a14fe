"""Which interactions count: a threshold of what is liked, and the dense core of a log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset
from recsys_core.errors import DataError


def positives(dataset: Dataset, min_rating: float) -> Dataset:
    """The interactions rated `min_rating` or higher; users and items keep their dense ids, also those left without any.

    Raises DataError when nothing is left.
    """
    if not np.isfinite(min_rating):
        raise DataError(f"min_rating is {min_rating}; it must be a number in the source's own units")
    if dataset.rating is None:
        raise DataError(f"min_rating is {min_rating} but {dataset.name!r} has no rating column; leave min_rating out")
    liked = dataset.rating >= min_rating
    if not liked.any():
        raise DataError(f"min_rating is {min_rating:g}, and no interaction of {dataset.name!r} is rated that high; lower it")
    return dataset.rows(liked, f"{dataset.name}/rating>={min_rating:g}")


def k_core(dataset: Dataset, k: int) -> Dataset:
    """The largest part of a log in which every user and every item has at least `k` interactions (Seidman 1983, on a bipartite graph).

    Users and items below k are dropped, over and over, until none is; the result does not depend on the order of dropping. Both
    vocabularies shrink, what is left keeps its order. An interaction that repeats counts as often as it stands in the log. Raises
    DataError when nothing is left.
    """
    if k < 1:
        raise DataError(f"k_core is {k}; it must be at least 1, the fewest interactions of a user and of an item")
    user, item = dataset.user, dataset.item
    rows = np.arange(len(dataset))
    while True:
        enough_users = np.bincount(user[rows], minlength=len(dataset.users)) >= k
        enough_items = np.bincount(item[rows], minlength=len(dataset.items)) >= k
        kept = rows[enough_users[user[rows]] & enough_items[item[rows]]]
        if len(kept) == len(rows):
            break
        rows = kept
    if not len(rows):
        raise DataError(f"{dataset.name!r} has no {k}-core: no part of it gives every user and item {k} interactions; lower k_core")
    return _shrunk(dataset.rows(rows, f"{dataset.name}/{k}-core"), enough_users, enough_items)


def _shrunk(dataset: Dataset, users: NDArray[np.bool_], items: NDArray[np.bool_]) -> Dataset:
    """The dataset with only some of its users [U] and items [I]; all its interactions must be theirs."""
    user_ids, item_ids = np.flatnonzero(users), np.flatnonzero(items)
    return replace(
        dataset,
        users=dataset.users.take(user_ids),
        items=dataset.items.take(item_ids),
        user=(np.cumsum(users) - 1)[dataset.user],
        item=(np.cumsum(items) - 1)[dataset.item],
        titles=tuple(dataset.titles[i] for i in item_ids) if dataset.titles else (),
        tags=tuple(dataset.tags[i] for i in item_ids) if dataset.tags else (),
        features=dataset.features.of_owners(user_ids, item_ids),
    )
