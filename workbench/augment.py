"""Synthesized interactions as training data, and the controls without which a gain means nothing.

An arm is a training log: the original one, or the original one plus the same number of interactions a user from some source. The sources
are what the agents took (`synthesized`), items drawn by popularity (`popularity`), and items drawn blindly from what the agents were
shown (`shown`). Only if `synthesized` beats both has the agents' choice added anything: to a popularity prior, and to the recommender's
own lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.seeding import stream
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError
from simulators.events import PageRecord

ARMS = ("none", "popularity", "shown", "synthesized")


@dataclass(frozen=True, eq=False)
class Additions:
    """Interactions to add: user, item [N] int64 dense ids, in each user's order of taking them; rating [N] float32."""

    user: Ints
    item: Ints
    rating: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)

    def counts(self) -> dict[int, int]:
        """Interactions a user."""
        users, counts = np.unique(self.user, return_counts=True)
        return dict(zip(users.tolist(), counts.tolist(), strict=True))


def from_pages(pages: Sequence[PageRecord]) -> Additions:
    """What agents took, once an item and user. Pages that a fallback decided are left out: they are not the policy's."""
    taken: dict[tuple[int, int], float] = {}
    for page in sorted(pages, key=lambda p: (p.user, p.page)):
        if not page.fallback:
            for action in page.actions:
                taken.setdefault((page.user, action.item), action.rating)
    users, items = (np.array([key[n] for key in taken], np.int64) for n in (0, 1))
    return Additions(users, items, np.array(list(taken.values()), np.float32))


def popularity_control(train: Dataset, additions: Additions, seed: int) -> Additions:
    """As many unseen items a user, drawn without replacement by training popularity, with the same ratings in random order."""
    sequences = train.sequences()

    def draw(user: int, count: int, rng: np.random.Generator) -> NDArray:
        weight = train.item_counts.astype(float)
        weight[sequences[user]] = 0
        open_ = int((weight > 0).sum())
        if open_ < count:
            raise DataError(f"user {train.users.ids[user]!r} has {open_} unseen items in the log; cannot draw {count} by popularity")
        return rng.choice(len(weight), count, replace=False, p=weight / weight.sum())

    return _control(additions, draw, seed, "popularity")


def shown_control(pages: Sequence[PageRecord], additions: Additions, seed: int) -> Additions:
    """As many items a user, drawn blindly from those shown, with the same ratings in random order."""
    shown: dict[int, list[int]] = {}
    for page in sorted(pages, key=lambda p: (p.user, p.page)):
        shown.setdefault(page.user, []).extend(e.item for e in page.exposures)

    def draw(user: int, count: int, rng: np.random.Generator) -> NDArray:
        return rng.choice(np.unique(shown[user]), count, replace=False)

    return _control(additions, draw, seed, "shown")


def extend(train: Dataset, additions: Additions, arm: str) -> Dataset:
    """The training log with the additions behind each user's last interaction, one second apart, in order."""
    last = np.zeros(len(train.users), np.int64)
    np.maximum.at(last, train.user, train.timestamp)
    order = np.argsort(additions.user, kind="stable")
    user, item, rating = additions.user[order], additions.item[order], additions.rating[order]
    starts = np.searchsorted(user, user)
    timestamp = last[user] + 1 + np.arange(len(user)) - starts
    return train.append(user, item, timestamp, None if train.rating is None else rating, f"{train.name}+{arm}")


def build_arms(train: Dataset, pages: Sequence[PageRecord], seed: int) -> dict[str, Dataset]:
    """The training log of every arm in `ARMS`. Each differs from the first by the same number of interactions a user."""
    additions = from_pages(pages)
    if not len(additions):
        raise DataError(
            "the simulation holds no interactions to train on; raise agents or pages, or see its calls with: workbench runs RUN"
        )
    sources = {
        "popularity": popularity_control(train, additions, seed),
        "shown": shown_control(pages, additions, seed),
        "synthesized": additions,
    }
    return {"none": train, **{arm: extend(train, source, arm) for arm, source in sources.items()}}


def _control(additions: Additions, draw: Callable[[int, int, np.random.Generator], NDArray], seed: int, name: str) -> Additions:
    users, items, ratings = [], [], []
    for user, count in additions.counts().items():
        rng = stream(seed, "control", name, user)
        users.append(np.full(count, user, np.int64))
        items.append(np.asarray(draw(user, count, rng), np.int64))
        ratings.append(rng.permutation(additions.rating[additions.user == user]))
    return Additions(np.concatenate(users), np.concatenate(items), np.concatenate(ratings).astype(np.float32))
