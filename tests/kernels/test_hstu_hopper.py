"""HSTU attention on Hopper GPUs against its definition in float64, and what jagged batches, strides and graphs ask of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels.hstu_attention import hstu_attention, pair_buckets
from kernels.hstu_attention.reference import attend

operators: Any = pytest.importorskip("kernels.hstu_attention.operators", reason="needs Triton")
hopper: Any = pytest.importorskip("kernels.hstu_attention.hopper", reason="needs Triton")

RAGGED = [700, 0, 1, 1337, 128, 513, 64, 129, 255, 256, 127, 65, 63]
TYPES = [torch.bfloat16, torch.float16]


def batch(
    lengths: list[int], heads: int = 2, width: int = 128, dtype: torch.dtype = torch.bfloat16, padding: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v as views of one projection, offsets, and a gradient; rows behind the last sequence are NaN."""
    generator = torch.Generator("cuda").manual_seed(len(lengths) + width)
    total = sum(lengths) + padding
    both = torch.randn(total, 3 * heads * width, device="cuda", generator=generator).mul_(scale).to(dtype)
    grad = torch.randn(total, heads, width, device="cuda", generator=generator).to(dtype)
    both[sum(lengths) :], grad[sum(lengths) :] = torch.nan, torch.nan
    q, k, v = (x.unflatten(1, (heads, width)) for x in both.split(heads * width, 1))
    return q, k, v, torch.tensor([0, *accumulate(lengths)], device="cuda"), grad


