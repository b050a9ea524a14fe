# mypy: ignore-errors
"""The output of wide layers: the gated norm in one kernel, the product with bias and residual in another.

Backward computes the gated norm again in the kernel that differentiates it; the two products are the library's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hstu_output.gate import gate, gate_backward
from kernels.hstu_output.settings import Settings
from kernels.launching import launch
from kernels.layer.learned import Learned
from kernels.layer.plan import block, cdiv, once, precision, programs, summing
from kernels.layer.product import FULL, Tiles, multiply, product
from kernels.layer.rows import load_rows, load_vector, store_rows
from kernels.layer.totals import totals

_TILES = Tiles(64, 128, 64, 4, 3)
"""The fastest on an H100 for types of 16 bits."""


def forward(attended: Tensor, u: Tensor, x: Tensor, learned: Learned, settings: Settings) -> Tensor:
    """The layer's output [T, C]."""
    (tokens, width), out = attended.shape, torch.empty_like(x)
    seed, dropped, eps, dtype = settings
    y = torch.empty_like(attended, dtype=dtype)
    rows = once(columns := block(width))
    launch(
        _gate, cdiv(tokens, rows.height), attended, u, *learned[:2], seed, y, tokens, dropped, eps,
        WIDTH=width, WIDTHS=columns, ROWS=rows.height, DROP=dropped > 0, num_warps=rows.warps,
    )  # fmt: skip
    tile = FULL if dtype == torch.float32 else _TILES
    launch(
        _close, cdiv(tokens, tile.rows) * cdiv(x.shape[1], tile.columns), y, learned.weight.to(dtype), learned.bias, x, out, tokens,
        INNER=width, OUT=x.shape[1], ROWS=tile.rows, COLUMNS=tile.columns, STEP=tile.step, PRECISION=precision(dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def backward(grad: Tensor, attended: Tensor, u: Tensor, learned: Learned, settings: Settings) -> tuple[Tensor, ...]:
    """Gradients of attended, u and what is learned."""
    tokens, width = attended.shape
    seed, dropped, eps, dtype = settings
    grad, dbias = _converted(grad, learned.bias, dtype)
    dy = torch.mm(grad, learned.weight.to(dtype))
    rows = summing(columns := block(width))
    count = programs(grad, cdiv(tokens, rows.height), rows.share)
    y, dattended, du = torch.empty_like(dy), torch.empty_like(attended), torch.empty_like(u)
    partial = torch.empty(count, 2 * width, dtype=torch.float32, device=grad.device)
    launch(
        _gate_backward, count, dy, attended, u, *learned[:2], seed, y, dattended, du, partial, tokens, dropped, eps,
        WIDTH=width, WIDTHS=columns, ROWS=rows.height, DROP=dropped > 0, num_warps=rows.warps,
    )  # fmt: skip
    dnorm_weight, dnorm_bias = totals(partial, learned[:2])
    return dattended, du, dnorm_weight, dnorm_bias, multiply(grad.T, y, learned.weight.dtype), dbias


def _converted(grad: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """grad in the type of products, and its sum over rows as `bias` is typed; in one pass where the type differs."""
    if grad.dtype == dtype:
        return grad, grad.sum(0, dtype=torch.float32).to(bias.dtype)
    tokens, width = grad.shape
    rows = once(columns := block(width))
    count = programs(grad, cdiv(tokens, rows.height), rows.share)
    partial = torch.empty(count, width, dtype=torch.float32, device=grad.device)
    out = torch.empty_like(grad, dtype=dtype)
    launch(
        _convert, count, grad, out, partial, tokens, WIDTH=width, WIDTHS=columns, ROWS=rows.height, num_warps=rows.warps
    )  # fmt: skip
    return out, totals(partial, (bias,))[0]


@triton.jit(do_not_specialize=["tokens", "dropped"], do_not_specialize_on_alignment=["seed"])
def _gate(
    attended, u, norm_weight, norm_bias, seed, y, tokens, dropped, eps,
    WIDTH: tl.constexpr, WIDTHS: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTHS)
    gated, _, _, _, _ = gate(attended, u, norm_weight, norm_bias, seed, rows, columns, tokens, dropped, eps, WIDTH, WIDTHS, DROP)
    store_rows(y, gated, rows, columns, tokens, WIDTH)


@triton.jit(do_not_specialize=["tokens", "dropped"], do_not_specialize_on_alignment=["seed"])
def _gate_backward(
    dy, attended, u, norm_weight, norm_bias, seed, y, dattended, du, partial, tokens, dropped, eps,
    WIDTH: tl.constexpr, WIDTHS: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, WIDTHS)
    # Sums over this program's tiles, row by row: to add rows up only once spares a barrier a tile.
    scales = tl.zeros([ROWS, WIDTHS], tl.float32)
    shifts = tl.zeros([ROWS, WIDTHS], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        gated, scale, shift = gate_backward(
            load_rows(dy, rows, columns, tokens, WIDTH), attended, u, norm_weight, norm_bias, seed, dattended, du,
            rows, columns, tokens, dropped, eps, WIDTH, WIDTHS, DROP,
        )  # fmt: skip
        store_rows(y, gated, rows, columns, tokens, WIDTH)
        scales += scale
        shifts += shift
    partial += tl.program_id(0) * 2 * WIDTH
    tl.store(partial + columns, tl.sum(scales, 0), columns < WIDTH)
    tl.store(partial + WIDTH + columns, tl.sum(shifts, 0), columns < WIDTH)


@triton.jit(do_not_specialize=["tokens"])
def _convert(grad, out, partial, tokens, WIDTH: tl.constexpr, WIDTHS: tl.constexpr, ROWS: tl.constexpr):
    columns = tl.arange(0, WIDTHS)
    total = tl.zeros([ROWS, WIDTHS], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        values = load_rows(grad, rows, columns, tokens, WIDTH)
        total += values
        store_rows(out, values, rows, columns, tokens, WIDTH)
    tl.store(partial + tl.program_id(0) * WIDTH + columns, tl.sum(total, 0), columns < WIDTH)


@triton.jit(do_not_specialize=["tokens"])
def _close(
    y, weight, bias, x, out, tokens, INNER: tl.constexpr, OUT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    rows = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    update = product(y, weight, rows, columns, tokens, OUT, INNER, STEP, PRECISION) + load_vector(bias, columns, OUT)
    store_rows(out, update + load_rows(x, rows, columns, tokens, OUT), rows, columns, tokens, OUT)
