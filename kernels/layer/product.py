# mypy: ignore-errors
"""A tile of a matrix product, for kernels that do something with it before it reaches memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiles(NamedTuple):
    """Sizes of a product's tiles."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int


FULL = Tiles(64, 64, 32, 4, 2)
"""For products of float32 in three passes."""


@triton.jit
def product(
    a, b, rows, columns, height, WIDTH: tl.constexpr,
    INNER: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows [M] of a [height, INNER] times rows `columns` [N] of b [WIDTH, INNER], in float32: [M, N]. Outside: any finite values."""
    inner = tl.arange(0, STEP)
    # A row outside reads the last one instead: loads without a mask are wide and asynchronous.
    a += tl.minimum(rows, height - 1)[:, None].to(tl.int64) * INNER + inner[None, :]
    b += tl.minimum(columns, WIDTH - 1)[None, :].to(tl.int64) * INNER + inner[:, None]
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for start in range(0, INNER, STEP):
        if INNER % STEP:
            left = tl.load(a + start, (start + inner < INNER)[None, :], 0.0)
            right = tl.load(b + start, (start + inner < INNER)[:, None], 0.0)
        else:
            left, right = tl.load(a + start), tl.load(b + start)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


def multiply(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, which may be float32 where a and b are shorter: what the matrix units summed is then not rounded."""
    if a.dtype != dtype == torch.float32 and a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).to(dtype)
