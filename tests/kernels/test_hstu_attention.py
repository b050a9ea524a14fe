"""The Triton attention against the reference: everywhere by Triton's interpreter on small shapes, on a GPU in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import use
from kernels.hstu_attention import hstu_attention, pair_buckets
from tests.kernels.attention_cases import case

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEARNED = ("q", "k", "v", "position_bias", "time_bias")
RAGGED = [700, 0, 1, 337, 128, 513, 64, 129, 255, 256]


def placed(given_: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A case on the device the kernels run on, q, k and v of a type, alpha and N as in use."""
    found = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in given_.items()}
    fused = torch.cat([found[name].flatten(1) for name in "qkv"], 1).to(dtype)
    heads, widths = found["q"].shape[1], [found[name].shape[1] * found[name].shape[2] for name in "qkv"]
    for name, x in zip("qkv", fused.split(widths, 1), strict=True):
        found[name] = x.unflatten(1, (heads, -1))
    return {"alpha": found["q"].shape[2] ** -0.5} | found


def results(given_: dict[str, Any], backend: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output and gradients by a backend, for one upstream gradient that all types share; dtype: of all numbers, their own without one."""
    inputs = {name: given_[name].detach().to(dtype or given_[name].dtype).requires_grad_() for name in LEARNED if name in given_}
    grad = torch.randn(given_["v"].shape, generator=torch.Generator().manual_seed(1)).to(given_["v"]).to(dtype or given_["v"].dtype)
    with use(backend):
        out = hstu_attention(**given_ | inputs)
        return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), grad)]


def far(x: Tensor, true: Tensor) -> float:
    return float((x.double() - true).norm() / true.norm().clamp(min=1e-30))


def agree(given_: dict[str, Any]) -> None:
    """The gate: at most 2 times (output) and 5 times (gradients) as far from float64 as PyTorch is with the same types.

    And last bits of float32 more, for tables some: a sum of thousands of pairs may come out exact in one order.
    """
    true, plain, mine = results(given_, "reference", torch.float64), results(given_, "reference"), results(given_, "triton")
    for place, (t, p, m) in enumerate(zip(true, plain, mine, strict=True)):
        assert m.shape == t.shape
        assert m.dtype == p.dtype
        assert far(m, t) <= (5 if place else 2) * far(p, t) + (1e-6 if place > 3 else 2e-7), (place, far(m, t), far(p, t))


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.integers(0, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=2).filter(
        lambda sequences: any(n for n, _ in sequences)
    ),
    st.integers(0, 2**20),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 3, 40]),
    st.sampled_from([0, 0, 2, 35]),
    st.sampled_from([0, 5]),
    st.sampled_from([torch.float32, torch.float16]),
)
def test_equals_the_reference(
    sequences: list[tuple[int, int]], seed: int, position: bool, times: bool, targets: bool, window: int, context: int, padding: int,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    lengths = [n for n, _ in sequences]
    asked = [min(t, max(n - context, 0)) for n, t in sequences] if targets else None
    given_ = case(
        lengths, 1, 9, 20, targets=asked, position=position, times=times, seed=seed, padding=padding, normalizer=7.0,
        max_attn_len=window, contextual_len=context,
    )  # fmt: skip
    agree(placed(given_, dtype))


def test_padding_is_zero_and_gives_no_gradient() -> None:
    given_ = placed(case([3, 2], padding=4, times=True))
    out, dq, dk, dv, *_ = results(given_, "triton")
    for x in (out, dq, dk, dv):
        assert (x[5:] == 0).all()
        assert (x[:5] != 0).any()


def test_no_tokens_and_no_sequences() -> None:
    for lengths in ([0, 0], []):
        out, *grads = results(placed(case(lengths, times=True)), "triton")
        assert out.shape == (0, 2, 4)
        assert all((x == 0).all() for x in grads)


def test_times_far_apart() -> None:
    given_ = placed(case([40], times=True, buckets=64, position=False))
    given_["key_times"][0] = given_["query_times"][0] = 0
    agree(given_)


def test_deterministic_sums_repeat() -> None:
    given_ = placed(case([40, 9], 1, times=True), torch.float16) | {"deterministic": True}
    agree(given_)
    for one, other in zip(results(given_, "triton"), results(given_, "triton"), strict=True):
        assert torch.equal(one, other)


def test_the_operator_keeps_its_promises() -> None:
    from kernels.hstu_attention.operators import attention

    c = placed(case([2, 0, 3], 1, times=True, targets=[1, 0, 1], padding=2))
    inputs = [c[name].requires_grad_() for name in "qkv"]
    tables = [c[name].requires_grad_() for name in ("position_bias", "time_bias")]
    tensors = (*inputs, c["offsets"], c["num_targets"], *tables, c["key_times"], c["query_times"], None, None)
    torch.library.opcheck(attention.registered, (*tensors, c["max_seq_len"], 1.0, 5.0, 0, 0, False, False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("dim", "value_dim"), [(25, 25), (50, 50), (64, 64), (128, 128), (64, 32), (256, 256)])
@pytest.mark.parametrize(
    "options",
    [
        {"position": False},
        {"position": True},
        {"times": True, "buckets": 64},
        {"targets": [n // 5 for n in RAGGED], "times": True},
        {"max_attn_len": 90, "position": False},
        {"contextual_len": 100},
        {"targets": [n // 5 for n in RAGGED], "max_attn_len": 70, "contextual_len": 3, "times": True},
        {"deterministic": True, "times": True},
    ],
    ids=lambda options: "+".join(options),
)
def test_gpu_equals_the_reference(dtype: torch.dtype, dim: int, value_dim: int, options: dict[str, Any]) -> None:
    agree(placed(case(RAGGED, 2, dim, value_dim, padding=77, **options), dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 200, 256, 1024, 2500])
def test_gpu_lengths(dtype: torch.dtype, dim: int, length: int) -> None:
    agree(placed(case([length, length // 2], 2, dim, dim, position=False), dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gpu_large_logits(dtype: torch.dtype) -> None:
    given_ = placed(case(RAGGED, 2, 64, 64), dtype) | {"alpha": 1.0}
    scores = given_["q"][:700, 0].float() @ given_["k"][:700, 0].float().T
    assert scores.abs().max() > 20
    agree(given_)


@pytest.mark.gpu
def test_gpu_long_sequence() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(32_900, 3, 1, 64, device=DEVICE, dtype=torch.bfloat16).unbind(1)
    out = hstu_attention(q, k, v, torch.tensor([0, 100, 32_900], device=DEVICE), max_seq_len=32_800, alpha=0.125)
    scores = 0.125 * (q[-64:, 0].double() @ k[100:, 0].double().T)
    seen = torch.arange(32_800, device=DEVICE) <= torch.arange(32_800 - 64, 32_800, device=DEVICE)[:, None]
    true = (torch.nn.functional.silu(scores) * seen) @ v[100:, 0].double() / 32_800
    assert far(out[-64:, 0], true) < 5e-3


@pytest.mark.gpu
def test_gpu_graph_replay_and_compile() -> None:
    given_ = placed(case([200, 3, 0, 77], 2, 50, 50, times=True, padding=9), torch.bfloat16)
    inputs = [given_[name].detach().requires_grad_() for name in LEARNED]
    grad = torch.randn_like(given_["v"])

    def step(*learned: Tensor) -> tuple[Tensor, ...]:
        out = hstu_attention(**given_ | dict(zip(LEARNED, learned, strict=True)) | {"deterministic": True})
        return (out.detach(), *torch.autograd.grad(out, learned, grad))

    expected = step(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(*inputs)
    for x in found:
        x.zero_()
    graph.replay()
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    compiled = torch.compile(lambda *x: hstu_attention(**given_ | dict(zip(LEARNED, x, strict=True))), fullgraph=True)
    assert torch.equal(compiled(*inputs), expected[0])


def test_only_the_kernels_for_long_sequences_want_buckets_of_pairs() -> None:
    c = placed(case([2, 0, 3], 1, times=True))
    times = {"key_times": c["key_times"], "query_times": c["query_times"]}
    assert pair_buckets(c["q"], c["offsets"], max_seq_len=c["max_seq_len"], buckets=64, **times) == (None, None)
