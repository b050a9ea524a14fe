"""The losses over items and the residual quantizer, beside plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.cases import BACKENDS, Case, Prepare, benchmark, normal
from kernels.backend import Backend, use
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.residual_quantize import residual_quantize
from kernels.sampled_softmax import sampled_softmax


def sampled(tokens: int, width: int, items: int, negatives: int, shared: bool, backend: Backend) -> Prepare:
    """Prepares the sampled softmax over cosine similarities at temperature .05; states in float32, as the trainer's."""

    def prepare() -> tuple[Callable[[], Tensor], list[Tensor]]:
        states, table = normal(tokens, width, dtype=torch.float32), normal(items, width, dtype=torch.float32)
        targets = torch.randint(items, (tokens,), device="cuda")
        drawn = torch.randperm(items, device="cuda")[:negatives] if shared else torch.randint(items, (tokens, negatives), device="cuda")

        def run() -> Tensor:
            with use(backend):
                return sampled_softmax(states, targets, drawn, table, temperature=0.05)

        return run, [states, table]

    return prepare


def full(tokens: int, width: int, items: int, dtype: torch.dtype, fused: bool) -> Prepare:
    """Prepares the cross-entropy over all items."""

    def prepare() -> tuple[Callable[[], Tensor], list[Tensor]]:
        states, table = normal(tokens, width, dtype=dtype), normal(items, width, scale=width**-0.5, dtype=dtype)
        targets = torch.randint(items, (tokens,), device="cuda")

        def run() -> Tensor:
            with use("triton"):
                if fused:
                    return linear_cross_entropy(states, targets, table)
                return functional.cross_entropy((states @ table.T).float(), targets, reduction="none")

        return run, [states, table]

    return prepare


def quantized(rows: int, width: int, codes: int, levels: int, backend: Backend) -> Prepare:
    """Prepares residual quantization."""

    def prepare() -> tuple[Callable[[], Any], list[Tensor]]:
        x, books = normal(rows, width, dtype=torch.float32, grad=False), normal(levels, codes, width, dtype=torch.float32, grad=False)

        def run() -> Any:
            with use(backend):
                return residual_quantize(x, books)

        return run, []

    return prepare


@benchmark("sampled_softmax")
def sampled_cases() -> Iterator[Case]:
    for tokens, width, items, negatives in ((14_000, 50, 3_416, 128), (14_000, 128, 12_101, 512)):
        for shared in (False, True):
            shape = f"T={tokens} D={width} I={items} N={negatives} {'shared' if shared else 'own'}"
            scores, moved = 2.0 * tokens * width * (negatives + 1), 4.0 * (tokens + items) * width
            moved += 8.0 * tokens * (1 if shared else negatives)
            for name, backend in BACKENDS.items():
                prepare = sampled(tokens, width, items, negatives, shared, backend)
                yield Case("sampled_softmax", shape, name, prepare, scores, 2 * scores, moved, 2 * moved)


@benchmark("linear_cross_entropy")
def full_cases() -> Iterator[Case]:
    for tokens, width, items in ((14_000, 50, 3_416), (12_800, 128, 12_101), (8_192, 256, 200_000)):
        scores, moved = 2.0 * tokens * width * items, 2.0 * (tokens + items) * width
        for fused, name in ((True, "kernels"), (False, "PyTorch")):
            prepare = full(tokens, width, items, torch.bfloat16, fused)
            yield Case("linear_cross_entropy", f"T={tokens} D={width} I={items}", name, prepare, scores, 2 * scores, moved, 2 * moved)


@benchmark("residual_quantize")
def quantized_cases() -> Iterator[Case]:
    for rows, width, codes, levels in ((100_000, 32, 256, 4), (12_101, 768, 256, 3)):
        work, moved = 2.0 * rows * levels * codes * width, 4.0 * rows * width * 2 + 8.0 * rows * levels
        for name, backend in BACKENDS.items():
            prepare = quantized(rows, width, codes, levels, backend)
            yield Case("residual_quantize", f"N={rows} D={width} K={codes} L={levels}", name, prepare, work, 0.0, moved)
