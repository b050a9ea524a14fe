# mypy: ignore-errors
"""The L2 norms of item vectors, and the way of a gradient through the division by them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch

ROOM = 4096
"""Numbers of vectors a program holds at once."""


@triton.jit
def _inverse_norms(items, norms, count, eps, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BD)
    inside = (row < count)[:, None] & (column < D)[None, :]
    vectors = tl.load(items + row[:, None] * D + column[None, :], inside, 0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(vectors * vectors, 1))
    tl.store(norms + row, 1 / tl.maximum(length, eps), row < count)


def inverse_norms(items: Tensor, eps: float) -> Tensor:
    """1 / max(norm, eps) [I] float32 of items [I, D]."""
    count, dim = items.shape
    norms = torch.empty(count, dtype=torch.float32, device=items.device)
    width = triton.next_power_of_2(dim)
    rows = max(ROOM // width, 1)
    if count:
        launch(_inverse_norms, triton.cdiv(count, rows), items, norms, count, eps, D=dim, BD=width, ROWS=rows)
    return norms


@triton.jit
def _finish(sums, items, out, count, eps, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr, COSINE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BD)
    inside = (row < count)[:, None] & (column < D)[None, :]
    place = row[:, None] * D + column[None, :]
    grad = tl.load(sums + place, inside, 0.0)
    if COSINE:
        vectors = tl.load(items + place, inside, 0.0).to(tl.float32)
        grad = through_norm(grad, vectors, tl.sqrt(tl.sum(vectors * vectors, 1)), tl.sum(grad * vectors, 1), eps)
    tl.store(out + place, grad, inside)


@triton.jit
def through_norm(grad, vectors, length, along, eps):
    """The gradient by rows x of one by x / max(|x|, eps); along: <grad, x>. A row shorter than eps is only scaled."""
    inverse = 1 / tl.maximum(length, eps)
    share = tl.where(length > eps, along * inverse * inverse, 0.0)
    return (grad - share[:, None] * vectors) * inverse[:, None]


def finish(sums: Tensor, items: Tensor, cosine: bool, eps: float) -> Tensor:
    """Turns the gradient [I, D] float32 by unit vectors into that by items, in the type of items; may write over sums."""
    if not cosine and items.dtype == torch.float32:
        return sums
    count, dim = items.shape
    out = sums if items.dtype == torch.float32 else torch.empty_like(items)
    width = triton.next_power_of_2(dim)
    rows = max(ROOM // width, 1)
    if count:
        launch(_finish, triton.cdiv(count, rows), sums, items, out, count, eps, D=dim, BD=width, ROWS=rows, COSINE=cosine)
    return out
