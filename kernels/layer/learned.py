"""What an operator around the attention learns."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor


class Learned(NamedTuple):
    """Of a layer norm of D columns, [D] each, and of the projection of what it gives to C columns: [C, D] and [C]."""

    norm_weight: Tensor
    norm_bias: Tensor
    weight: Tensor
    bias: Tensor

    def check(self, columns: int, rows: int) -> None:
        """Raises ValueError for shapes other than those of D = columns and C = rows."""
        for name, given, shape in zip(self._fields, self, ((columns,), (columns,), (rows, columns), (rows,)), strict=True):
            if given.shape != shape:
                raise ValueError(f"{name} is {list(given.shape)}; from {columns} columns to {rows} it needs the shape {list(shape)}")

    def contiguous(self) -> Self:
        """Row after row."""
        return type(self)(*(x.contiguous() for x in self))


def nothing_learned(learned: Learned) -> tuple[Tensor, ...]:
    """The gradients where there are no tokens."""
    return tuple(torch.zeros_like(x) for x in learned)
