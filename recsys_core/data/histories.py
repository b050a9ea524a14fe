"""What a recommender knows about a batch of users when it ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Ints, Jagged, Vocabulary
from recsys_core.errors import DataError


@dataclass(frozen=True, eq=False)
class Histories:
    """What a recommender knows about a batch of users when it ranks.

    items: jagged dense item ids, oldest first; users: [B] int64 dense user ids, -1 for a user unknown in training.
    """

    items: Jagged
    users: Ints

    def __post_init__(self) -> None:
        if self.users.shape != (len(self.items),):
            raise DataError(f"{len(self.items)} histories but user ids of shape {self.users.shape}; give one id a history")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | NDArray], users: Sequence[int] | Ints | None = None) -> Histories:
        """From lists of dense item ids; unknown users when `users` is left out."""
        known = np.full(len(rows), -1, np.int64) if users is None else np.asarray(users, np.int64)
        return cls(Jagged.from_rows(rows), known)

    @classmethod
    def external(cls, items: Vocabulary, rows: Sequence[Sequence[str]]) -> Histories:
        """From external item ids; raises DataError that names unknown ones."""
        return cls.of([items.encode(list(r)) for r in rows])

    def __len__(self) -> int:
        return len(self.items)

    def slice(self, start: int, stop: int) -> Histories:
        """Rows `start` to `stop` (excluded)."""
        return Histories(self.items.take(range(start, min(stop, len(self)))), self.users[start:stop])
