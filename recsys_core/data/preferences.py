"""Pairs of items of which a user prefers one: what a ranking teaches beyond which items were taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys_core.data.jagged import Floats, Ints
from recsys_core.errors import DataError


@dataclass(frozen=True, eq=False)
class Preferences:
    """N pairs. user, item, other: [N] int64 dense ids, item being preferred to other; weight: [N] float32, 1 counts as an interaction does.

    Raises DataError for columns of different lengths, an item that is preferred to itself, and weights that are not finite and above 0.
    """

    user: Ints
    item: Ints
    other: Ints
    weight: Floats

    def __post_init__(self) -> None:
        shapes = [column.shape for column in (self.user, self.item, self.other, self.weight)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise DataError(f"columns of preferences have the shapes {shapes}; give four of one length")
        if (self.item == self.other).any():
            raise DataError(f"item {int(self.item[self.item == self.other][0])} is preferred to itself; leave such pairs out")
        if not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise DataError("a weight of preferences is not a finite number above 0; leave pairs without weight out")

    def __len__(self) -> int:
        return len(self.user)

    def check(self, users: int, items: int) -> None:
        """Raises DataError for ids outside a log of so many users and items."""
        for name, column, size in (("user", self.user, users), ("item", self.item, items), ("other", self.other, items)):
            if len(column) and not (column.min() >= 0 and column.max() < size):
                raise DataError(f"{name} of preferences holds ids {column.min()} .. {column.max()}, the log knows 0 .. {size - 1}")
