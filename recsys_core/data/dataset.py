"""The interaction log every part reads: immutable columns, vocabularies, item text and a content hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.features import Features
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError


def _shuffle_key(seed: int, user: Ints, item: Ints) -> NDArray[np.uint64]:
    """A pseudo-random key [T] a row, by one round of SplitMix64 (Steele et al. 2014) a column.

    It depends on what a row says and not on where it stands, so any part of a log orders its ties as the whole does.
    """
    key = np.full(len(user), seed, np.uint64)
    for column in (user, item):
        key = (key ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return key


def _whole(column: str, values: NDArray) -> Ints:
    """A column as int64; raises DataError for one that holds no whole numbers by its type."""
    found = np.asarray(values)
    if not np.issubdtype(found.dtype, np.integer):
        raise DataError(f"column {column} is of type {found.dtype}, which may hold what is no whole number; give it as int64")
    return found.astype(np.int64, copy=False)


def _finite(rating: NDArray) -> Floats:
    """Ratings as float32; raises DataError that names the first one that is not finite."""
    with np.errstate(over="ignore"):
        found = np.asarray(rating).astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        row = int(np.isfinite(found).argmin())
        raise DataError(f"column rating holds {np.asarray(rating)[row]} in row {row}; give finite ratings, and leave out rows without one")
    return found


def item_text(title: str, tags: Sequence[str]) -> str:
    """A title and tags as one text, the same for items of a log and for those that come later."""
    return f"{title}. {', '.join(tags)}" if tags else title


@dataclass(frozen=True, eq=False)
class Dataset:
    """An interaction log.

    user, item: [T] int64 dense ids; timestamp: [T] int64 seconds since 1970, or, if not `timed`, numbers that say the order of a user's
    interactions and nothing else; rating: [T] float32 in the source's own units, finite, or None. Whole numbers and ratings given in other
    types become these.
    titles: [I] one line of text an item; tags: [I] genres or categories an item; features: what else is known, for models to read.
    tie_rule: how equal timestamps of one user are ordered, `file-order` or `shuffled:SEED`; part of the hash, since
    it changes which item is a user's last.
    """

    name: str
    users: Vocabulary
    items: Vocabulary
    user: Ints
    item: Ints
    timestamp: Ints
    rating: Floats | None = None
    titles: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()
    features: Features = field(default_factory=Features)
    tie_rule: str = "file-order"
    timed: bool = True
    provenance: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        columns: dict[str, NDArray] = {name: _whole(name, getattr(self, name)) for name in ("user", "item", "timestamp")}
        if self.rating is not None:
            columns["rating"] = _finite(self.rating)
        for column, values in columns.items():
            if values.shape != columns["user"].shape or values.ndim != 1:
                raise DataError(f"column {column} has shape {values.shape}, user has {columns['user'].shape}; columns must be equally long")
            values.setflags(write=False)
            object.__setattr__(self, column, values)
        for column, size in (("user", len(self.users)), ("item", len(self.items))):
            values = columns[column]
            if len(values) and not (values.min() >= 0 and values.max() < size):
                raise DataError(f"column {column} holds ids {values.min()} .. {values.max()}, the vocabulary allows 0 .. {size - 1}")
        for texts, what in ((self.titles, "titles"), (self.tags, "tags")):
            if texts and len(texts) != len(self.items):
                raise DataError(f"{len(texts)} {what} for {len(self.items)} items; give one an item or none")
        self.features.check(len(self.users), len(self.items), len(self.user))
        if not re.fullmatch(r"file-order|shuffled:[0-9]{1,18}", self.tie_rule):
            raise DataError(f"tie_rule {self.tie_rule!r} is not 'file-order' or 'shuffled:SEED'")

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        sizes = f"users={len(self.users)}, items={len(self.items)}, interactions={len(self)}"
        return f"Dataset({self.name!r}, {sizes}, hash={self.content_hash[:12]})"

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over everything that can change a number: columns, vocabularies, item text, features, tie rule, timed or not."""
        digest = hashlib.sha256()
        for column in (self.user, self.item, self.timestamp, self.rating):
            digest.update(b"-" if column is None else f"{column.dtype}[{len(column)}]".encode() + column.tobytes())
        # JSON keeps ("a", "b") apart from ("ab",) and no titles apart from empty ones, whatever the texts hold.
        digest.update(json.dumps([self.users.ids, self.items.ids, self.titles, self.tags, self.tie_rule, self.timed]).encode())
        self.features.update(digest)
        return digest.hexdigest()

    @cached_property
    def order(self) -> Ints:
        """Row indices [T] sorted by user, then timestamp; ties by the tie rule. A stable sort, so file order survives."""
        if self.tie_rule == "file-order":
            return np.lexsort((self.timestamp, self.user)).astype(np.int64)
        tie = _shuffle_key(int(self.tie_rule.removeprefix("shuffled:")), self.user, self.item)
        return np.lexsort((tie, self.timestamp, self.user)).astype(np.int64)

    @cached_property
    def offsets(self) -> Ints:
        """Row bounds [U + 1] of each user inside `order`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=len(self.users)))]).astype(np.int64)

    def sequences(self) -> Jagged:
        """Every user's items in time order: values [T] int64 dense item ids, offsets [U + 1]."""
        return Jagged(self.item[self.order], self.offsets)

    @cached_property
    def item_counts(self) -> Ints:
        """Interactions an item [I] int64."""
        return np.bincount(self.item, minlength=len(self.items)).astype(np.int64)

    def title(self, item: int) -> str:
        """One line of text for a dense item id; the external id where the source has no titles."""
        return self.titles[item] if self.titles else self.items.ids[item]

    def text(self, item: int) -> str:
        """What a language model reads of a dense item id: its title, and its tags behind it."""
        return item_text(self.title(item), self.tags[item] if self.tags else ())

    def rows(self, keep: NDArray, name: str | None = None) -> Dataset:
        """The dataset with only some rows (a boolean mask or row indices [*]); vocabularies stay, so dense ids keep their meaning."""
        kept = np.arange(len(self))[keep]
        return replace(
            self, name=name or self.name, user=self.user[kept], item=self.item[kept], timestamp=self.timestamp[kept],
            rating=None if self.rating is None else self.rating[kept], features=self.features.of_interactions(kept),
        )  # fmt: skip

    def append(self, user: Ints, item: Ints, timestamp: Ints, rating: Floats | None, name: str) -> Dataset:
        """The dataset with further interactions behind the present ones, their own features missing; this one is unchanged."""
        if (rating is None) != (self.rating is None):
            mine, theirs = ("has", "lack") if rating is None else ("lacks", "have")
            raise DataError(f"dataset {self.name!r} {mine} ratings and the appended rows {theirs} them; give both or neither")
        joined = None if self.rating is None or rating is None else np.concatenate([self.rating, rating.astype(np.float32)])
        return replace(
            self, name=name, user=np.concatenate([self.user, user]), item=np.concatenate([self.item, item]),
            timestamp=np.concatenate([self.timestamp, timestamp]), rating=joined,
            features=self.features.of_interactions(np.concatenate([np.arange(len(self)), np.full(len(user), -1)])),
        )  # fmt: skip
