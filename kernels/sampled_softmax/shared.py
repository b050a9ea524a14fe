# mypy: ignore-errors
"""Kernels for negatives that all positions share: one program a block of positions, whose scores are a matrix product.

The backward makes the scores again, and adds each block's gradient of the negatives to one sum by atomic additions.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.sampled_softmax.norms import finish, through_norm

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _rows(vectors, ids, inside, D: tl.constexpr, BD: tl.constexpr):
    column = tl.arange(0, BD)
    return tl.load(vectors + ids[:, None] * D + column[None, :], inside[:, None] & (column < D)[None, :], 0.0)


@triton.jit
def _lengths(rows):
    rows = rows.to(tl.float32)
    return tl.sqrt(tl.sum(rows * rows, 1))


@triton.jit
def _positions(states, targets, items, valid, T, temperature, eps, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
               COSINE: tl.constexpr, VALID: tl.constexpr):  # fmt: skip
    """A block's positions: their rows, targets, states, targets' scores, and what states and targets' vectors are multiplied by in one."""
    row = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    real = row < T
    if VALID:
        real = real & (tl.load(valid + row, real, 0) != 0)
    target = tl.load(targets + row, real, -1)
    state = _rows(states, row, real, D, BD)
    vector = _rows(items, target, real, D, BD).to(tl.float32)
    # Scores are in bits: the exponential of the hardware has base 2.
    factor = tl.full([BT], 1.0, tl.float32) * (_LOG2E / temperature)
    shrink = tl.full([BT], 1.0, tl.float32)
    if COSINE:
        factor /= tl.maximum(_lengths(state), eps)
        shrink /= tl.maximum(_lengths(vector), eps)
    positive = tl.sum(state.to(tl.float32) * vector, 1) * factor * shrink
    return row, real, target, state, positive, factor, shrink


@triton.jit
def _negatives(negatives, items, first, N, state, target, factor, eps, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
               COSINE: tl.constexpr):  # fmt: skip
    """A block's negatives: their ids, which are inside, vectors, scales, and scores [BT, BN], minus infinity where they do not count.

    Vectors of bfloat16 are multiplied as such. Others are as float32: a gradient's small parts are nothing in float16.
    """
    place = first + tl.arange(0, BN)
    inside = place < N
    ids = tl.load(negatives + place, inside, 0)
    rows = _rows(items, ids, inside, D, BD)
    shrink = tl.full([BN], 1.0, tl.float32)
    if COSINE:
        shrink /= tl.maximum(_lengths(rows), eps)
    if rows.dtype != state.dtype or rows.dtype == tl.float16:
        rows = rows.to(tl.float32)
        state = state.to(tl.float32)
    score = tl.dot(state, tl.trans(rows), input_precision="tf32x3") * factor[:, None] * shrink[None, :]
    counts = inside[None, :] & (ids[None, :] != target[:, None])
    return ids, inside, rows, shrink, tl.where(counts, score, float("-inf"))


@triton.jit(do_not_specialize=["T"])
def _forward(
    states, targets, negatives, items, valid, losses, sums, T, N, temperature, eps,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, COSINE: tl.constexpr, VALID: tl.constexpr,
):  # fmt: skip
    row, real, target, state, positive, factor, _shrink = _positions(
        states, targets, items, valid, T, temperature, eps, D, BD, BT, COSINE, VALID
    )
    top = positive
    total = tl.full([BT], 1.0, tl.float32)
    for first in range(0, N, BN):
        score = _negatives(negatives, items, first, N, state, target, factor, eps, D, BD, BN, COSINE)[4]
        above = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2(top - above) + tl.sum(tl.exp2(score - above[:, None]), 1)
        top = above
    tl.store(losses + row, tl.where(real, (top - positive + tl.log2(total)) * _LN2, 0.0), row < T)
    tl.store(sums + row, top + tl.log2(total), row < T)


