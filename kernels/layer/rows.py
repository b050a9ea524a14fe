# mypy: ignore-errors
"""Parts of kernels that work on rows of tokens: layer norm both ways, and which elements dropout keeps."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(x, rows, columns, tokens, WIDTH: tl.constexpr):
    """Rows [M] of x [tokens, WIDTH] at columns [C], in float32; 0 outside."""
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(x + rows[:, None].to(tl.int64) * WIDTH + columns[None, :], inside, 0.0).to(tl.float32)


@triton.jit
def store_rows(x, values, rows, columns, tokens, WIDTH: tl.constexpr):
    """Writes values [M, C] where `load_rows` reads them."""
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    tl.store(x + rows[:, None].to(tl.int64) * WIDTH + columns[None, :], values.to(x.dtype.element_ty), inside)


@triton.jit
def load_vector(x, columns, WIDTH: tl.constexpr):
    """x [WIDTH] at columns [C], in float32; 0 outside."""
    return tl.load(x + columns, columns < WIDTH, 0.0).to(tl.float32)


@triton.jit
def normalize(x, columns, eps, WIDTH: tl.constexpr):
    """Rows [M, C] less their mean and divided by their deviation, 0 from column WIDTH on, and the inverse deviations [M]."""
    mean = tl.sum(x, 1) / WIDTH
    centred = tl.where((columns < WIDTH)[None, :], x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    return centred * scale[:, None], scale


@triton.jit
def normalize_backward(grad, normal, scale, WIDTH: tl.constexpr):
    """The gradient of the rows that `normalize` was given, from that of its result [M, C], 0 from column WIDTH on."""
    along = tl.sum(grad * normal, 1) / WIDTH
    mean = tl.sum(grad, 1) / WIDTH
    return (grad - mean[:, None] - normal * along[:, None]) * scale[:, None]


@triton.jit
def sigmoid(x, METHOD: tl.constexpr):
    """1 / (1 + exp(-x)) of float32. `short`: of 11 bits, for results of 16; `full`: of float32; `plain`: without a GPU's instructions.

    Triton's own takes care of numbers below the smallest normal one, which costs more than all the rest and changes nothing here.
    """
    if METHOD == "short":
        half = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x * 0.5], tl.float32, True, 1)
        return half * 0.5 + 0.5
    elif METHOD == "full":  # noqa: RET505 (Triton compiles one of the branches)
        power = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=r,r", [x * -1.4426950408889634], tl.float32, True, 1)
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [power + 1], tl.float32, True, 1)
    else:
        return tl.sigmoid(x)


@triton.jit
def kept(seed, rows, dropped, COLUMNS: tl.constexpr):
    """Whether dropout keeps each element [M, COLUMNS] of rows [M]: a 16-bit draw is at least `dropped`.

    Philox with the counter (row, column // 8) gives 128 bits, so eight columns share one; `kernels.hstu_output.reference` draws the same.
    """
    group = tl.arange(0, COLUMNS // 8)
    row = rows[:, None].to(tl.int32) + tl.zeros_like(group)[None, :]
    column = group[None, :] + tl.zeros_like(rows[:, None].to(tl.int32))
    zero = tl.zeros_like(row)
    a, b, c, d = tl.philox(tl.load(seed), row, column, zero, zero)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(rows.shape[0], COLUMNS // 2)
    draws = tl.join(words & 0xFFFF, words >> 16).reshape(rows.shape[0], COLUMNS)
    return draws.to(tl.int32) >= dropped


@triton.jit
def choose(part, u, v, q, k):
    """One of four, by a number from 0 to 3."""
    return tl.where(part < 2, tl.where(part == 0, u, v), tl.where(part == 2, q, k))


@triton.jit
def place(part, VALUE: tl.constexpr, KEY: tl.constexpr):
    """The first weight row and the width of u, v, q or k, numbered 0 to 3."""
    return tl.where(part < 2, part * VALUE, 2 * VALUE + (part - 2) * KEY), tl.where(part < 2, VALUE, KEY)
