"""The interaction log every part reads: immutable columns, vocabularies, item text and a content hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recsys_core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Vocabulary:
    """A bijection between external ids (strings) and dense ids `0 .. len - 1`."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self._index = {external: dense for dense, external in enumerate(self.ids)}
        if len(self._index) != len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"id {twice!r} occurs twice in a vocabulary; external ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, external: object) -> bool:
        return external in self._index

    def encode(self, external: Sequence[str]) -> Ints:
        """Dense ids [N] int64 of external ids; raises DataError that names the unknown ones."""
        unknown = [e for e in external if e not in self._index]
        if unknown:
            shown = ", ".join(repr(u) for u in unknown[:5])
            raise DataError(f"{len(unknown)} unknown id(s): {shown}; the vocabulary has {len(self)} ids, such as {self.ids[:3]}")
        return np.fromiter((self._index[e] for e in external), np.int64, len(external))

    def decode(self, dense: Iterable[int]) -> list[str]:
        """External ids of dense ids."""
        return [self.ids[int(d)] for d in dense]


@dataclass(frozen=True, eq=False)
class Jagged:
    """Rows of unequal length: row `r` is `values[offsets[r]:offsets[r + 1]]`.

    values: [T]; offsets: [R + 1] int64, first 0, last T, never decreasing.
    """

    values: NDArray
    offsets: Ints

    def __post_init__(self) -> None:
        o = self.offsets
        if o.ndim != 1 or len(o) == 0 or o[0] != 0 or o[-1] != len(self.values) or (np.diff(o) < 0).any():
            raise DataError(f"offsets must rise from 0 to {len(self.values)} (the number of values), got {o[:3]} .. {o[-3:]}")

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | NDArray], dtype: type = np.int64) -> Jagged:
        """Builds from a list of rows."""
        lengths = [len(r) for r in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        values = np.concatenate([np.asarray(r, dtype) for r in rows]) if rows else np.empty(0, dtype)
        return cls(values.astype(dtype, copy=False), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} outside 0 .. {len(self) - 1}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Ints:
        """Row lengths [R] int64."""
        return np.diff(self.offsets)

    @property
    def row_ids(self) -> Ints:
        """The row of each value [T] int64."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def take(self, rows: Sequence[int] | Ints) -> Jagged:
        """The given rows, in the given order."""
        return Jagged.from_rows([self[int(r)] for r in rows], self.values.dtype.type)


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


@dataclass(frozen=True, eq=False)
class Dataset:
    """An interaction log.

    user, item: [T] int64 dense ids; timestamp: [T] int64 seconds; rating: [T] float32 in the source's own units, or None.
    titles: [I] one line of text an item; tags: [I] genres or categories an item.
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
    tie_rule: str = "file-order"
    provenance: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        columns = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        if self.rating is not None:
            columns["rating"] = self.rating  # type: ignore[assignment]
        for column, values in columns.items():
            if values.shape != self.user.shape or values.ndim != 1:
                raise DataError(f"column {column} has shape {values.shape}, user has {self.user.shape}; columns must be equally long")
            values.setflags(write=False)
        for column, size in (("user", len(self.users)), ("item", len(self.items))):
            values = columns[column]
            if len(values) and not (values.min() >= 0 and values.max() < size):
                raise DataError(f"column {column} holds ids {values.min()} .. {values.max()}, the vocabulary allows 0 .. {size - 1}")
        for texts, what in ((self.titles, "titles"), (self.tags, "tags")):
            if texts and len(texts) != len(self.items):
                raise DataError(f"{len(texts)} {what} for {len(self.items)} items; give one an item or none")
        if not re.fullmatch(r"file-order|shuffled:[0-9]{1,18}", self.tie_rule):
            raise DataError(f"tie_rule {self.tie_rule!r} is not 'file-order' or 'shuffled:SEED'")

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        sizes = f"users={len(self.users)}, items={len(self.items)}, interactions={len(self)}"
        return f"Dataset({self.name!r}, {sizes}, hash={self.content_hash[:12]})"

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over everything that can change a number: columns, vocabularies, item text and the tie rule."""
        digest = hashlib.sha256()
        for column in (self.user, self.item, self.timestamp, self.rating):
            digest.update(b"-" if column is None else f"{column.dtype}[{len(column)}]".encode() + column.tobytes())
        # JSON keeps ("a", "b") apart from ("ab",) and no titles apart from empty ones, whatever the texts hold.
        digest.update(json.dumps([self.users.ids, self.items.ids, self.titles, self.tags, self.tie_rule]).encode())
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

    def rows(self, keep: NDArray, name: str | None = None) -> Dataset:
        """The dataset with only some rows (a boolean mask or row indices [*]); vocabularies stay, so dense ids keep their meaning."""
        return self._replace_rows(
            self.user[keep], self.item[keep], self.timestamp[keep], None if self.rating is None else self.rating[keep], name
        )

    def append(self, user: Ints, item: Ints, timestamp: Ints, rating: Floats | None, name: str) -> Dataset:
        """The dataset with further interactions behind the present ones; this one is unchanged."""
        if (rating is None) != (self.rating is None):
            mine, theirs = ("has", "lack") if rating is None else ("lacks", "have")
            raise DataError(f"dataset {self.name!r} {mine} ratings and the appended rows {theirs} them; give both or neither")
        joined = None if self.rating is None or rating is None else np.concatenate([self.rating, rating.astype(np.float32)])
        return self._replace_rows(
            np.concatenate([self.user, user]), np.concatenate([self.item, item]), np.concatenate([self.timestamp, timestamp]), joined, name
        )

    def _replace_rows(self, user: Ints, item: Ints, timestamp: Ints, rating: Floats | None, name: str | None) -> Dataset:
        return Dataset(
            name or self.name, self.users, self.items, user.astype(np.int64), item.astype(np.int64), timestamp.astype(np.int64),
            rating, self.titles, self.tags, self.tie_rule, self.provenance,
        )  # fmt: skip