def plain(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, grad: Tensor, alpha: float, normalizer: float, dtype: torch.dtype
) -> list[Tensor]:
    """The output and the gradients of q, k and v in PyTorch, one sequence at a time, without the padding."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    parts = []
    for start, stop in pairwise(offsets.tolist()):
        q_, k_, v_ = (x[start:stop].transpose(0, 1) for x in leaves)
        weights = functional.silu(q_ * alpha @ k_.transpose(1, 2)).tril()
        parts.append((weights @ (v_ / normalizer)).transpose(0, 1))
    out = torch.cat(parts)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad[: len(out)].to(dtype))]


def both_ways(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, grad: Tensor, longest: int, alpha: float) -> list[Tensor]:
    given = (q, k, v, offsets, longest, alpha, float(longest))
    return [hopper.forward(*given), *hopper.backward(grad, *given)[:3]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    ("lengths", "heads", "padding", "scale"),
    [
        (RAGGED, 2, 77, 1.0), ([2048, 1999], 1, 0, 1.0), ([300, 5, 1000], 3, 300, 1.5), ([0, 3, 0], 2, 5, 1.0), ([4100], 1, 0, 1.0),
        # More sequences than a warp knows at a time, and as many empty ones in a row.
        (([200, 0, 1, 129] * 40 + [0] * 140) * 2, 2, 9, 1.0),
    ],
)  # fmt: skip
def test_errs_as_little_as_pytorch(lengths: list[int], heads: int, padding: int, scale: float, width: int, dtype: torch.dtype) -> None:
    q, k, v, offsets, grad = batch(lengths, heads, width, dtype, padding, scale)
    # Scores of about +-5 at scale 1 and +-20 at the largest.
    longest, alpha, total = max(lengths), width**-0.5 * scale, sum(lengths)
    mine = both_ways(q, k, v, offsets, grad, longest, alpha)
    exact = plain(q, k, v, offsets, grad, alpha, longest, torch.float64)
    rounded = plain(q, k, v, offsets, grad, alpha, longest, dtype)
    for got, want, low, times in zip(mine, exact, rounded, (2, 5, 5, 5), strict=True):
        assert (got[total:] == 0).all()
        assert (got[:total] - want[:total]).norm() <= times * (low[:total] - want[:total]).norm()


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
def test_nothing_crosses_from_one_sequence_to_the_next(width: int) -> None:
    q, k, v, offsets, grad = batch([200, 500, 300], width=width)
    before = both_ways(q, k, v, offsets, grad, 512, 0.1)
    for x in (q, k, v, grad):
        x[200:700] *= 50
    after = both_ways(q, k, v, offsets, grad, 512, 0.1)
    for x, y, exact in zip(before, after, (True, False, True, True), strict=True):
        for rows in (slice(0, 200), slice(700, 1000)):
            torch.testing.assert_close(x[rows], y[rows], rtol=0 if exact else 0.02, atol=0 if exact else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
def test_the_output_and_the_keys_gradients_are_the_same_every_time(width: int) -> None:
    q, k, v, offsets, grad = batch(RAGGED, width=width)
    runs = [both_ways(q, k, v, offsets, grad, 1337, 0.1) for _ in range(3)]
    for again in runs[1:]:
        assert all(torch.equal(runs[0][i], again[i]) for i in (0, 2, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(4))
def test_gradients_repeat_but_for_rounding(seed: int) -> None:
    """Some are sums in no certain order, but none of their parts may be lost. Widths, batches and biases take turns, since shared memory
    still has what the call before left there."""
    draw, generator = random.Random(seed), torch.Generator("cuda").manual_seed(seed)
    for n in range(60):
        longest, heads = draw.randint(1, 1500), draw.randint(1, 4)
        lengths = [longest, *(draw.randint(0, longest) for _ in range(draw.randint(0, 38)))]
        q, k, v, offsets, grad = batch(lengths, heads, (64, 128)[n % 2], TYPES[n // 2 % 2], padding=17)
        times = torch.randint(0, draw.choice([10, 10**4, 10**6]), (len(q),), device="cuda", generator=generator).cumsum(0)
        if n % 5 == 0:
            times = times[torch.randperm(len(q), device="cuda", generator=generator)]
        tables = [torch.randn(heads, width, device="cuda", generator=generator) for width in (longest, draw.choice([2, 40, 64]))]
        biases: list[tuple[Tensor, ...]] = [(), (tables[0],), (*tables, times, times + 30)]
        given = (grad, q, k, v, offsets, longest, 0.1, float(longest), *draw.choice(biases))
        first = hopper.backward(*given)
        for _ in range(5):
            for got, want, limit in zip(hopper.backward(*given), first, (2e-3, 2e-3, 2e-3, 1e-4, 1e-4), strict=True):
                assert (got.float() - want.float()).norm() <= limit * want.float().norm(), (n, lengths, heads)


@pytest.mark.gpu
def test_inside_a_graph_with_other_lengths() -> None:
    q, k, v, offsets, grad = batch([900, 100, 600], padding=400)
    both_ways(q, k, v, offsets, grad, 1024, 0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both_ways(q, k, v, offsets, grad, 1024, 0.1)
    for lengths in ([900, 100, 600], [1, 1024, 0], [500, 500, 600]):
        for x in (q, k, v, grad):
            x.copy_(torch.randn_like(x, dtype=torch.float32))
        offsets.copy_(torch.tensor([0, *accumulate(lengths)]))
        graph.replay()
        for got, want in zip(out, both_ways(q, k, v, offsets, grad, 1024, 0.1), strict=True):
            torch.testing.assert_close(got, want, rtol=0.02, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("gaps", [10, 10**4, 10**6, None], ids=["seconds", "hours", "days", "in no order"])
def test_biases_err_as_little_as_pytorchs(gaps: int | None, width: int, dtype: torch.dtype) -> None:
    q, k, v, offsets, grad = batch(RAGGED, width=width, dtype=dtype, padding=77)
    total, longest = sum(RAGGED), max(RAGGED)
    generator = torch.Generator("cuda").manual_seed(width)
    key_times = torch.randint(0, gaps or 10**7, (total + 77,), device="cuda", generator=generator)
    if gaps:
        key_times = key_times.cumsum(0)
    query_times = key_times + torch.randint(0, 1000, key_times.shape, device="cuda", generator=generator)
    # One row in two, as of a table that is a view.
    positions = torch.randn(4, longest + 3, device="cuda", generator=generator)[::2]
    times = torch.randn(2, 64 if gaps else 20, device="cuda", generator=generator)
    for time_bias in (None, times):

        def reference(dtype: torch.dtype) -> list[Tensor]:
            given = [q[:total], k[:total], v[:total], positions, *([] if time_bias is None else [time_bias])]  # noqa: B023
            leaves = [x.to(dtype).detach().requires_grad_() for x in given]
            out = attend(
                leaves[0], leaves[1], leaves[2], offsets, longest, width**-0.5, float(longest), None, 0, 0, leaves[3],
                None if time_bias is None else leaves[4], key_times[:total], query_times[:total],  # noqa: B023
            )  # fmt: skip
            return [out.detach(), *torch.autograd.grad(out, leaves, grad[:total].to(dtype))]

        given = (q, k, v, offsets, longest, width**-0.5, float(longest), positions, time_bias, key_times, query_times)
        got = [hopper.forward(*given), *hopper.backward(grad, *given)]
        if time_bias is not None:
            by_query, by_key = hopper.pair_buckets(key_times, query_times, offsets, longest, time_bias.shape[1])
            assert torch.equal(got[0], hopper.forward(*given, by_query))
            ready = hopper.backward(grad, *given, by_key)
            assert all(torch.equal(got[n], ready[n - 1]) for n in (2, 3))
            assert all((got[n] - ready[n - 1]).norm() <= 1e-4 * got[n].norm() for n in (4, 5))
        for n, (mine, exact, near) in enumerate(zip(got, reference(torch.float64), reference(dtype), strict=False)):
            if n < 4:
                assert (mine[total:] == 0).all()
                mine = mine[:total]
            assert (mine - exact).norm() <= (5 if n else 2) * (near - exact).norm()


@pytest.mark.gpu
def test_takes_what_the_copy_engine_can_read() -> None:
    q, k, v, *_ = batch([600])
    assert hopper.eligible(q, k, v, 600)
    assert hopper.eligible(q.contiguous(), k, v, 600)
    assert not hopper.eligible(q.float(), k.float(), v.float(), 600)
    assert not hopper.eligible(q[..., :96], k[..., :96], v, 600)
    assert not hopper.eligible(q.transpose(0, 1).contiguous().transpose(0, 1), k, v, 600)
    odd = torch.zeros(600, 2, 129, dtype=torch.bfloat16, device="cuda")[..., 1:]
    assert not hopper.eligible(odd, k, v, 600)


def test_takes_no_tensors_of_a_processor() -> None:
    q = torch.zeros(600, 2, 128, dtype=torch.bfloat16)
    assert not hopper.eligible(q, q, q, 600)


@pytest.mark.gpu
def test_buckets_of_pairs_are_found_where_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, offsets, _ = batch([1500, 3])
    times = torch.arange(1503, device="cuda") * 1000
    given: dict[str, Any] = {"max_seq_len": 1500, "key_times": times, "query_times": times + 5}
    found = pair_buckets(q, offsets, buckets=64, **given)
    assert [x is not None and x.numel() * 4 for x in found] == [hopper.bytes_of_buckets(2, 1500)] * 2
    with torch.no_grad():
        assert pair_buckets(q, offsets, buckets=64, **given)[1] is None
    assert pair_buckets(q.float(), offsets, buckets=64, **given) == (None, None)
    biases = {"position_bias": torch.randn(2, 1500, device="cuda"), "time_bias": torch.randn(2, 64, device="cuda")}
    out = hstu_attention(q, k, v, offsets, alpha=0.1, pair_buckets=found, **biases, **given)
    assert torch.equal(out, hstu_attention(q, k, v, offsets, alpha=0.1, **biases, **given))
    with pytest.raises(ValueError, match="pair_buckets"):
        hstu_attention(q, k, v, offsets[:2], alpha=0.1, pair_buckets=found, **biases, **given)
    monkeypatch.setattr(operators, "_ROOM", hopper.bytes_of_buckets(2, 1500) - 1)
    assert pair_buckets(q, offsets, buckets=64, **given) == (None, None)
    without = hstu_attention(q, k, v, offsets, alpha=0.1, **biases, **given)
    assert (without - out).norm() <= 0.01 * out.norm()


@pytest.mark.slow
def test_compiles_for_hopper() -> None:
    script = """
