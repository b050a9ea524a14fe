"""A whole HSTU layer and its three parts beside PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.attention import flops, zipf_lengths
from benchmarks.kernels.cases import BACKENDS, Case, Prepare, benchmark, bounds, normal
from kernels.backend import Backend, use
from kernels.hstu_attention import hstu_attention
from kernels.hstu_output import hstu_output
from kernels.uvqk import uvqk

DROPOUT = 0.2


class Shape(NamedTuple):
    """A layer's batch and size, with dropout and a position bias. dtype: autocast's, with a float32 residual, or float32 for all."""

    name: str
    lengths: list[int]
    width: int
    heads: int
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    Shape("base: B=128 N<=200 C=50 H=1", zipf_lengths(128, 200), 50, 1),
    Shape("base, float32", zipf_lengths(128, 200), 50, 1, torch.float32),
    Shape("B=32 N=1024 C=512 H=4", [1024] * 32, 512, 4),
]


class Layer:
    """Inputs and weights on the GPU, and the parts of a layer by the kernels or in plain PyTorch."""

    def __init__(self, shape: Shape, backend: Backend) -> None:
        self.shape, self.backend, (_, lengths, width, heads, _) = shape, backend, shape
        self.tokens, self.dim, self.longest = sum(lengths), width // heads, max(lengths)
        self.x, self.offsets = normal(self.tokens, width, dtype=torch.float32), bounds(lengths)
        self.front, self.back = self._weights(4 * width), self._weights(width)
        self.bias = normal(heads, self.longest, dtype=torch.float32)
        # Of dropout; a network draws those of all its layers at once.
        self.seed = torch.randint(2**63 - 1, (), device="cuda")

    def context(self) -> AbstractContextManager[Any]:
        """Autocast, where the shape asks for it; its cache would keep a weight's conversion from being timed."""
        short = self.shape.dtype != torch.float32
        return torch.autocast("cuda", self.shape.dtype, cache_enabled=False) if short else nullcontext()

    def project(self) -> tuple[Tensor, ...]:
        """u, v, q, k."""
        heads, dim = self.shape.heads, self.dim
        if self.backend == "triton":
            return uvqk(self.x, *self.front, heads=heads, dim_qk=dim, dim_v=dim)
        scale, shift, weight, bias = self.front
        normed = functional.layer_norm(self.x, self.x.shape[1:], scale, shift)
        u, *vqk = functional.silu(functional.linear(normed, weight, bias)).chunk(4, 1)
        return u, *(part.view(self.tokens, heads, dim) for part in vqk)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of all heads, side by side."""
        bias = self.bias if self.backend == "triton" else self.bias.to(q.dtype)
        return hstu_attention(q, k, v, self.offsets, max_seq_len=self.longest, position_bias=bias).flatten(1)

    def close(self, attended: Tensor, u: Tensor) -> Tensor:
        """The layer's output."""
        if self.backend == "triton":
            return hstu_output(attended, u, self.x, *self.back, dropout=DROPOUT, training=True, seed=self.seed)
        scale, shift, weight, bias = self.back
        gated = functional.layer_norm(attended, attended.shape[1:], scale, shift) * u
        return self.x + functional.linear(functional.dropout(gated, DROPOUT), weight, bias)

    def whole(self) -> Tensor:
        """All three."""
        u, v, q, k = self.project()
        return self.close(self.attend(q, k, v), u)

    def part(self, name: str) -> tuple[Callable[[], Any], list[Tensor]]:
        """A part's call, and the tensors that it has gradients by."""
        width, heads, dtype = self.shape.width, self.shape.heads, self.shape.dtype
        if name == "hstu_layer":
            return self.whole, [self.x, *self.front, *self.back, self.bias]
        if name == "uvqk":
            return self.project, [self.x, *self.front]
        if name == "hstu_attention":
            qkv = [normal(self.tokens, heads, self.dim, dtype=dtype) for _ in range(3)]
            return lambda: self.attend(*qkv), [*qkv, self.bias]
        attended, u = (normal(self.tokens, width, dtype=dtype) for _ in range(2))
        return lambda: self.close(attended, u), [attended, u, self.x, *self.back]

    def _weights(self, rows: int) -> list[Tensor]:
        """A norm's weight and bias, a projection's weight and bias; float32, as a trainer keeps them."""
        width = self.shape.width
        shapes: list[tuple[int, ...]] = [(width,), (width,), (rows, width), (rows,)]
        return [normal(*shape, scale=width**-0.5 if len(shape) == 2 else 1.0, dtype=torch.float32) for shape in shapes]


def prepared(shape: Shape, backend: Backend, part: str) -> Prepare:
    """Prepares a layer or a part of it."""

    def prepare() -> tuple[Callable[[], Any], list[Tensor]]:
        layer = Layer(shape, backend)
        call, learned = layer.part(part)

        def run() -> Any:
            with use(backend), layer.context():
                return call()

        return run, learned

    return prepare


@benchmark("hstu_layer")
def cases() -> Iterator[Case]:
    for shape in SHAPES:
        tokens, width = sum(shape.lengths), shape.width
        product, attended = 2.0 * tokens * width * width, flops(shape.lengths, width // shape.heads, shape.heads)
        # Residuals have 4 bytes an element, what lies between has `size`.
        row, size = float(tokens * width), shape.dtype.itemsize
        costs = {
            "hstu_layer": (5 * product + attended, 10 * product + 2.5 * attended, 8 * row, 12 * row),
            "uvqk": (4 * product, 8 * product, (4 + 4 * size) * row, (8 + 4 * size) * row),
            "hstu_attention": (attended, 2.5 * attended, 4 * size * row, 7 * size * row),
            "hstu_output": (product, 2 * product, (8 + 2 * size) * row, (4 + 4 * size) * row),
        }
        for name, backend in BACKENDS.items():
            for part, cost in costs.items():
                yield Case(part, shape.name, name, prepared(shape, backend, part), *cost)
