# mypy: ignore-errors
"""Kernels for negatives of each position's own: one program a position, which reads its negatives' vectors through the caches.

A vector is scored by parts of eight threads, so that a warp scores four vectors at once and a sum over a vector takes three shuffles, not
five. The backward scores again from the caches, then reads whole vectors for both gradients.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.sampled_softmax.norms import finish, inverse_norms

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_ROOM = 8192
"""Numbers of vectors a program holds at once."""


@triton.jit
def _products(vectors, ids, query, D: tl.constexpr, PART: tl.constexpr):
    """<vectors[id], query> of each id, float32."""
    sums = tl.zeros([ids.shape[0], PART], tl.float32)
    for first in tl.static_range(0, D, PART):
        column = first + tl.arange(0, PART)
        if first + PART <= D:
            rows = tl.load(vectors + ids[:, None] * D + column[None, :])
            part = tl.load(query + column)
        else:
            rows = tl.load(vectors + ids[:, None] * D + column[None, :], (column < D)[None, :], 0.0)
            part = tl.load(query + column, column < D, 0.0)
        sums += rows.to(tl.float32) * part.to(tl.float32)[None, :]
    return tl.sum(sums, 1)


@triton.jit
def _vector(vectors, row, D: tl.constexpr, BD: tl.constexpr):
    column = tl.arange(0, BD)
    return tl.load(vectors + row * D + column, column < D, 0.0).to(tl.float32)


@triton.jit
def _ids(negatives, row, first, N, BN: tl.constexpr, target):
    """A block of ids; behind the last one the target, which counts as a hit."""
    place = first + tl.arange(0, BN)
    return tl.load(negatives + row * N + place, place < N, target)


@triton.jit
def _forward(
    states, targets, negatives, items, norms, valid, losses, sums, N, temperature, eps,
    D: tl.constexpr, BD: tl.constexpr, PART: tl.constexpr, BN: tl.constexpr, COSINE: tl.constexpr, VALID: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if VALID:  # noqa: SIM102 - a constant stands alone
        if tl.load(valid + row) == 0:
            tl.store(losses + row, 0.0)
            tl.store(sums + row, 0.0)
            return
    target = tl.load(targets + row)
    state = _vector(states, row, D, BD)
    # Scores are in bits: the exponential of the hardware has base 2.
    scale = _LOG2E / temperature
    if COSINE:
        scale /= tl.maximum(tl.sqrt(tl.sum(state * state)), eps)
    positive = tl.sum(state * _vector(items, target, D, BD)) * scale
    if COSINE:
        positive *= tl.load(norms + target)
    top, total = positive, 1.0
    for first in range(0, N, BN):
        ids = _ids(negatives, row, first, N, BN, target)
        score = _products(items, ids, states + row * D, D, PART) * scale
        if COSINE:
            score *= tl.load(norms + ids)
        score = tl.where(ids == target, float("-inf"), score)
        above = tl.maximum(top, tl.max(score))
        total = total * tl.exp2(top - above) + tl.sum(tl.exp2(score - above))
        top = above
    tl.store(losses + row, (top - positive + tl.log2(total)) * _LN2)
    tl.store(sums + row, top + tl.log2(total))


@triton.jit
def _backward(
    states, targets, negatives, items, norms, valid, sums, grads, to_states, to_items, weights, N, temperature, eps,
    D: tl.constexpr, BD: tl.constexpr, PART: tl.constexpr, BN: tl.constexpr, COSINE: tl.constexpr, VALID: tl.constexpr,
    ORDERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BD)
    inside = column < D
    if VALID:  # noqa: SIM102 - a constant stands alone
        if tl.load(valid + row) == 0:
            tl.store(to_states + row * D + column, tl.zeros([BD], tl.float32), inside)
            return
    target = tl.load(targets + row)
    state = _vector(states, row, D, BD)
    length = tl.sqrt(tl.sum(state * state))
    scale = _LOG2E / temperature
    if COSINE:
        scale /= tl.maximum(length, eps)
    factor = scale * _LN2
    log_sum = tl.load(sums + row)
    slope = tl.load(grads + row)

    vector = _vector(items, target, D, BD)
    positive = tl.sum(state * vector) * scale
    shrink = 1.0
    if COSINE:
        shrink = tl.load(norms + target)
        positive *= shrink
    weight = (tl.exp2(positive - log_sum) - 1) * slope
    along = weight * positive
    grad = weight * shrink * vector
    if ORDERED:
        tl.store(weights + row * (N + 1), weight * factor)
    else:
        tl.atomic_add(to_items + target * D + column, weight * factor * state, inside, sem="relaxed")

    for first in range(0, N, BN):
        ids = _ids(negatives, row, first, N, BN, target)
        score = _products(items, ids, states + row * D, D, PART) * scale
        if COSINE:
            shrinks = tl.load(norms + ids)
            score *= shrinks
        each = tl.where(ids == target, 0.0, tl.exp2(score - log_sum) * slope)
        along += tl.sum(each * score)
        rows = tl.load(items + ids[:, None] * D + column[None, :], inside[None, :], 0.0).to(tl.float32)
        if COSINE:
            grad += tl.sum((each * shrinks)[:, None] * rows, 0)
        else:
            grad += tl.sum(each[:, None] * rows, 0)
        if ORDERED:
            place = first + tl.arange(0, BN)
            tl.store(weights + row * (N + 1) + 1 + place, each * factor, place < N)
        else:
            counts = (ids != target)[:, None] & inside[None, :]
            tl.atomic_add(to_items + ids[:, None] * D + column[None, :], (each * factor)[:, None] * state[None, :], counts, sem="relaxed")
    grad *= factor
    if COSINE:
        # The part of the gradient along the state turns nothing. Its length is the sum of weights times scores.
        grad -= tl.where(length > eps, along * _LN2, 0.0) / tl.maximum(length * length, eps * eps) * state
    tl.store(to_states + row * D + column, grad, inside)


@triton.jit
def _gather(
    states, order, starts, weights, items, out, width, eps,
    D: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BD)
    inside = column < D
    stop = tl.load(starts + item + 1)
    grad = tl.zeros([BD], tl.float32)
    for first in range(tl.load(starts + item), stop, BE):
        place = first + tl.arange(0, BE)
        entry = tl.load(order + place, place < stop, 0)
        weight = tl.load(weights + entry, place < stop, 0.0)
        rows = tl.load(states + (entry // width)[:, None] * D + column[None, :], inside[None, :], 0.0).to(tl.float32)
        grad += tl.sum(weight[:, None] * rows, 0)
    if COSINE:
        vector = _vector(items, item, D, BD)
        length = tl.sqrt(tl.sum(vector * vector))
        inverse = 1 / tl.maximum(length, eps)
        share = tl.where(length > eps, tl.sum(grad * vector) * inverse * inverse, 0.0)
        grad = (grad - share * vector) * inverse
    tl.store(out + item * D + column, grad, inside)


@cache
def _plan(dim: int, size: int, count: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Sizes of the forward, the backward and the sums in a fixed order, for items of `size` bytes a number and `count` negatives each."""
    width = triton.next_power_of_2(dim)
    # Eight threads read a part of a vector: as many bytes each as its alignment allows, at most 16.
    part = min(8 * min(dim * size & -(dim * size), 16) // size, width)
    count = triton.next_power_of_2(max(count, 8))
    room = max(_ROOM // width, 8)
    sizes = {"D": dim, "BD": width, "num_warps": min(max(width // 128, 1), 4)}
    return (
        sizes | {"PART": part, "BN": min(count, 32, room)},
        sizes | {"PART": part, "BN": min(count, 16, room)},
        sizes | {"BE": min(64, room), "num_warps": 2},
    )


def forward(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, cosine: bool, eps: float, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [T], the logarithm of the sum of exponentials [T], in bits, and inverse norms [I] of items, for cosine; all float32."""
    tokens = len(states)
    losses, sums = (states.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    norms = inverse_norms(items, eps) if cosine else states.new_empty(0, dtype=torch.float32)
    if tokens:
        launch(
            _forward, tokens, states, targets, negatives, items, norms, valid, losses, sums, negatives.shape[1], temperature, eps,
            **_plan(items.shape[1], items.element_size(), negatives.shape[1])[0], COSINE=cosine, VALID=valid is not None,
        )  # fmt: skip
    return losses, sums, norms


def backward(
    grads: Tensor, states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, norms: Tensor, sums: Tensor,
    temperature: float, cosine: bool, eps: float, valid: Tensor | None, ordered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by states and items, in their types. ordered: sums the items' in a fixed order, by sorting."""
    tokens, count = negatives.shape
    to_states = torch.empty_like(states)
    weights = states.new_zeros(tokens, count + 1, dtype=torch.float32) if ordered else grads
    to_items = torch.empty_like(items) if ordered else torch.zeros_like(items, dtype=torch.float32)
    _, sizes, ordered_sizes = _plan(items.shape[1], items.element_size(), count)
    if tokens:
        launch(
            _backward, tokens, states, targets, negatives, items, norms, valid, sums, grads, to_states, to_items, weights,
            count, temperature, eps, **sizes, COSINE=cosine, VALID=valid is not None, ORDERED=ordered,
        )  # fmt: skip
    if not ordered:
        return to_states, finish(to_items, items, cosine, eps)
    if valid is not None:
        targets = torch.where(valid, targets, 0)
    ids, order = torch.cat([targets[:, None], negatives], 1).flatten().int().sort(stable=True)
    starts = torch.searchsorted(ids, torch.arange(len(items) + 1, dtype=torch.int32, device=ids.device))
    if len(items):
        launch(
            _gather, len(items), states, order, starts, weights, items, to_items, count + 1, eps,
            **ordered_sizes, COSINE=cosine,
        )  # fmt: skip
    return to_states, to_items
