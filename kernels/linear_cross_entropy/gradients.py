# mypy: ignore-errors
"""The gradients by kernels that make the blocks of scores again.

A program owns a block of rows, of positions in one kernel and of items in the other, and walks over blocks of the other kind. Nothing is
added to from two programs: where a walk is split, each part has room of its own, and the parts are summed in a fixed order behind.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.linear_cross_entropy.blocks import pair, score_blocks, weigh
from kernels.linear_cross_entropy.pieces import SMALL, magnified, pieces
from kernels.linear_cross_entropy.plan import Plan, plan, settings, split

LIFT = 2**14
"""Factor of the shares where they become float16, for whose exponents most would else be too small; a share is at most 1."""
_LOG2E = 1.4426950408889634


@triton.jit
def _states_step(state, state_low, target, log_sum, grad, items, first, count, bits, D: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr,
                 WHOLE: tl.constexpr, LIFT: tl.constexpr, PIECES: tl.constexpr):  # fmt: skip
    item = first + tl.arange(0, BI)
    rows, low = pair(items, item, count, D, BD, WHOLE, PIECES)
    share = tl.exp2(score_blocks(state, state_low, rows, low, PIECES) * bits - log_sum[:, None])
    share = tl.where(item[None, :] == target[:, None], share - 1, share)
    if not WHOLE:
        share = tl.where((item < count)[None, :], share, 0.0)
    return weigh(share * LIFT, rows, low, grad, PIECES)


@triton.jit(do_not_specialize=["T"])
def _to_states(
    states, targets, items, state_size, item_size, slope_size, sums, grads, out, T, count, span, scale, bits,
    D: tl.constexpr, DIM: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, LIFT: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    part = tl.program_id(1)
    real = row < T
    if PIECES == 2:
        bits /= magnified(state_size) * magnified(item_size)
        scale /= magnified(item_size)
    state, state_low = pair(states, row, T, D, BD, False, PIECES)
    target = tl.load(targets + row, real, -1).to(tl.int32)
    log_sum = tl.load(sums + row, real, float("inf"))
    slope = tl.where(log_sum < float("inf"), tl.load(grads + row, real, 0.0), 0.0) * (scale / LIFT)
    grad = tl.zeros([BT, BD], tl.float32)
    start = part * span
    stop = tl.minimum(start + span, count)
    whole = start + (stop - start) // BI * BI
    for first in range(start, whole, BI):
        grad = _states_step(state, state_low, target, log_sum, grad, items, first, count, bits, D, BD, BI, True, LIFT, PIECES)
    if whole < stop:
        grad = _states_step(state, state_low, target, log_sum, grad, items, whole, count, bits, D, BD, BI, False, LIFT, PIECES)
    column = tl.arange(0, BD)
    places = out + (part * T + row).to(tl.int64)[:, None] * DIM + column[None, :]
    tl.store(places, grad * slope[:, None], real[:, None] & (column < DIM)[None, :])


@triton.jit
def _items_step(vectors, low, item, grad, states, targets, sums, grads, first, T, bits, lift, D: tl.constexpr, BD: tl.constexpr,
                BT: tl.constexpr, WHOLE: tl.constexpr, PIECES: tl.constexpr):  # fmt: skip
    row = first + tl.arange(0, BT)
    state, state_low = pair(states, row, T, D, BD, WHOLE, PIECES)
    if WHOLE:
        target = tl.load(targets + row).to(tl.int32)
        log_sum = tl.load(sums + row)
        slope = tl.load(grads + row)
    else:
        target = tl.load(targets + row, row < T, -1).to(tl.int32)
        log_sum = tl.load(sums + row, row < T, float("inf"))
        slope = tl.load(grads + row, row < T, 0.0)
    slope = tl.where(log_sum < float("inf"), slope * lift, 0.0)
    share = tl.exp2(score_blocks(vectors, low, state, state_low, PIECES) * bits - log_sum[None, :])
    share = tl.where(item[:, None] == target[None, :], share - 1, share) * slope[None, :]
    return weigh(share, state, state_low, grad, PIECES)


@triton.jit(do_not_specialize=["T"])
def _to_items(
    states, targets, items, state_size, item_size, slope_size, sums, grads, out, T, count, span, scale, bits,
    D: tl.constexpr, DIM: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, LIFT: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0) * BI + tl.arange(0, BI)
    part = tl.program_id(1)
    lift = LIFT * 1.0
    if LIFT > 1:
        # Slopes of at most 1 keep the shares within float16.
        size = tl.maximum(tl.load(slope_size), SMALL)
        lift /= size
        scale *= size
    if PIECES == 2:
        bits /= magnified(state_size) * magnified(item_size)
        scale /= magnified(state_size)
    vectors, low = pair(items, item, count, D, BD, False, PIECES)
    grad = tl.zeros([BI, BD], tl.float32)
    start = part * span
    stop = tl.minimum(start + span, T)
    whole = start + (stop - start) // BT * BT
    for first in range(start, whole, BT):
        grad = _items_step(vectors, low, item, grad, states, targets, sums, grads, first, T, bits, lift, D, BD, BT, True, PIECES)
    if whole < stop:
        grad = _items_step(vectors, low, item, grad, states, targets, sums, grads, whole, T, bits, lift, D, BD, BT, False, PIECES)
    column = tl.arange(0, BD)
    places = out + (part * count + item).to(tl.int64)[:, None] * DIM + column[None, :]
    tl.store(places, grad * (scale / LIFT), (item < count)[:, None] & (column < DIM)[None, :])


def backward(grads: Tensor, states: Tensor, targets: Tensor, items: Tensor, sums: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients by states and items, in their type."""
    if not len(states):
        return torch.empty_like(states), torch.zeros_like(items)
    slope_size = None if states.dtype == torch.bfloat16 else torch.linalg.vector_norm(grads, torch.inf)
    given = pieces(states), targets, pieces(items), slope_size, sums, grads, scale
    _, by_states, by_items = plan(states.shape[1], states.dtype)
    return _gradient(_to_states, by_states, states, len(items), *given), _gradient(_to_items, by_items, items, len(states), *given)


def _gradient(
    kernel: Any, of: Plan, owner: Tensor, walked: int, states: tuple[Tensor, Tensor | None], targets: Tensor,
    items: tuple[Tensor, Tensor | None], slope_size: Tensor | None, sums: Tensor, grads: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """The gradient by `owner`, the states or the items."""
    block, step = (of.BT, of.BI) if kernel is _to_states else (of.BI, of.BT)
    owned, dim = triton.cdiv(len(owner), block), owner.shape[1]
    parts, span = split(owned, walked, step)
    out = torch.empty_like(owner) if parts == 1 else owner.new_empty(parts, *owner.shape, dtype=torch.float32)
    launch(
        kernel, (owned, parts), states[0], targets, items[0], states[1], items[1], slope_size, sums, grads, out,
        len(states[0]), len(items[0]), span, scale, scale * _LOG2E,
        DIM=dim, LIFT=1 if slope_size is None else LIFT, **settings(dim, owner.dtype, of),
    )  # fmt: skip
    return out if parts == 1 else out.sum(0).to(owner.dtype)
