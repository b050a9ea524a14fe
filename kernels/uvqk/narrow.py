# mypy: ignore-errors
"""The projection of layers so narrow that a program holds a whole weight matrix.

Forward is one launch. Backward is three: gradients by rows, sums over rows, sums of these. At these sizes launches and the wait for memory
cost, not products, so what forward computed is computed again from x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.layer.learned import Learned
from kernels.layer.plan import block, cdiv, precision, programs, sigmoid_method
from kernels.layer.rows import choose, load_rows, load_vector, normalize, normalize_backward, place, sigmoid, store_rows
from kernels.layer.totals import totals


class Plan(NamedTuple):
    """How backward is cut up: rows of a tile, parts unrolled; of the sums, rows of a tile and a multiprocessor's programs for each part."""

    rows: int
    unroll: int
    sum_rows: int
    share: float


# The fastest on an H100 for 14000 tokens of width 50.
_FORWARD_ROWS = 64
_WARPS = 4
_SHORT, _FULL = Plan(64, 4, 128, 0.25), Plan(64, 1, 64, 0.5)


def forward(outputs: tuple[Tensor, ...], x: Tensor, learned: Learned, eps: float) -> None:
    """Writes u, v, q, k."""
    u, _, q, _ = outputs
    tokens, width = x.shape
    value, key = u.shape[1], q.shape[1] * q.shape[2]
    launch(
        _forward, cdiv(tokens, _FORWARD_ROWS), x, *learned, *outputs, tokens, eps,
        WIDTH=width, VALUE=value, KEY=key, WIDTHS=block(width), VALUES=block(value), KEYS=block(key),
        ROWS=_FORWARD_ROWS, PRECISION=precision(u.dtype), SIGMOID=sigmoid_method(u), num_warps=_WARPS,
    )  # fmt: skip


