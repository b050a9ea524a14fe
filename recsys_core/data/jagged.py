"""Rows of unequal length without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


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
    def from_rows(cls, rows: Sequence[Sequence[int] | NDArray] | NDArray, dtype: type = np.int64) -> Jagged:
        """Builds from a list of rows."""
        lengths = [len(r) for r in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        values = np.concatenate([np.asarray(r, dtype) for r in rows]) if len(rows) else np.empty(0, dtype)
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
        chosen = np.asarray(rows, np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Jagged(self.values[np.repeat(self.offsets[:-1][chosen] - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets)

    def distinct(self) -> Jagged:
        """Each row's values (integers, none below 0) once, rising."""
        size = int(self.values.max(initial=0)) + 1
        rows, values = np.divmod(np.unique(self.row_ids * size + self.values), size)
        return Jagged(values, np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(self)))]).astype(np.int64))


def check_rows(what: str, rows: Jagged, users: int, items: int) -> None:
    """Raises DataError unless there is one row a user, of item ids within the catalogue."""
    if len(rows) != users:
        raise DataError(f"{what} have {len(rows)} rows for {users} rows of scores; give one a user")
    values = rows.values
    if len(values) and not (values.min() >= 0 and values.max() < items):
        raise DataError(f"{what} hold item ids {values.min()} .. {values.max()}; the scores cover 0 .. {items - 1}")
