# mypy: ignore-errors
"""The projection of wide layers: a layer norm, then a product that adds the bias, applies SiLU and parts the four before memory.

Backward computes the product again where its gradient is needed, in one kernel with SiLU's derivative: that costs about what reading a
stored copy would, and saves writing and keeping it. The two products behind it are the library's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launching import launch
from kernels.layer.learned import Learned
from kernels.layer.plan import block, cdiv, once, precision, programs, sigmoid_method, summing
from kernels.layer.product import FULL, Tiles, multiply, product
from kernels.layer.rows import choose, load_rows, load_vector, normalize, normalize_backward, place, sigmoid, store_rows
from kernels.layer.totals import totals

_FORWARD, _BACKWARD = Tiles(128, 128, 64, 8, 3), Tiles(128, 128, 64, 4, 3)
"""The fastest on an H100 for types of 16 bits."""


def forward(outputs: tuple[Tensor, ...], x: Tensor, learned: Learned, eps: float) -> None:
    """Writes u, v, q, k."""
    u, _, q, _ = outputs
    y = normalized(x, learned, eps, u.dtype)
    value, key, tile = u.shape[1], q.shape[1] * q.shape[2], FULL if u.dtype == torch.float32 else _FORWARD
    launch(
        _project, _grid(y, value, key, tile), y, learned.weight.to(u.dtype), learned.bias, *outputs, y.shape[0],
        INNER=y.shape[1], VALUE=value, KEY=key, ROWS=tile.rows, COLUMNS=tile.columns, STEP=tile.step,
        PRECISION=precision(u.dtype), SIGMOID=sigmoid_method(u), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def backward(grads: tuple[Tensor, ...], x: Tensor, learned: Learned, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x and of what is learned, from those of u, v, q, k as [T, columns] each."""
    (tokens, width), dtype = x.shape, grads[0].dtype
    value, key, tile = grads[0].shape[1], grads[2].shape[1], FULL if dtype == torch.float32 else _BACKWARD
    weight, bias = learned[2:]
    y, matrix = normalized(x, learned, eps, dtype), weight.to(dtype)
    before = torch.empty(tokens, weight.shape[0], dtype=dtype, device=x.device)
    partial = torch.empty(cdiv(tokens, tile.rows), weight.shape[0], dtype=torch.float32, device=x.device)
    launch(
        _project_backward, _grid(y, value, key, tile), y, matrix, bias, *grads, *(g.stride(0) for g in grads), before, partial, tokens,
        INNER=width, VALUE=value, KEY=key,
        ROWS=tile.rows, COLUMNS=tile.columns, STEP=tile.step, PRECISION=precision(dtype), SIGMOID=sigmoid_method(before),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    (dbias,) = totals(partial, (bias,))
    dweight = multiply(before.T, y, weight.dtype)
    dx, dnorm_weight, dnorm_bias = normalized_backward(torch.mm(before, matrix), x, learned, eps)
    return dx, dnorm_weight, dnorm_bias, dweight, dbias


def normalized(x: Tensor, learned: Learned, eps: float, dtype: torch.dtype) -> Tensor:
    """The layer norm of x [T, C]."""
    (tokens, width), y = x.shape, torch.empty_like(x, dtype=dtype)
    rows = once(columns := block(width))
    launch(
        _normalize, cdiv(tokens, rows.height), x, *learned[:2], y, tokens, eps,
        WIDTH=width, COLUMNS=columns, ROWS=rows.height, num_warps=rows.warps,
    )  # fmt: skip
    return y


def normalized_backward(dy: Tensor, x: Tensor, learned: Learned, eps: float) -> tuple[Tensor, ...]:
    """Gradients of x and of the norm's weight and bias, from that of `normalized`."""
    tokens, width = x.shape
    rows = summing(columns := block(width))
    count = programs(x, cdiv(tokens, rows.height), rows.share)
    dx = torch.empty_like(x)
    partial = torch.empty(count, 2 * width, dtype=torch.float32, device=x.device)
    launch(
        _normalize_backward, count, dy, x, learned.norm_weight, dx, partial, tokens, eps,
        WIDTH=width, COLUMNS=columns, ROWS=rows.height, num_warps=rows.warps,
    )  # fmt: skip
    return dx, *totals(partial, learned[:2])


def _grid(y: Tensor, value: int, key: int, tile: Tiles) -> int:
    return cdiv(y.shape[0], tile.rows) * 2 * (cdiv(value, tile.columns) + cdiv(key, tile.columns))


@triton.jit(do_not_specialize=["tokens"])
def _normalize(x, weight, bias, y, tokens, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    normal, _ = normalize(load_rows(x, rows, columns, tokens, WIDTH), columns, eps, WIDTH)
    store_rows(y, normal * load_vector(weight, columns, WIDTH) + load_vector(bias, columns, WIDTH), rows, columns, tokens, WIDTH)


@triton.jit(do_not_specialize=["tokens"])
def _normalize_backward(
    dy, x, weight, dx, partial, tokens, eps, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    columns = tl.arange(0, COLUMNS)
    scale = load_vector(weight, columns, WIDTH)
    # Sums over this program's tiles, row by row: to add rows up only once spares a barrier a tile.
    scales = tl.zeros([ROWS, COLUMNS], tl.float32)
    shifts = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        normal, deviation = normalize(load_rows(x, rows, columns, tokens, WIDTH), columns, eps, WIDTH)
        grad = load_rows(dy, rows, columns, tokens, WIDTH)
        scales += grad * normal
        shifts += grad
        store_rows(dx, normalize_backward(grad * scale, normal, deviation, WIDTH), rows, columns, tokens, WIDTH)
    partial += tl.program_id(0) * 2 * WIDTH
    tl.store(partial + columns, tl.sum(scales, 0), columns < WIDTH)
    tl.store(partial + WIDTH + columns, tl.sum(shifts, 0), columns < WIDTH)


@triton.jit
def _place(VALUE: tl.constexpr, KEY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """This program's rows [ROWS] and, of the part numbered 0 to 3, its columns [COLUMNS], first weight row and width."""
    values: tl.constexpr = (VALUE + COLUMNS - 1) // COLUMNS
    keys: tl.constexpr = (KEY + COLUMNS - 1) // COLUMNS
    # Neighbours share rows, which then come from the cache; the weight stays in it anyway.
    column = tl.program_id(0) % (2 * values + 2 * keys)
    band = tl.program_id(0) // (2 * values + 2 * keys)
    late = column >= 2 * values
    column = tl.where(late, column - 2 * values, column)
    each = tl.where(late, keys, values)
    part = 2 * late.to(tl.int32) + column // each
    first, width = place(part, VALUE, KEY)
    return band, band * ROWS + tl.arange(0, ROWS), part, column % each * COLUMNS + tl.arange(0, COLUMNS), first, width


@triton.jit(do_not_specialize=["tokens"])
def _project(
    y, weight, bias, u, v, q, k, tokens, INNER: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    _, rows, part, own, first, width = _place(VALUE, KEY, ROWS, COLUMNS)
    OUT: tl.constexpr = 2 * VALUE + 2 * KEY
    before = product(y, weight, rows, first + own, tokens, OUT, INNER, STEP, PRECISION)
    before += tl.load(bias + first + own, own < width, 0.0).to(tl.float32)
    inside = (rows < tokens)[:, None] & (own < width)[None, :]
    out = choose(part, u, v, q, k) + rows[:, None].to(tl.int64) * width + own[None, :]
    tl.store(out, (before * sigmoid(before, SIGMOID)).to(u.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["tokens"])
def _project_backward(
    y, weight, bias, du, dv, dq, dk, stride_u, stride_v, stride_q, stride_k, out, partial, tokens,
    INNER: tl.constexpr, VALUE: tl.constexpr, KEY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr, SIGMOID: tl.constexpr,
):  # fmt: skip
    band, rows, part, own, first, width = _place(VALUE, KEY, ROWS, COLUMNS)
    OUT: tl.constexpr = 2 * VALUE + 2 * KEY
    before = product(y, weight, rows, first + own, tokens, OUT, INNER, STEP, PRECISION)
    before += tl.load(bias + first + own, own < width, 0.0).to(tl.float32)
    gate = sigmoid(before, SIGMOID)
    slope = gate * (1 + before * (1 - gate))
    inside = (rows < tokens)[:, None] & (own < width)[None, :]
    grad, stride = choose(part, du, dv, dq, dk), choose(part, stride_u, stride_v, stride_q, stride_k)
    slope *= tl.load(grad + rows[:, None].to(tl.int64) * stride + own[None, :], inside, 0.0).to(tl.float32)
    tl.store(out + rows[:, None].to(tl.int64) * OUT + (first + own)[None, :], slope.to(out.dtype.element_ty), inside)
    tl.store(partial + band.to(tl.int64) * OUT + first + own, tl.sum(slope, 0), own < width)
