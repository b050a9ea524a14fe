"""HSTU attention: uniform and ragged lengths, with and without biases, beside PyTorch's softmax attention and the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels.cases import BACKENDS, Case, benchmark, bounds, normal
from kernels.backend import Backend, use
from kernels.hstu_attention import hstu_attention, pair_buckets

HEADS, BATCH = 4, 32
SQUARES = [(128, 256), (128, 512), (128, 1024), (128, 2048), (128, 4096), (128, 8192), (64, 2048)]
"""Width of a head and tokens of a sequence. FLOPs count half the square: 2 * B * H * N ** 2 * D forward, 2.5 times as many backward."""


def zipf_lengths(batch: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths by a power law, the longest `longest`, on average about a quarter of it."""
    rank = np.arange(1, batch + 1)
    share = min((rank**-power for power in np.linspace(0, 2, 201)), key=lambda share: abs(share.mean() - 0.25))
    lengths = (longest * share).round().clip(1)
    return [int(n) for n in np.random.default_rng(seed).permutation(lengths)]


def flops(lengths: list[int], dim: int, heads: int = HEADS) -> float:
    """Of the forward pass: two products over half of each sequence's square."""
    return sum(2.0 * heads * n * n * dim for n in lengths)


Gaps = Literal["days", "sessions"]
"""What passes between two tokens. `days`: up to ten minutes, or for one in five up to two days; `sessions`: up to a minute, many of them a
few seconds or none, or for one in forty a day to four months, as where users rate films."""


def seconds(tokens: int, gaps: Gaps) -> Tensor:
    """Times [tokens] int64."""
    chance = torch.rand(tokens, device="cuda")
    if gaps == "days":
        return (torch.randint(1, 600, (tokens,), device="cuda") * torch.where(chance < 0.2, 300, 1)).cumsum(0)
    spread = torch.rand(tokens, device="cuda")
    return torch.where(chance < 1 / 40, 86400 * 120**spread, 60 * spread**2).long().cumsum(0)


def attention(
    lengths: list[int],
    dim: int,
    heads: int = HEADS,
    *,
    position: bool = False,
    times: Gaps | None = None,
    shared: bool = False,
    backend: Backend = "triton",
) -> Callable[[], tuple[Callable[[], Tensor], list[Tensor]]]:
    """Prepares a pass of ours; q, k, v are strided as views of one projection, as in a layer, and have gradients of their own.

    shared: the buckets of pairs are there, as in all layers of a network but the first.
    """

    def prepare() -> tuple[Callable[[], Tensor], list[Tensor]]:
        tokens, longest = sum(lengths), max(lengths)
        q, k, v = (part.detach().requires_grad_() for part in normal(tokens, 3, heads, dim).unbind(1))
        more: dict[str, Any] = {}
        learned = [q, k, v]
        if position:
            more["position_bias"] = normal(heads, longest, dtype=torch.float32)
            learned.append(more["position_bias"])
        if times:
            more["key_times"] = seconds(tokens, times)
            more["query_times"] = more["key_times"] + 30
            more["time_bias"] = normal(heads, 64, dtype=torch.float32)
            learned.append(more["time_bias"])
        offsets = bounds(lengths)
        if shared:
            given = {"key_times": more["key_times"], "query_times": more["query_times"], "buckets": more["time_bias"].shape[1]}
            more["pair_buckets"] = pair_buckets(q, offsets, max_seq_len=longest, **given)

        def run() -> Tensor:
            with use(backend):
                return hstu_attention(q, k, v, offsets, max_seq_len=longest, alpha=dim**-0.5, **more)

        return run, learned

    return prepare


def found_buckets(lengths: list[int], dim: int) -> Callable[[], tuple[Callable[[], Any], list[Tensor]]]:
    """Prepares the search for the buckets of all pairs, for forward and backward passes."""

    def prepare() -> tuple[Callable[[], Any], list[Tensor]]:
        asked, offsets, q = seconds(sum(lengths), "days"), bounds(lengths), normal(sum(lengths), HEADS, dim)
        later = asked + 30

        def run() -> Any:
            # Without gradients, a backward pass would not be prepared for.
            with torch.enable_grad():
                return pair_buckets(q, offsets, max_seq_len=max(lengths), key_times=asked, query_times=later, buckets=64)

        return run, []

    return prepare


def softmax_attention(length: int, dim: int) -> Callable[[], tuple[Callable[[], Tensor], list[Tensor]]]:
    """Prepares PyTorch's causal softmax attention, which computes more: a row maximum and sum."""

    def prepare() -> tuple[Callable[[], Tensor], list[Tensor]]:
        q, k, v = (normal(BATCH, HEADS, length, dim) for _ in range(3))
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True), [q, k, v]

    return prepare


@benchmark("hstu_attention")
def cases() -> Iterator[Case]:
    def case(shape: str, by: str, prepare: Any, lengths: list[int], dim: int, heads: int = HEADS) -> Case:
        forward, tokens = flops(lengths, dim, heads), sum(lengths)
        size = 2.0 * tokens * heads * dim
        return Case("hstu_attention", shape, by, prepare, forward, 2.5 * forward, 4 * size, 7 * size)

    for dim, length in SQUARES:
        lengths = [length] * BATCH
        shape = f"D={dim} N={length}"
        yield case(shape, "kernels", attention(lengths, dim), lengths, dim)
        yield case(shape, "softmax, PyTorch", softmax_attention(length, dim), lengths, dim)
        if length <= 1024:
            yield case(shape, "PyTorch", attention(lengths, dim, backend="reference"), lengths, dim)
    for length in (1024, 4096, 8192):
        lengths = zipf_lengths(128, length)
        yield case(f"D=128 N<={length}, Zipf, mean {np.mean(lengths):.0f}", "kernels", attention(lengths, 128), lengths, 128)
    for dim, length in ((128, 1024), (128, 4096), (64, 2048)):
        lengths = [length] * BATCH
        shape = f"D={dim} N={length}"
        yield case(f"{shape}, position", "kernels", attention(lengths, dim, position=True), lengths, dim)
        for gaps in get_args(Gaps):
            for shared, found in ((True, "before"), (False, "in the call")):
                prepare = attention(lengths, dim, position=True, times=gaps, shared=shared)
                yield case(f"{shape}, position and time, {gaps}, buckets found {found}", "kernels", prepare, lengths, dim)
        # What it must write is two bytes a pair.
        yield Case("hstu_attention", f"{shape}, buckets of pairs", "kernels", found_buckets(lengths, dim), 0.0, 0.0, BATCH * length**2)
    lengths = zipf_lengths(128, 200)
    for name, backend in BACKENDS.items():
        yield case(
            "H=1 D=50 N<=200, position and time", name,
            attention(lengths, 50, 1, position=True, times="days", backend=backend), lengths, 50, 1,
        )  # fmt: skip