@triton.jit(do_not_specialize=["T"])
def _backward(
    states, targets, negatives, items, valid, sums, grads, to_states, to_items, T, N, temperature, eps,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, COSINE: tl.constexpr, VALID: tl.constexpr,
):  # fmt: skip
    row, real, target, state, positive, factor, shrink = _positions(
        states, targets, items, valid, T, temperature, eps, D, BD, BT, COSINE, VALID
    )
    column = tl.arange(0, BD)
    inside = column < D
    log_sum = tl.load(sums + row, real, float("inf"))
    slope = tl.load(grads + row, real, 0.0)
    weight = (tl.exp2(positive - log_sum) - 1) * slope
    own = (weight * factor * _LN2)[:, None] * state.to(tl.float32)
    tl.atomic_add(to_items + target[:, None] * D + column[None, :], own, real[:, None] & inside[None, :], sem="relaxed")
    grad = (weight * shrink)[:, None] * _rows(items, target, real, D, BD).to(tl.float32)
    for first in range(0, N, BN):
        ids, known, rows, shrinks, score = _negatives(negatives, items, first, N, state, target, factor, eps, D, BD, BN, COSINE)
        weights = tl.exp2(score - log_sum[:, None]) * slope[:, None]
        grad += tl.dot((weights * shrinks[None, :]).to(rows.dtype), rows, input_precision="tf32x3")
        weights = tl.trans((weights * (factor * _LN2)[:, None]).to(rows.dtype))
        update = tl.dot(weights, state.to(rows.dtype), input_precision="tf32x3")
        tl.atomic_add(to_items + ids[:, None] * D + column[None, :], update, known[:, None] & inside[None, :], sem="relaxed")
    grad /= temperature
    if COSINE:
        # States are read again, so that they hold no registers while negatives pass.
        wide = _rows(states, row, real, D, BD).to(tl.float32)
        grad = through_norm(grad, wide, _lengths(wide), tl.sum(grad * wide, 1), eps)
    tl.store(to_states + row[:, None] * D + column[None, :], grad, (row < T)[:, None] & inside[None, :])


def fits(states: Tensor, items: Tensor) -> bool:
    """Whether the vectors are narrow enough for blocks of them to stay on a multiprocessor."""
    return items.shape[1] <= (256 if _brief(states, items) else 128)


def _brief(states: Tensor, items: Tensor) -> bool:
    return states.dtype == items.dtype == torch.bfloat16


@cache
def _plan(dim: int, brief: bool) -> dict[str, int]:
    """Sizes, brief: of vectors that are multiplied as bfloat16."""
    width = max(triton.next_power_of_2(dim), 16)
    if width <= (128 if brief else 64):
        block, count, warps = 128, 64, 8
    else:
        block, count, warps = (32, 32, 8) if brief else (64, 32, 4)
    return {"D": dim, "BD": width, "BT": block, "BN": count, "num_warps": warps}


def forward(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, cosine: bool, eps: float, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [T], the logarithm of the sum of exponentials [T], in bits, both float32, and nothing [0]."""
    tokens = len(states)
    losses, sums = (states.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    sizes = _plan(items.shape[1], _brief(states, items))
    if tokens:
        launch(
            _forward, triton.cdiv(tokens, sizes["BT"]), states, targets, negatives, items, valid, losses, sums,
            tokens, len(negatives), temperature, eps, **sizes, COSINE=cosine, VALID=valid is not None,
        )  # fmt: skip
    return losses, sums, states.new_empty(0, dtype=torch.float32)


def backward(
    grads: Tensor, states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, sums: Tensor,
    temperature: float, cosine: bool, eps: float, valid: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by states and items, in their types."""
    tokens = len(states)
    to_states, to_items = torch.empty_like(states), torch.zeros_like(items, dtype=torch.float32)
    sizes = _plan(items.shape[1], _brief(states, items))
    if tokens:
        launch(
            _backward, triton.cdiv(tokens, sizes["BT"]), states, targets, negatives, items, valid, sums, grads, to_states, to_items,
            tokens, len(negatives), temperature, eps, **sizes, COSINE=cosine, VALID=valid is not None,
        )  # fmt: skip
    return to_states, finish(to_items, items, cosine, eps)
