# mypy: ignore-errors
"""The loss by PyTorch's matrix products, some items at a time, with one kernel between two products. For wide vectors.

A chunk is of items and not of positions: then each item's gradient is written once, and what is added to again and again is the states',
which are fewer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
SCORES = 2**26
"""Scores held at once, in numbers."""
WIDE = 256
"""Widths of vectors above which this is faster than the fused kernels: on an H100, bfloat16, 8,192 positions and 50,000 items, 4.5 ms
against 6.3 ms at 512, and 14 ms against 7.3 ms at 256 with 200,000 items."""


def faster(states: Tensor, items: Tensor) -> bool:
    """Whether this way is the faster one."""
    return states.shape[1] > WIDE


@triton.jit
def _add(
    scores, targets, valid, tops, totals, positives, first, width, bits,
    START: tl.constexpr, VALID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a chunk [T, width] of scores to the running maxima and sums of exponentials; START: to nothing."""
    row = tl.program_id(0).to(tl.int64)
    if VALID:  # noqa: SIM102 - a constant stands alone
        if tl.load(valid + row) == 0:
            return
    top, total = float("-inf"), 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        score = tl.load(scores + row * width + column, column < width, float("-inf")) * bits
        above = tl.maximum(top, tl.max(score))
        total = total * tl.exp2(top - above) + tl.sum(tl.exp2(score - above))
        top = above
    if not START:
        before = tl.load(tops + row)
        above = tl.maximum(top, before)
        total = total * tl.exp2(top - above) + tl.load(totals + row) * tl.exp2(before - above)
        top = above
    tl.store(tops + row, top)
    tl.store(totals + row, total)
    place = tl.load(targets + row) - first
    if (place >= 0) & (place < width):
        tl.store(positives + row, tl.load(scores + row * width + place) * bits)


@triton.jit
def _shares(
    scores, targets, sums, grads, out, first, width, scale, bits, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns scores into the loss's gradient by them, in the type of out."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    log_sum = tl.load(sums + row)
    slope = tl.where(log_sum < float("inf"), tl.load(grads + row), 0.0) * scale
    score = tl.load(scores + row * width + column, column < width, float("-inf"))
    share = tl.exp2(score * bits - log_sum)
    share = tl.where(column == tl.load(targets + row) - first, share - 1, share) * slope
    tl.store(out + row * width + column, share, column < width)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32."""
    if left.device.type == "cpu":
        return left.float() @ right.float()
    return left @ right if left.dtype == torch.float32 else torch.mm(left, right, out_dtype=torch.float32)


def _width(states: Tensor) -> int:
    return max(SCORES // len(states) // 128, 1) * 128


def forward(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """As the fused kernels': losses [T] and the logarithm of the sum of exponentials [T], in bits, both float32."""
    tops, totals, positives = (states.new_empty(len(states), dtype=torch.float32) for _ in range(3))
    if not len(states):
        return tops, totals
    first = 0
    for part in items.split(_width(states)):
        scores = _product(states, part.T)
        launch(
            _add, len(states), scores, targets, valid, tops, totals, positives, first, len(part), scale * _LOG2E.value,
            START=first == 0, VALID=valid is not None, BLOCK=4096, num_warps=8,
        )  # fmt: skip
        first += len(part)
    logs = totals.log2()
    losses, sums = (tops - positives + logs) * _LN2.value, tops + logs
    return (losses, sums) if valid is None else (torch.where(valid, losses, 0.0), torch.where(valid, sums, torch.inf))


def backward(grads: Tensor, states: Tensor, targets: Tensor, items: Tensor, sums: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients by states and items, in their type."""
    to_states, to_items = torch.zeros_like(states, dtype=torch.float32), torch.empty_like(items)
    first = 0
    for part, to_part in zip(items.split(_width(states)), to_items.split(_width(states)), strict=True):
        scores = _product(states, part.T)
        shares = scores if states.dtype == torch.float32 else torch.empty_like(scores, dtype=states.dtype)
        launch(
            _shares, (len(states), triton.cdiv(len(part), 2048)), scores, targets, sums, grads, shares, first, len(part),
            scale, scale * _LOG2E.value, BLOCK=2048, num_warps=8,
        )  # fmt: skip
        to_states += _product(shares, part)
        torch.mm(shares.T, states, out=to_part)
        first += len(part)
    return to_states.to(states.dtype), to_items