def backward(grads: tuple[Tensor, ...], x: Tensor, learned: Learned, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x and of what is learned, from those of u, v, q, k as [T, columns] each."""
    (tokens, width), dtype = x.shape, grads[0].dtype
    value, key = grads[0].shape[1], grads[2].shape[1]
    rows, unroll, sum_rows, share = _FULL if dtype == torch.float32 else _SHORT
    widths, parts, tiles = block(width), block(max(value, key)), cdiv(tokens, rows)
    padded = cdiv(tokens, max(rows, sum_rows)) * max(rows, sum_rows)
    # Padded with zeros to whole tiles, so that the sums need no masks.
    before, y = (torch.empty(padded, n, dtype=dtype, device=x.device) for n in (4 * parts, widths))
    of_norm = torch.empty(tiles, 2 * width, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x)
    launch(
        _backward, padded // rows, x, *learned, *grads, *(g.stride(0) for g in grads), dx, before, y, of_norm, tokens, eps,
        WIDTH=width, VALUE=value, KEY=key, WIDTHS=widths, PARTS=parts, ROWS=rows,
        UNROLL=unroll, PRECISION=precision(dtype), SIGMOID=sigmoid_method(y), num_warps=_WARPS, num_stages=1,
    )  # fmt: skip
    count = programs(x, padded // sum_rows, share)
    of_weight = torch.empty(count, (width + 1) * (2 * value + 2 * key), dtype=torch.float32, device=x.device)
    launch(
        _sum, 4 * count, before, y, of_weight, padded // sum_rows, count, WIDTH=width, VALUE=value, KEY=key, WIDTHS=widths, PARTS=parts,
        ROWS=sum_rows, PRECISION=precision(dtype), num_warps=_WARPS, num_stages=3,
    )  # fmt: skip
    dweight, dbias, dnorm_weight, dnorm_bias = totals(of_weight, learned[2:], of_norm, learned[:2])
    return dx, dnorm_weight, dnorm_bias, dweight, dbias


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    x, norm_weight, norm_bias, weight, bias, u, v, q, k, tokens, eps,
    WIDTH: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr,
    WIDTHS: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTHS)
    normal, _ = normalize(load_rows(x, rows, columns, tokens, WIDTH), columns, eps, WIDTH)
    y = (normal * load_vector(norm_weight, columns, WIDTH) + load_vector(norm_bias, columns, WIDTH)).to(u.dtype.element_ty)
    _part(y, weight, bias, u, rows, columns, tokens, 0, VALUE, VALUES, WIDTH, PRECISION, SIGMOID)
    _part(y, weight, bias, v, rows, columns, tokens, VALUE, VALUE, VALUES, WIDTH, PRECISION, SIGMOID)
    _part(y, weight, bias, q, rows, columns, tokens, 2 * VALUE, KEY, KEYS, WIDTH, PRECISION, SIGMOID)
    _part(y, weight, bias, k, rows, columns, tokens, 2 * VALUE + KEY, KEY, KEYS, WIDTH, PRECISION, SIGMOID)


@triton.jit
def _part(
    y, weight, bias, out, rows, columns, tokens,
    START: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Writes one of u, v, q, k: those whose weights start at row START."""
    own = tl.arange(0, PARTS)
    matrix = load_rows(weight + START * WIDTH, own, columns, PART, WIDTH).to(y.dtype)
    before = tl.dot(y, matrix.T, input_precision=PRECISION) + load_vector(bias + START, own, PART)
    store_rows(out, before * sigmoid(before, SIGMOID), rows, own, tokens, PART)


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    x, norm_weight, norm_bias, weight, bias, du, dv, dq, dk, stride_u, stride_v, stride_q, stride_k, dx, befores, ys, of_norm,
    tokens, eps, WIDTH: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr, WIDTHS: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, PRECISION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    """Writes dx, the normalized rows, the gradients of what SiLU was given, and this program's sums for the norm's parameters."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTHS)
    scale = load_vector(norm_weight, columns, WIDTH)
    normal, deviation = normalize(load_rows(x, rows, columns, tokens, WIDTH), columns, eps, WIDTH)
    y = (normal * scale + load_vector(norm_bias, columns, WIDTH)).to(ys.dtype.element_ty)
    tl.store(ys + rows[:, None].to(tl.int64) * WIDTHS + columns[None, :], y)
    dy = tl.zeros([ROWS, WIDTHS], tl.float32)
    # Unrolled, the loads of all parts overlap; where products take several passes, registers do not suffice for that.
    for part in tl.range(4, loop_unroll_factor=UNROLL):
        grad, stride = choose(part, du, dv, dq, dk), choose(part, stride_u, stride_v, stride_q, stride_k)
        first, size = place(part, VALUE, KEY)
        own = tl.arange(0, PARTS)
        inside = (rows < tokens)[:, None] & (own < size)[None, :]
        after = tl.load(grad + rows[:, None].to(tl.int64) * stride + own[None, :], inside, 0.0).to(tl.float32)
        matrix = load_rows(weight + first * WIDTH, own, columns, size, WIDTH).to(y.dtype)
        before = tl.dot(y, matrix.T, input_precision=PRECISION) + tl.load(bias + first + own, own < size, 0.0).to(tl.float32)
        gate = sigmoid(before, SIGMOID)
        before = (after * gate * (1 + before * (1 - gate))).to(y.dtype)
        tl.store(befores + rows[:, None].to(tl.int64) * (4 * PARTS) + (part * PARTS + own)[None, :], before)
        dy = tl.dot(before, matrix, dy, input_precision=PRECISION)
    if tl.program_id(0) * ROWS < tokens:
        store_rows(dx, normalize_backward(dy * scale, normal, deviation, WIDTH), rows, columns, tokens, WIDTH)
        of_norm += tl.program_id(0).to(tl.int64) * 2 * WIDTH
        tl.store(of_norm + columns, tl.sum(dy * normal, 0), columns < WIDTH)
        tl.store(of_norm + WIDTH + columns, tl.sum(dy, 0), columns < WIDTH)


@triton.jit(do_not_specialize=["tiles", "count"])
def _sum(
    befores, ys, of_weight, tiles, count, WIDTH: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr,
    WIDTHS: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the sums of one part's weight and bias over this program's tiles of rows, every `count`-th."""
    part, program = tl.program_id(0) % 4, tl.program_id(0) // 4
    within, columns, own = tl.arange(0, ROWS), tl.arange(0, WIDTHS), tl.arange(0, PARTS)
    befores += part * PARTS + own[None, :]
    ys += columns[None, :]
    weights = tl.zeros([PARTS, WIDTHS], tl.float32)
    biases = tl.zeros([PARTS], tl.float32)
    for tile in range(program, tiles, count):
        rows = (tile * ROWS + within)[:, None].to(tl.int64)
        before = tl.load(befores + rows * (4 * PARTS))
        weights = tl.dot(before.T, tl.load(ys + rows * WIDTHS), weights, input_precision=PRECISION)
        biases += tl.sum(before.to(tl.float32), 0)
    OUT: tl.constexpr = 2 * VALUE + 2 * KEY
    first, size = place(part, VALUE, KEY)
    of_weight += program.to(tl.int64) * (OUT * WIDTH + OUT)
    tl.store(of_weight + (first + own)[:, None] * WIDTH + columns[None, :], weights, (own < size)[:, None] & (columns < WIDTH)[None, :])
    tl.store(of_weight + OUT * WIDTH + first + own, biases, own < size)
