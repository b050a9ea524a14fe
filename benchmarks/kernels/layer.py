"""A whole HSTU layer, its parts, and what stands at its end, beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.attention import flops, zipf_lengths
from benchmarks.kernels.cases import BACKENDS, Case, Prepare, benchmark, bounds, normal
from kernels.backend import Backend, use
from kernels.hstu_attention import hstu_attention
from kernels.hstu_output import hstu_output
from kernels.uvqk import uvqk

SHAPES: list[tuple[str, list[int], int, int]] = [
    ("base: B=128 N<=200 C=50 H=1", zipf_lengths(128, 200), 50, 1),
    ("B=32 N=1024 C=512 H=4", [1024] * 32, 512, 4),
]
"""Name, lengths, width and heads; dropout .2 and a position bias in all."""


def weights(width: int) -> list[Tensor]:
    """Norm weight and bias, projection and its bias, norm weight and bias, projection and its bias; float32, as a trainer keeps them."""
    plain = {"dtype": torch.float32}
    return [
        normal(width, **plain), normal(width, **plain), normal(4 * width, width, scale=width**-0.5, **plain), normal(4 * width, **plain),
        normal(width, **plain), normal(width, **plain), normal(width, width, scale=width**-0.5, **plain), normal(width, **plain),
    ]  # fmt: skip


def layer(lengths: list[int], width: int, heads: int, backend: Backend) -> Prepare:
    """Prepares a layer under bfloat16 autocast, the residual in float32."""

    def prepare() -> tuple[Callable[[], Tensor], list[Tensor]]:
        x, learned = normal(sum(lengths), width, dtype=torch.float32), weights(width)
        bias = normal(heads, max(lengths), dtype=torch.float32)
        offsets, dim = bounds(lengths), width // heads

        def plain() -> Tensor:
            w = learned
            projected = functional.silu(functional.linear(functional.layer_norm(x, (width,), w[0], w[1]), w[2], w[3]))
            u, v, q, k = projected.chunk(4, 1)
            v, q, k = (t.unflatten(1, (heads, dim)) for t in (v, q, k))
            attended = hstu_attention(q, k, v, offsets, max_seq_len=max(lengths), position_bias=bias.to(q.dtype)).flatten(1)
            gated = functional.dropout(functional.layer_norm(attended, (width,), w[4], w[5]) * u, 0.2)
            return x + functional.linear(gated, w[6], w[7])

        def fused() -> Tensor:
            w = learned
            u, v, q, k = uvqk(x, *w[:4], heads=heads, dim_qk=dim, dim_v=dim)
            attended = hstu_attention(q, k, v, offsets, max_seq_len=max(lengths), position_bias=bias)
            return hstu_output(attended.flatten(1), u, x, *w[4:], dropout=0.2, training=True)

        def run() -> Tensor:
            with use(backend), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return fused() if backend == "triton" else plain()

        return run, [x, *learned, bias]

    return prepare


def projection(lengths: list[int], width: int, heads: int, backend: Backend) -> Prepare:
    """Prepares `uvqk` alone."""

    def prepare() -> tuple[Callable[[], Any], list[Tensor]]:
        x, learned = normal(sum(lengths), width, dtype=torch.float32), weights(width)[:4]

        def run() -> tuple[Tensor, ...]:
            with use(backend), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return uvqk(x, *learned, heads=heads, dim_qk=width // heads, dim_v=width // heads)

        return run, [x, *learned]

    return prepare


def closing(lengths: list[int], width: int, backend: Backend) -> Prepare:
    """Prepares `hstu_output` alone, without dropout, whose plain form draws the kernels' own masks slowly."""

    def prepare() -> tuple[Callable[[], Any], list[Tensor]]:
        tokens, learned = sum(lengths), weights(width)[4:]
        attended, u, x = normal(tokens, width), normal(tokens, width), normal(tokens, width, dtype=torch.float32)

        def run() -> Tensor:
            with use(backend), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return hstu_output(attended, u, x, *learned)

        return run, [attended, u, x, *learned]

    return prepare


@benchmark("hstu_layer")
def cases() -> Iterator[Case]:
    for shape, lengths, width, heads in SHAPES:
        tokens = sum(lengths)
        products, attended = 2.0 * tokens * width * width, flops(lengths, width // heads, heads)
        row = float(tokens * width)
        for name, backend in BACKENDS.items():
            # float32 residuals are 4 bytes an element, everything between 2.
            yield Case(
                "hstu_layer",
                shape,
                name,
                layer(lengths, width, heads, backend),
                5 * products + attended,
                10 * products + 2.5 * attended,
                8 * row,
                12 * row,
            )
            yield Case("uvqk", shape, name, projection(lengths, width, heads, backend), 4 * products, 8 * products, 12 * row, 16 * row)
            yield Case("hstu_output", shape, name, closing(lengths, width, backend), products, 2 * products, 12 * row, 16 * row)
