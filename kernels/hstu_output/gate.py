# mypy: ignore-errors
"""The gated norm with dropout, layer_norm(attended) * u * mask, of a tile of rows, both ways."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.layer.rows import kept, load_rows, load_vector, normalize, normalize_backward, store_rows


@triton.jit
def gate(
    attended, u, norm_weight, norm_bias, seed, rows, columns, tokens, dropped, eps,
    WIDTH: tl.constexpr, WIDTHS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """The result [M, WIDTHS], 0 outside; and what backward needs: u times the mask, the mask, the normalized rows and their deviations."""
    normal, deviation = normalize(load_rows(attended, rows, columns, tokens, WIDTH), columns, eps, WIDTH)
    gating = load_rows(u, rows, columns, tokens, WIDTH)
    mask = tl.full([1, 1], 1.0, tl.float32)
    if DROP:
        # Draws are whole multiples of 1 / 65536, and so is the share that is dropped.
        mask = tl.where(kept(seed, rows, dropped, WIDTHS), 65536.0 / (65536 - dropped), 0.0)
    gating *= mask
    y = (normal * load_vector(norm_weight, columns, WIDTH) + load_vector(norm_bias, columns, WIDTH)) * gating
    return y, gating, mask, normal, deviation


@triton.jit
def gate_backward(
    dy, attended, u, norm_weight, norm_bias, seed, dattended, du, rows, columns, tokens, dropped, eps,
    WIDTH: tl.constexpr, WIDTHS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of attended and u; returns the result itself, and what to sum over rows for norm_weight and norm_bias."""
    y, gating, mask, normal, deviation = gate(
        attended, u, norm_weight, norm_bias, seed, rows, columns, tokens, dropped, eps, WIDTH, WIDTHS, DROP
    )
    scale = load_vector(norm_weight, columns, WIDTH)
    store_rows(du, dy * mask * (normal * scale + load_vector(norm_bias, columns, WIDTH)), rows, columns, tokens, WIDTH)
    inner = dy * gating
    store_rows(dattended, normalize_backward(inner * scale, normal, deviation, WIDTH), rows, columns, tokens, WIDTH)
    return y, inner * normal, inner
