"""What a recommender knows about a batch of users when it ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError


@dataclass(frozen=True, eq=False)
class Histories:
    """What a recommender knows about a batch of B users, with T interactions in all, when it ranks.

    items: jagged dense item ids, oldest first; users: [B] int64 dense user ids, -1 for a user unknown in training.
    timestamps: [T] int64 seconds and ratings: [T] float32 of `items.values`, or None where nobody knows them.
    at: [B] int64 seconds, when the list is asked for, or None. In an evaluation it is the time of the (first) held-out interaction, which
    a served recommender knows as the present moment; a model that reads it says so in its `training`.
    features: interaction features [T] by name, as `features.plain_values` gives them; one that a model knows and this lacks is missing.
    """

    items: Jagged
    users: Ints
    timestamps: Ints | None = None
    ratings: Floats | None = None
    at: Ints | None = None
    features: Mapping[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, values = (len(self.items),), self.items.values.shape
        if self.users.shape != rows:
            raise DataError(f"{len(self.items)} histories but user ids of shape {self.users.shape}; give one id a history")
        for column, given, shape in (
            ("timestamps", self.timestamps, values),
            ("ratings", self.ratings, values),
            ("at", self.at, rows),
            *((f"feature {name!r}", column, values) for name, column in self.features.items()),
        ):
            if given is not None and given.shape != shape:
                raise DataError(f"{column} of histories have shape {given.shape}, expected {shape}")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | NDArray] | NDArray, users: Sequence[int] | Ints | None = None) -> Histories:
        """From lists of dense item ids; unknown users when `users` is left out."""
        known = np.full(len(rows), -1, np.int64) if users is None else np.asarray(users, np.int64)
        return cls(Jagged.from_rows(rows), known)

    @classmethod
    def external(cls, items: Vocabulary, rows: Sequence[Sequence[str]]) -> Histories:
        """From external item ids; raises DataError that names unknown ones, and for a history that is no list."""
        return cls.of([items.encode(r) for r in rows])

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Ints) -> Histories:
        """The given rows [R] int64, in the given order."""
        places = Jagged(np.arange(len(self.items.values)), self.items.offsets).take(rows)
        inside = places.values
        return Histories(
            Jagged(self.items.values[inside], places.offsets),
            self.users[rows],
            None if self.timestamps is None else self.timestamps[inside],
            None if self.ratings is None else self.ratings[inside],
            None if self.at is None else self.at[rows],
            {name: column[inside] for name, column in self.features.items()},
        )

    def slice(self, start: int, stop: int) -> Histories:
        """Rows `start` to `stop` (excluded)."""
        offsets = self.items.offsets[start : min(stop, len(self)) + 1]
        inside = slice(offsets[0], offsets[-1])
        return Histories(
            Jagged(self.items.values[inside], offsets - offsets[0]),
            self.users[start:stop],
            None if self.timestamps is None else self.timestamps[inside],
            None if self.ratings is None else self.ratings[inside],
            None if self.at is None else self.at[start:stop],
            {name: column[inside] for name, column in self.features.items()},
        )
