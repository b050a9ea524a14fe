# mypy: ignore-errors
"""float32 tables as two float16 pieces each, whose products the matrix units take.

A number is its float16 rounding and what that leaves, again rounded: 22 bits. Three products of pieces then give what a float32 product
does, the fourth being below its last bit, at a third of the rate of float16 (as Ootomo & Yokota 2022, arXiv 2203.03341). A float32 product
has no matrix instruction, and tf32 takes three products of half that rate and no operand in the layout of the backward. So that the pieces
stay within float16's exponents, a table is scaled to a largest number of about 2 ** 13 first: what is 2 ** 16 times smaller keeps all bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch

SMALL = tl.constexpr(1e-30)
_ROOM = 4096


@triton.jit
def magnified(size):
    """The power of two that a table is multiplied by whose largest number is at `size`."""
    return tl.exp2(13 - tl.ceil(tl.log2(tl.maximum(tl.load(size), SMALL))))


@triton.jit(do_not_specialize=["count"])
def _pieces(table, size, out, count, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BD)
    real = (row < count)[:, None]
    numbers = tl.load(table + row[:, None] * D + column[None, :], real & (column < D)[None, :], 0.0) * magnified(size)
    high = numbers.to(tl.float16)
    places = out + row[:, None] * (2 * BD) + column[None, :]
    tl.store(places, high, real)
    tl.store(places + BD, (numbers - high.to(tl.float32)).to(tl.float16), real)


def pieces(table: Tensor) -> tuple[Tensor, Tensor | None]:
    """The two pieces [count, 2, width] of a float32 table [count, D], padded with zeros, and its largest size []; others as they are."""
    if table.dtype != torch.float32:
        return table, None
    count, dim = table.shape
    width = max(triton.next_power_of_2(dim), 16)
    size = torch.linalg.vector_norm(table, torch.inf)
    out = table.new_empty(count, 2, width, dtype=torch.float16)
    rows = max(_ROOM // width, 1)
    launch(_pieces, triton.cdiv(count, rows), table, size, out, count, D=dim, BD=width, ROWS=rows)
    return out, size
