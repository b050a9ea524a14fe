# mypy: ignore-errors
"""Sums over all tokens in two steps, whose order is fixed: each program of a kernel writes its own, and `totals` adds them up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.layer.plan import cdiv

_ROWS, _COLUMNS, _WARPS = 512, 32, 8
"""Of a tile at most: enough that few waits for memory follow each other."""


def totals(
    first: Tensor, first_like: tuple[Tensor, ...], second: Tensor | None = None, second_like: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """The sums over programs of first [P, N] float32, cut into one or two tensors shaped and typed as `first_like`, N elements in all.

    Those of second [Q, M] follow them, from the same launch.
    """
    found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (*first_like, *second_like)]
    a, c = found[0], found[len(first_like)] if second is not None else found[0]
    b, d = found[len(first_like) - 1], found[-1]
    other = first if second is None else second
    rows = min(_ROWS, 1 << (max(first.shape[0], other.shape[0]) - 1).bit_length())
    columns = max(1024 // rows, min(_COLUMNS, 8192 // rows))
    blocks = cdiv(first.shape[1], columns)
    more = 0 if second is None else cdiv(second.shape[1], columns)
    launch(
        _total, blocks + more, first, a, b, first.shape[0], a.numel(), first.shape[1],
        other, c, d, other.shape[0], c.numel(), other.shape[1],
        blocks, COLUMNS=columns, ROWS=rows, num_warps=_WARPS,
    )  # fmt: skip
    return tuple(found)


_SIZES = ["programs", "middle", "end", "programs_2", "middle_2", "end_2", "blocks"]


@triton.jit(do_not_specialize=_SIZES)
def _total(
    partial, a, b, programs, middle, end, partial_2, c, d, programs_2, middle_2, end_2, blocks, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    if tl.program_id(0) < blocks:
        _sum(partial, a, b, programs, middle, end, tl.program_id(0), COLUMNS, ROWS)
    else:
        _sum(partial_2, c, d, programs_2, middle_2, end_2, tl.program_id(0) - blocks, COLUMNS, ROWS)


@triton.jit
def _sum(partial, a, b, programs, middle, end, block, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Columns before `middle` go to a, the others to b."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < programs)[:, None] & (column < end)[None, :]
        total += tl.load(partial + row[:, None].to(tl.int64) * end + column[None, :], inside, 0.0)
    sums = tl.sum(total, 0)
    tl.store(a + column, sums.to(a.dtype.element_ty), column < middle)
    tl.store(b + column - middle, sums.to(b.dtype.element_ty), (column >= middle) & (column < end))
