# mypy: ignore-errors
"""The loss by kernels that make a block of scores at a time and keep none.

A program owns a block of positions and walks over blocks of items. Where the positions are too few to fill the GPU, the walk is split
among programs, whose parts are joined behind. The backward, in `gradients`, is made alike.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.linear_cross_entropy.blocks import pair, score_blocks
from kernels.linear_cross_entropy.gradients import backward
from kernels.linear_cross_entropy.pieces import magnified, pieces
from kernels.linear_cross_entropy.plan import plan, settings, split

__all__ = ["backward", "forward"]

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _add(state, state_low, items, first, count, bits, top, total, D: tl.constexpr, BD: tl.constexpr, BI: tl.constexpr, WHOLE: tl.constexpr,
         PIECES: tl.constexpr):  # fmt: skip
    """The running maximum and sum of exponentials [BT] with a block of items added. Scores are in bits: the hardware's base is 2."""
    item = first + tl.arange(0, BI)
    rows, low = pair(items, item, count, D, BD, WHOLE, PIECES)
    score = score_blocks(state, state_low, rows, low, PIECES)
    if not WHOLE:
        score = tl.where((item < count)[None, :], score, float("-inf"))
    above = tl.maximum(top, tl.max(score, 1) * bits)
    total = total * tl.exp2(top - above) + tl.sum(tl.exp2(score * bits - above[:, None]), 1)
    return above, total


@triton.jit(do_not_specialize=["T"])
def _sums(
    states, targets, items, state_size, item_size, valid, tops, totals, positives, T, count, span, bits,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, BI: tl.constexpr, VALID: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    part = tl.program_id(1)
    real = row < T
    if VALID:
        real = real & (tl.load(valid + row, real, 0) != 0)
        if tl.max(real.to(tl.int32)) == 0:
            return
    if PIECES == 2:
        bits /= magnified(state_size) * magnified(item_size)
    state, state_low = pair(states, row, T, D, BD, False, PIECES)
    if part == 0:
        # The target's score, by the same product as in the sum, so that both are rounded alike: the diagonal of all pairs'.
        target = tl.load(targets + row, real, 0)
        rows, low = pair(items, target, count, D, BD, False, PIECES)
        scores = score_blocks(state, state_low, rows, low, PIECES)
        own = tl.arange(0, BT)[:, None] == tl.arange(0, BT)[None, :]
        tl.store(positives + row, tl.sum(tl.where(own, scores, 0.0), 1) * bits, row < T)
    top = tl.full([BT], float("-inf"), tl.float32)
    total = tl.zeros([BT], tl.float32)
    start = part * span
    stop = tl.minimum(start + span, count)
    whole = start + (stop - start) // BI * BI
    for first in range(start, whole, BI):
        top, total = _add(state, state_low, items, first, count, bits, top, total, D, BD, BI, True, PIECES)
    if whole < stop:
        top, total = _add(state, state_low, items, whole, count, bits, top, total, D, BD, BI, False, PIECES)
    tl.store(tops + part * T + row, top, row < T)
    tl.store(totals + part * T + row, total, row < T)


@triton.jit(do_not_specialize=["T", "parts"])
def _combine(valid, tops, totals, positives, losses, sums, T, parts, BT: tl.constexpr, VALID: tl.constexpr):
    row = tl.program_id(0) * BT + tl.arange(0, BT)
    real = row < T
    if VALID:
        real = real & (tl.load(valid + row, real, 0) != 0)
    top = tl.load(tops + row, real, 0.0)
    for part in range(1, parts):
        top = tl.maximum(top, tl.load(tops + part * T + row, real, 0.0))
    total = tl.zeros([BT], tl.float32)
    for part in range(parts):
        total += tl.load(totals + part * T + row, real, 0.0) * tl.exp2(tl.load(tops + part * T + row, real, 0.0) - top)
    total = tl.where(real, total, 1.0)
    positive = tl.load(positives + row, real, 0.0)
    tl.store(losses + row, tl.where(real, (top - positive + tl.log2(total)) * _LN2, 0.0), row < T)
    # Infinite where nothing counts: then every exponential of the backward is 0.
    tl.store(sums + row, tl.where(real, top + tl.log2(total), float("inf")), row < T)


def forward(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses [T] and the logarithm of the sum of exponentials [T], in bits, infinite where nothing counts; both float32."""
    tokens, count = len(states), len(items)
    losses, sums = (states.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    if not tokens:
        return losses, sums
    of = plan(states.shape[1], states.dtype)[0]
    owned = triton.cdiv(tokens, of.BT)
    parts, span = split(owned, count, of.BI)
    room = states.new_empty(2 * parts + 1, tokens, dtype=torch.float32)
    tops, totals, positives = room[:parts], room[parts:-1], room[-1]
    (states_, state_size), (items_, item_size) = pieces(states), pieces(items)
    launch(
        _sums, (owned, parts), states_, targets, items_, state_size, item_size, valid, tops, totals, positives, tokens, count, span,
        scale * _LOG2E.value, VALID=valid is not None, **settings(states.shape[1], states.dtype, of),
    )  # fmt: skip
    launch(
        _combine, triton.cdiv(tokens, 256), valid, tops, totals, positives, losses, sums, tokens, parts,
        BT=256, VALID=valid is not None, num_warps=4,
    )  # fmt: skip
    return losses, sums
