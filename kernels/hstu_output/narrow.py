# mypy: ignore-errors
"""The output of layers so narrow that one kernel does all of it: forward one launch, backward one and the sum over programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hstu_output.gate import gate, gate_backward
from kernels.hstu_output.settings import Settings
from kernels.launching import launch
from kernels.layer.learned import Learned
from kernels.layer.plan import block, cdiv, precision, programs
from kernels.layer.rows import load_rows, load_vector, store_rows
from kernels.layer.totals import totals

# The fastest on an H100 for 14000 tokens of width 50: rows of a tile, warps, and programs a multiprocessor of the backward.
_FORWARD_ROWS, _BACKWARD_ROWS, _WARPS, _SHARE = 64, 32, 4, 2


def forward(attended: Tensor, u: Tensor, x: Tensor, learned: Learned, settings: Settings) -> Tensor:
    """The layer's output [T, C]."""
    (tokens, width), out = attended.shape, torch.empty_like(x)
    seed, dropped, eps, dtype = settings
    launch(
        _forward, cdiv(tokens, _FORWARD_ROWS), attended, u, x, *learned, seed, out, tokens, dropped, eps,
        WIDTH=width, OUT=x.shape[1], WIDTHS=block(width), OUTS=block(x.shape[1]), ROWS=_FORWARD_ROWS, DROP=dropped > 0,
        HALF=_half(dtype), PRECISION=precision(dtype), num_warps=_WARPS,
    )  # fmt: skip
    return out


def backward(grad: Tensor, attended: Tensor, u: Tensor, learned: Learned, settings: Settings) -> tuple[Tensor, ...]:
    """Gradients of attended, u and what is learned."""
    (tokens, width), out = attended.shape, grad.shape[1]
    seed, dropped, eps, dtype = settings
    count = programs(grad, cdiv(tokens, _BACKWARD_ROWS), _SHARE)
    of_weight = torch.empty(count, (width + 1) * out, dtype=torch.float32, device=grad.device)
    of_norm = torch.empty(count, 2 * width, dtype=torch.float32, device=grad.device)
    dattended, du = torch.empty_like(attended), torch.empty_like(u)
    launch(
        _backward, count, grad, attended, u, *learned[:3], seed, dattended, du, of_weight, of_norm, tokens, dropped, eps,
        WIDTH=width, OUT=out, WIDTHS=block(width), OUTS=block(out), ROWS=_BACKWARD_ROWS, DROP=dropped > 0,
        HALF=_half(dtype), PRECISION=precision(dtype), num_warps=_WARPS, num_stages=1,
    )  # fmt: skip
    dweight, dbias, dnorm_weight, dnorm_bias = totals(of_weight, learned[2:], of_norm, learned[:2])
    if dtype == torch.float32:
        # Where rows cancel, sums of neighbours round worse than those that PyTorch takes across all rows; shorter types hide that.
        dbias = grad.sum(0, dtype=torch.float32).to(learned.bias.dtype)
    return dattended, du, dnorm_weight, dnorm_bias, dweight, dbias


def _half(dtype: torch.dtype) -> tl.dtype:
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


@triton.jit(do_not_specialize=["tokens", "dropped"], do_not_specialize_on_alignment=["seed"])
def _forward(
    attended, u, x, norm_weight, norm_bias, weight, bias, seed, out, tokens, dropped, eps,
    WIDTH: tl.constexpr, OUT: tl.constexpr, WIDTHS: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows, columns, outs = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTHS), tl.arange(0, OUTS)
    y, _, _, _, _ = gate(attended, u, norm_weight, norm_bias, seed, rows, columns, tokens, dropped, eps, WIDTH, WIDTHS, DROP)
    matrix = load_rows(weight, outs, columns, OUT, WIDTH).to(HALF)
    update = tl.dot(y.to(HALF), matrix.T, input_precision=PRECISION) + load_vector(bias, outs, OUT)
    store_rows(out, update + load_rows(x, rows, outs, tokens, OUT), rows, outs, tokens, OUT)


@triton.jit(do_not_specialize=["tokens", "dropped"], do_not_specialize_on_alignment=["seed"])
def _backward(
    grad, attended, u, norm_weight, norm_bias, weight, seed, dattended, du, of_weight, of_norm, tokens, dropped, eps,
    WIDTH: tl.constexpr, OUT: tl.constexpr, WIDTHS: tl.constexpr, OUTS: tl.constexpr, ROWS: tl.constexpr, DROP: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    columns, outs = tl.arange(0, WIDTHS), tl.arange(0, OUTS)
    matrix = load_rows(weight, outs, columns, OUT, WIDTH).to(HALF)
    weights = tl.zeros([OUTS, WIDTHS], tl.float32)
    biases = tl.zeros([OUTS], tl.float32)
    scales = tl.zeros([WIDTHS], tl.float32)
    shifts = tl.zeros([WIDTHS], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        rows = tile * ROWS + tl.arange(0, ROWS)
        after = load_rows(grad, rows, outs, tokens, OUT)
        biases += tl.sum(after, 0)
        after = after.to(HALF)
        dy = tl.dot(after, matrix, input_precision=PRECISION)
        y, scale, shift = gate_backward(
            dy, attended, u, norm_weight, norm_bias, seed, dattended, du, rows, columns, tokens, dropped, eps, WIDTH, WIDTHS, DROP
        )
        scales += tl.sum(scale, 0)
        shifts += tl.sum(shift, 0)
        weights = tl.dot(after.T, y.to(HALF), weights, input_precision=PRECISION)
    of_weight += tl.program_id(0).to(tl.int64) * (OUT * WIDTH + OUT)
    store_rows(of_weight, weights, outs, columns, OUT, WIDTH)
    tl.store(of_weight + OUT * WIDTH + outs, biases, outs < OUT)
    of_norm += tl.program_id(0) * 2 * WIDTH
    tl.store(of_norm + columns, scales, columns < WIDTH)
    tl.store(of_norm + WIDTH + columns, shifts, columns < WIDTH)
