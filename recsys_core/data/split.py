"""Train, validation and test parts of a log, with a hash that says exactly which."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recsys_core.data.dataset import Dataset, Ints, Jagged
from recsys_core.data.histories import Histories
from recsys_core.errors import DataError


@dataclass(frozen=True, eq=False)
class Holdout:
    """Held-out users: what is known of each (`histories`, B rows) and what they did next (`targets`, B rows of at least one item)."""

    histories: Histories
    targets: Jagged

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
    sequences = dataset.sequences()
    rows = [sequences[int(u)] for u in held]
    return Split(
        "leave-one-out",
        dataset.rows(keep, f"{dataset.name}/train"),
        Holdout(Histories.of([r[:-2] for r in rows], held), Jagged.from_rows([r[-2:-1] for r in rows])),
        Holdout(Histories.of([r[:-1] for r in rows], held), Jagged.from_rows([r[-1:] for r in rows])),
    )


def global_time(dataset: Dataset, valid_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cuts the log at two points in time, so nothing learned lies after anything judged.

    The cuts are the timestamps at the quantiles 1 - valid_share - test_share and 1 - test_share. Interactions at or after a cut
    belong to the later part. Users first seen after a cut are kept with an empty history.
    """
    if not (valid_share > 0 and test_share > 0 and valid_share + test_share < 1):
        raise DataError(f"valid_share {valid_share} and test_share {test_share} must be positive and sum to less than 1")
    if not len(dataset):
        raise DataError(f"dataset {dataset.name!r} has no interactions to split")
    times = np.sort(dataset.timestamp)
    cuts = [times[min(int(len(times) * share), len(times) - 1)] for share in (1 - valid_share - test_share, 1 - test_share)]
    train = dataset.timestamp < cuts[0]
    if not train.any() or cuts[0] == cuts[1]:
        raise DataError(f"timestamps of {dataset.name!r} do not separate the parts (cuts at {cuts[0]} and {cuts[1]}); use leave_one_out")

    def holdout(start: int, stop: float) -> Holdout:
        time, sequences = dataset.timestamp[dataset.order], dataset.sequences()
        users, known, targets = [], [], []
        for u in range(len(dataset.users)):
            when, items = time[dataset.offsets[u] : dataset.offsets[u + 1]], sequences[u]
            inside = (when >= start) & (when < stop)
            if inside.any():
                users.append(u)
                known.append(items[when < start])
                targets.append(items[inside])
        return Holdout(Histories.of(known, np.array(users, np.int64)), Jagged.from_rows(targets))

    return Split("global-time", dataset.rows(train, f"{dataset.name}/train"), holdout(cuts[0], cuts[1]), holdout(cuts[1], np.inf))
