# mypy: ignore-errors
"""Kernels in which a program takes a block of vectors through all levels.

Narrow vectors stay in registers from level to level. Wide ones do not fit, so their residual is kept in memory, where the caches hold it,
and distances are summed over parts of the dimensions.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch

PRECISION = "tf32x3"
"""Three tf32 products keep as many bits as float32 has; plain float32 products have no matrix instruction."""
NARROW = 128
"""The widest vectors that stay in registers."""


@triton.jit
def _nearer(products, norms, first, K, best, code):
    """The nearest code so far and its distance, less the vector's own square, with the block of codes from `first` on taken in."""
    place = first + tl.arange(0, norms.shape[0])
    distance = tl.where((place < K)[None, :], norms[None, :] - 2 * products, float("inf"))
    least, at = tl.min(distance, 1, return_indices=True)
    # Of equals the first: within a block the leftmost, and a later block has to be strictly nearer.
    nearer = least < best
    return tl.where(nearer, least, best), tl.where(nearer, at + first, code)


@triton.jit(do_not_specialize=["N"])
def _narrow(
    x, codebooks, codes, residuals, N, K,
    L: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    column = tl.arange(0, BD)
    real = row < N
    inside = (column < D)[None, :]
    places = row[:, None] * D + column[None, :]
    residual = tl.load(x + places, real[:, None] & inside, 0.0).to(tl.float32)
    for level in range(L):
        book = codebooks + level * K * D
        best = tl.full([BN], float("inf"), tl.float32)
        code = tl.zeros([BN], tl.int32)
        for first in range(0, K, BK):
            place = first + tl.arange(0, BK)
            vectors = tl.load(book + place[:, None] * D + column[None, :], (place < K)[:, None] & inside, 0.0).to(tl.float32)
            products = tl.dot(residual, tl.trans(vectors), input_precision=PRECISION)
            best, code = _nearer(products, tl.sum(vectors * vectors, 1), first, K, best, code)
        residual -= tl.load(book + code[:, None] * D + column[None, :], inside, 0.0).to(tl.float32)
        tl.store(codes + row * L + level, code.to(tl.int64), real)
    tl.store(residuals + places, residual, real[:, None] & inside)


@triton.jit(do_not_specialize=["N"])
def _wide(
    codebooks, codes, residuals, N, K,
    L: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """residuals: holds x, and is worked on in place."""
    row = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    real = row < N
    for level in range(L):
        book = codebooks + level * K * D
        best = tl.full([BN], float("inf"), tl.float32)
        code = tl.zeros([BN], tl.int32)
        for first in range(0, K, BK):
            place = first + tl.arange(0, BK)
            products = tl.zeros([BN, BK], tl.float32)
            norms = tl.zeros([BK], tl.float32)
            for start in range(0, D, BD):
                column = start + tl.arange(0, BD)
                inside = (column < D)[None, :]
                part = tl.load(residuals + row[:, None] * D + column[None, :], real[:, None] & inside, 0.0)
                vectors = tl.load(book + place[:, None] * D + column[None, :], (place < K)[:, None] & inside, 0.0).to(tl.float32)
                products = tl.dot(part, tl.trans(vectors), products, input_precision=PRECISION)
                norms += tl.sum(vectors * vectors, 1)
            best, code = _nearer(products, norms, first, K, best, code)
        # All threads have read the residual before it changes, and all see it changed before the next level.
        tl.debug_barrier()
        for start in range(0, D, BD):
            column = start + tl.arange(0, BD)
            inside = (column < D)[None, :]
            places = residuals + row[:, None] * D + column[None, :]
            part = tl.load(places, real[:, None] & inside, 0.0)
            part -= tl.load(book + code[:, None] * D + column[None, :], inside, 0.0).to(tl.float32)
            tl.store(places, part, real[:, None] & inside)
        tl.debug_barrier()
        tl.store(codes + row * L + level, code.to(tl.int64), real)


def quantize(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, L] int64 and the residual [N, D] float32."""
    count, dim = x.shape
    levels, size, _ = codebooks.shape
    codes = torch.empty(count, levels, dtype=torch.int64, device=x.device)
    if not count:
        return codes, torch.empty(count, dim, device=x.device)
    plan = _plan(dim)
    programs = triton.cdiv(count, plan["BN"])
    if dim <= NARROW:
        residual = torch.empty(count, dim, device=x.device)
        launch(_narrow, programs, x, codebooks, codes, residual, count, size, L=levels, D=dim, PRECISION=PRECISION, **plan)
    else:
        residual = x.to(torch.float32, copy=True)
        launch(_wide, programs, codebooks, codes, residual, count, size, L=levels, D=dim, PRECISION=PRECISION, **plan)
    return codes, residual


@cache
def _plan(dim: int) -> dict[str, int]:
    width = max(triton.next_power_of_2(dim), 16)
    if dim > NARROW:
        return {"BD": 64, "BN": 128, "BK": 128, "num_warps": 8}
    return {"BD": width, "BN": 128 if width <= 32 else 64, "BK": 64 if width <= 64 else 32, "num_warps": 4}
