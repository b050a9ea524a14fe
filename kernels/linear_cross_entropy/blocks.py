# mypy: ignore-errors
"""Blocks of rows in kernels: how they are loaded and multiplied, as one piece or as two; see `pieces`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(table, row, count, D: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr):
    """Rows [B, BD] of a piece of a table [count, PIECES, D]; 0 where there are none. WHOLE: whether all are known to exist."""
    column = tl.arange(0, BD)
    places = table + row.to(tl.int64)[:, None] * (PIECES * D) + (PIECE * D + column)[None, :]
    if WHOLE and D == BD:
        return tl.load(places)
    if WHOLE:
        return tl.load(places, (column < D)[None, :], 0.0)
    return tl.load(places, (row < count)[:, None] & (column < D)[None, :], 0.0)


@triton.jit
def pair(table, row, count, D: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr, PIECES: tl.constexpr):
    """Both pieces of rows; of a table of one piece twice the same."""
    high = rows_of(table, row, count, D, BD, WHOLE, PIECES, 0)
    return high, rows_of(table, row, count, D, BD, WHOLE, PIECES, 1) if PIECES == 2 else high


@triton.jit
def score_blocks(high, low, other_high, other_low, PIECES: tl.constexpr):
    """All products of two blocks of rows, float32; the product of the low pieces is below float32's last bit."""
    if PIECES == 1:
        return tl.dot(high, tl.trans(other_high))
    scores = tl.dot(low, tl.trans(other_high))
    scores = tl.dot(high, tl.trans(other_low), scores)
    return tl.dot(high, tl.trans(other_high), scores)


@triton.jit
def weigh(shares, high, low, sums, PIECES: tl.constexpr):
    """sums + shares @ rows."""
    shares_high = shares.to(high.dtype)
    if PIECES == 1:
        return tl.dot(shares_high, high, sums)
    shares_low = (shares - shares_high.to(tl.float32)).to(high.dtype)
    # The matrix units cut off what is below a sum's last bit, hundreds of times where sums pass through them: so blocks are added outside.
    block = tl.dot(shares_low, high)
    block = tl.dot(shares_high, low, block)
    return sums + tl.dot(shares_high, high, block)
