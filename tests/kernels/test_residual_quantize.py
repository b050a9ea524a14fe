"""Residual quantization: codes against distances in float64, level by level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import use
from kernels.residual_quantize import residual_quantize

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BACKENDS: list[Any] = ["reference", "triton"]
ROUNDING = 4 * 2.0**-23
"""How far a chosen code may be behind the nearest, in squares of the lengths of the residual and the code."""

# Few, because each is a kernel of its own to compile.
DIMS = st.sampled_from([1, 7, 33, 140])


def case(count: int, dim: int, levels: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shrink = 0.6 ** torch.arange(levels)[:, None, None]
    codebooks = shrink * torch.randn(levels, size, dim, generator=generator)
    return torch.randn(count, dim, generator=generator).to(DEVICE, dtype), codebooks.to(DEVICE, dtype)


def assert_nearest(x: Tensor, codebooks: Tensor, codes: Tensor, residual: Tensor) -> None:
    """Each level's code is the nearest to what the levels before left, up to float32 rounding, and the residual is what is left."""
    assert codes.dtype == torch.int64
    assert codes.shape == (len(x), len(codebooks))
    left = x.double()
    for code, codebook in zip(codes.T, codebooks.double(), strict=True):
        distance = (left[:, None] - codebook).square().sum(2) if left.numel() * len(codebook) < 1e7 else torch.cdist(left, codebook) ** 2
        lengths = left.square().sum(1) + codebook[code].square().sum(1)
        behind = distance.gather(1, code[:, None])[:, 0] - distance.amin(1)
        assert (behind <= ROUNDING * lengths).all()
        left = left - codebook[code]
    torch.testing.assert_close(residual.double(), left, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("count", "dim", "levels", "size"), [(1, 1, 1, 1), (100, 32, 3, 256), (70, 50, 2, 100), (65, 128, 2, 40), (33, 200, 3, 150)]
)
def test_codes_are_the_nearest(backend: Any, dtype: torch.dtype, count: int, dim: int, levels: int, size: int) -> None:
    x, codebooks = case(count, dim, levels, size, dtype=dtype)
    with use(backend):
        codes, residual = residual_quantize(x, codebooks)
    assert residual.dtype == torch.float32
    assert_nearest(x, codebooks, codes, residual)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 130), DIMS, st.integers(1, 3), st.integers(1, 80), st.integers(0, 99))
def test_codes_are_the_nearest_at_any_size(count: int, dim: int, levels: int, size: int, seed: int) -> None:
    x, codebooks = case(count, dim, levels, size, seed)
    with use("triton"):
        assert_nearest(x, codebooks, *residual_quantize(x, codebooks))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [16, 150])
def test_of_equals_the_first_is_chosen(backend: Any, dim: int) -> None:
    x, codebooks = case(60, dim, 2, 33)
    codebooks = codebooks.repeat(1, 4, 1)
    with use(backend):
        codes, _ = residual_quantize(x, codebooks)
    assert (codes < 33).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_themselves_leave_nothing(backend: Any) -> None:
    _, codebooks = case(0, 12, 1, 40)
    with use(backend):
        codes, residual = residual_quantize(codebooks[0], codebooks)
    assert codes[:, 0].tolist() == list(range(40))
    assert (residual == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin(backend: Any) -> None:
    x, codebooks = case(50, 24, 2, 60)
    x, codebooks[0] = x + 30, codebooks[0] + 30
    with use(backend):
        assert_nearest(x, codebooks, *residual_quantize(x, codebooks))


def test_no_gradient_passes() -> None:
    x, codebooks = case(5, 3, 2, 4)
    for backend in BACKENDS:
        with use(backend):
            assert not residual_quantize(x.requires_grad_(), codebooks.requires_grad_())[1].requires_grad


@pytest.mark.parametrize("dim", [10, 140])
def test_strided_views_are_read_and_left_as_they_are(dim: int) -> None:
    x, codebooks = case(20, dim, 2, 30)
    wide = x.T.contiguous().T
    before = wide.clone()
    with use("triton"):
        for found, expected in zip(residual_quantize(wide, codebooks.flip(1).flip(1)), residual_quantize(x, codebooks), strict=True):
            assert torch.equal(found, expected)
    assert torch.equal(wide, before)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("x", "codebooks", "message"),
    [
        (torch.zeros(3), torch.zeros(1, 2, 3), "need the shapes"),
        (torch.zeros(2, 4), torch.zeros(1, 2, 3), "need the shapes"),
        (torch.zeros(2, 3), torch.zeros(1, 0, 3), "at least one level of one code"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1, 2, 3), "floating type"),
    ],
)
def test_what_does_not_fit_is_refused(x: Tensor, codebooks: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        residual_quantize(x, codebooks)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("count", "dim", "levels", "size"), [(12_101, 32, 3, 256), (5000, 64, 4, 256), (3000, 96, 3, 1000), (3000, 768, 3, 256)]
)
def test_on_a_gpu(count: int, dim: int, levels: int, size: int) -> None:
    x, codebooks = case(count, dim, levels, size)
    codebooks[:, size // 2] = codebooks[:, 1]
    codes, residual = residual_quantize(x, codebooks)
    assert_nearest(x, codebooks, codes, residual)
    assert (codes != size // 2).all()
    again = residual_quantize(x, codebooks)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], residual)


@pytest.mark.gpu
def test_as_an_operator() -> None:
    from kernels.residual_quantize.operators import quantize

    for dim in (16, 200):
        torch.library.opcheck(quantize.registered, case(40, dim, 2, 30))
        compiled = torch.compile(residual_quantize, backend="aot_eager")
        assert torch.equal(compiled(*case(40, dim, 2, 30))[0], residual_quantize(*case(40, dim, 2, 30))[0])


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    x, codebooks = case(100, 32, 3, 64)
    residual_quantize(x, codebooks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = residual_quantize(x, codebooks)
    x.mul_(-1)
    graph.replay()
    for found, expected in zip(captured, residual_quantize(x, codebooks), strict=True):
        assert torch.equal(found, expected)