import re, torch, triton
from triton.backends.compiler import GPUTarget
class Driver:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
triton.runtime.driver.set_active(Driver())
from kernels.hstu_attention import hopper, hopper_buckets
def compiled(kernel, grid, *arguments, **options):
    kernel = kernel.warmup(*arguments, grid=(grid,), **options)
    own = sum(int(size) for size in re.findall(r"bias_tables\\[(\\d+)\\]", kernel.asm["ptx"]))
    print(kernel.metadata.shared + own)
hopper.launch = hopper_buckets.launch = compiled
hopper._processors = lambda device: 132
offsets = torch.tensor([0, 90])
for width in (64, 128):
    for dtype in (torch.bfloat16, torch.float16):
        q = torch.zeros(100, 2, width, dtype=dtype)
        hopper.forward(q, q, q, offsets, 100, 0.1, 100.0)
        hopper.backward(q, q, q, q, offsets, 100, 0.1, 100.0)
        table, times = torch.zeros(2, 100), torch.zeros(100, dtype=torch.int64)
        hopper.forward(q, q, q, offsets, 100, 0.1, 100.0, table)
        hopper.backward(q, q, q, q, offsets, 100, 0.1, 100.0, table)
        hopper.forward(q, q, q, offsets, 100, 0.1, 100.0, table, table, times, times)
        hopper.backward(q, q, q, q, offsets, 100, 0.1, 100.0, table, table, times, times)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    # Bytes of shared memory: a Hopper processor gives a program 227 KB.
    assert all(int(line) <= 232448 for line in run.stdout.split())
