"""Train, validation and test parts of a log, with a hash that says exactly which."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recsys_core.data.dataset import Dataset
from recsys_core.data.features import plain_values
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.errors import DataError


@dataclass(frozen=True, eq=False)
class Holdout:
    """Held-out users: what is known of each (`histories`, B rows) and what they did next (`targets`, B rows of at least one item).

    ratings: [T] float32, of the targets' values, or None for a log without ratings.
    """

    histories: Histories
    targets: Jagged
    ratings: Floats | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def users(self) -> Ints:
        """Dense user ids [B] int64."""
        return self.histories.users


@dataclass(frozen=True, eq=False)
class Split:
    """One division of a dataset. Validation histories are the training part; test histories also hold the validation part."""

    name: str
    train: Dataset
    valid: Holdout
    test: Holdout

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the training log and both holdouts."""
        digest = hashlib.sha256(f"{self.name}\x1e{self.train.content_hash}".encode())
        for part in (self.valid, self.test):
            for jagged in (part.histories.items, part.targets):
                digest.update(jagged.values.tobytes() + jagged.offsets.tobytes())
            digest.update(part.users.tobytes())
        return digest.hexdigest()


def leave_one_out(dataset: Dataset, min_length: int = 3) -> Split:
    """Each user's last item is test, the one before it validation; users with fewer than `min_length` interactions stay in training only.

    min_length must be at least 3, so that a held-out user keeps one training item.
    """
    if min_length < 3:
        raise DataError(f"min_length is {min_length}; leave-one-out needs at least 3 so that a held-out user keeps a training item")
    length = np.diff(dataset.offsets)
    held = np.flatnonzero(length >= min_length)
    if not len(held):
        raise DataError(f"no user of {dataset.name!r} has {min_length} interactions; lower min_length or take a denser dataset")
    ends = dataset.offsets[1:][held]
    keep = np.ones(len(dataset), bool)
    keep[dataset.order[ends - 1]] = keep[dataset.order[ends - 2]] = False

    def holdout(last: int) -> Holdout:
        """Holds out the `last` of the items from the end; what comes before it is known."""
        return _holdout(dataset, held, dataset.offsets[held], ends - last, ends - last + 1)

    return Split("leave-one-out", dataset.rows(keep, f"{dataset.name}/train"), holdout(2), holdout(1))


def global_time(dataset: Dataset, valid_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cuts the log at two points in time, so nothing learned lies after anything judged.

    The cuts are the timestamps at the quantiles 1 - valid_share - test_share and 1 - test_share. Interactions at or after a cut
    belong to the later part. Users first seen after a cut are kept with an empty history.
    """
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise DataError(f"valid_share {valid_share} and test_share {test_share} must be positive and sum to less than 1")
    if not len(dataset):
        raise DataError(f"dataset {dataset.name!r} has no interactions to split")
    if not dataset.timed:
        raise DataError(f"dataset {dataset.name!r} knows the order of a user's interactions, not their times; use leave_one_out")
    times = np.sort(dataset.timestamp)
    cuts = [times[min(int(len(times) * share), len(times) - 1)] for share in (1 - valid_share - test_share, 1 - test_share)]
    train = dataset.timestamp < cuts[0]
    if not train.any() or cuts[0] == cuts[1]:
        raise DataError(f"timestamps of {dataset.name!r} do not separate the parts (cuts at {cuts[0]} and {cuts[1]}); use leave_one_out")

    time = dataset.timestamp[dataset.order]
    owner = dataset.user[dataset.order]

    def holdout(start: int, stop: float) -> Holdout:
        """Users with an interaction in [start, stop); what they did before it is known."""
        size = len(dataset.users)
        before = np.bincount(owner[time < start], minlength=size)
        inside = np.bincount(owner[(time >= start) & (time < stop)], minlength=size)
        held = np.flatnonzero(inside)
        first = dataset.offsets[held]
        return _holdout(dataset, held, first, first + before[held], first + before[held] + inside[held])

    return Split("global-time", dataset.rows(train, f"{dataset.name}/train"), holdout(cuts[0], cuts[1]), holdout(cuts[1], np.inf))


def _holdout(dataset: Dataset, held: Ints, first: Ints, cut: Ints, stop: Ints) -> Holdout:
    """Users `held`, each with places first .. cut of `dataset.order` known and cut .. stop to be found."""
    known, wanted = _ranges(first, cut), _ranges(cut, stop)
    rows = dataset.order[known.values]
    histories = Histories(
        Jagged(dataset.item[rows], known.offsets),
        held.astype(np.int64),
        dataset.timestamp[rows] if dataset.timed else None,
        None if dataset.rating is None else dataset.rating[rows],
        dataset.timestamp[dataset.order[cut]] if dataset.timed else None,
        {f.name: plain_values(f)[rows] for f in dataset.features.interaction},
    )
    found = dataset.order[wanted.values]
    return Holdout(histories, Jagged(dataset.item[found], wanted.offsets), None if dataset.rating is None else dataset.rating[found])


def _ranges(start: Ints, stop: Ints) -> Jagged:
    """Row r holds start[r], start[r] + 1, ... stop[r] - 1."""
    offsets = np.concatenate([[0], np.cumsum(stop - start)]).astype(np.int64)
    return Jagged(np.repeat(start - offsets[:-1], stop - start) + np.arange(offsets[-1]), offsets)
