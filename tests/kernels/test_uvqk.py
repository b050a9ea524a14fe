"""The projection before HSTU's attention: its definition, its kernels against float64, and what PyTorch demands of an operator."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.backend import use
from kernels.uvqk import uvqk
from tests.kernels.layer_cases import check, results, uvqk_inputs

NARROW = [(37, 50, 1, 50, 50), (9, 50, 2, 25, 25), (5, 20, 1, 30, 50), (1, 7, 3, 2, 5), (16, 64, 2, 16, 32)]
WIDE = [(33, 96, 2, 40, 70), (3, 24, 2, 33, 20), (130, 80, 1, 64, 128)]
LARGE = [(1000, 50, 1, 50, 50), (14001, 50, 2, 25, 25), (4097, 512, 4, 128, 128), (1500, 256, 8, 32, 64), (777, 100, 2, 50, 25)]
"""Tokens, dim, heads, dim_qk, dim_v."""


def arguments(shape: tuple[int, int, int, int, int], kind: str = "float32", device: str = "cpu") -> tuple[Any, dict[str, torch.Tensor]]:
    """The operator with its sizes, and its tensors."""
    tokens, dim, heads, dim_qk, dim_v = shape
    return partial(uvqk, heads=heads, dim_qk=dim_qk, dim_v=dim_v), uvqk_inputs(tokens, dim, heads, dim_qk, dim_v, kind, device)


def test_the_reference_is_the_definition() -> None:
    operator, inputs = arguments((9, 6, 2, 3, 4))
    x, scale, shift, weight, bias = (t.double().numpy() for t in inputs.values())
    normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    before = (normal * scale + shift) @ weight.T + bias
    after = before / (1 + np.exp(-before))
    with use("reference"):
        u, v, q, k = operator(**inputs)
    np.testing.assert_allclose(u, after[:, :8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(v, after[:, 8:16].reshape(9, 2, 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q, after[:, 16:22].reshape(9, 2, 3), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(k, after[:, 22:].reshape(9, 2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "kind"), [(s, "float32") for s in NARROW + WIDE] + [(s, "float16") for s in (NARROW[1], WIDE[0])])
def test_kernels_are_as_close_to_float64_as_pytorch(shape: tuple[int, int, int, int, int], kind: str) -> None:
    check(*arguments(shape, kind), kind)


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 40), st.integers(8, 70), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
def test_any_sizes_will_do(tokens: int, dim: int, heads: int, dim_qk: int, dim_v: int) -> None:
    check(*arguments((tokens, dim, heads, dim_qk, dim_v)), "float32")


@pytest.mark.parametrize("shape", [(9, 50, 2, 25, 25), (9, 80, 2, 20, 20)])
def test_strides_of_inputs_and_gradients_do_not_matter(shape: tuple[int, int, int, int, int]) -> None:
    operator, inputs = arguments(shape)
    scattered = {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in inputs.items()}
    check(operator, scattered, "float32")

    def turned(**given_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients come back to the operator with the heads not side by side."""
        u, v, q, k = operator(**given_)
        return u * 2, v.transpose(0, 1).contiguous(), q.transpose(0, 1).contiguous(), k.expand_as(k) * 3

    check(turned, inputs, "float32")


def test_no_tokens() -> None:
    operator, inputs = arguments((0, 50, 2, 25, 25))
    found = results(operator, inputs, "triton", "float32")
    assert [list(x.shape) for x in found[:4]] == [[0, 50], [0, 2, 25], [0, 2, 25], [0, 2, 25]]
    assert all(not x.any() for x in found)


def test_large_and_constant_rows_stay_finite() -> None:
    operator, inputs = arguments((4, 50, 1, 50, 50))
    inputs["x"] = torch.stack([torch.zeros(50), torch.full((50,), 3e4), torch.randn(50) * 1e4, torch.randn(50) * 1e-6])
    inputs["weight"] = inputs["weight"] * 40
    check(operator, inputs, "float32")


@pytest.mark.parametrize("shape", [(5, 50, 2, 25, 25), (5, 70, 2, 20, 35)])
def test_is_an_operator_to_pytorch(shape: tuple[int, int, int, int, int]) -> None:
    _, inputs = arguments(shape)
    leaves = [x.requires_grad_() for x in inputs.values()]
    operator = torch.ops.workbench.uvqk.default
    torch.library.opcheck(operator, (*leaves, *shape[2:], 1e-5, torch.float32))


@pytest.mark.parametrize("name", ["norm_weight", "norm_bias", "weight", "bias"])
def test_a_wrong_shape_is_named(name: str) -> None:
    operator, inputs = arguments((3, 6, 2, 3, 4))
    with pytest.raises(ValueError, match=f"{name} is .* needs the shape"):
        operator(**inputs | {name: torch.zeros(5)})


def test_x_has_two_dimensions() -> None:
    operator, inputs = arguments((3, 6, 2, 3, 4))
    with pytest.raises(ValueError, match=r"x \[1, 3, 6\] needs the shape"):
        operator(**inputs | {"x": inputs["x"][None]})


@pytest.mark.gpu
class TestOnAGPU:
    """The full matrix, and what only a GPU has."""

    @pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "autocast"])
    @pytest.mark.parametrize("shape", [*NARROW[1:4], WIDE[0], *LARGE])
    def test_as_close_to_float64_as_pytorch(self, shape: tuple[int, int, int, int, int], kind: str) -> None:
        check(*arguments(shape, kind, "cuda"), kind)

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_repeats_exactly(self, shape: tuple[int, int, int, int, int]) -> None:
        operator, inputs = arguments(shape, "autocast", "cuda")
        once, again = (results(operator, inputs, "triton", "autocast") for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_works_compiled(self, shape: tuple[int, int, int, int, int]) -> None:
        operator, inputs = arguments(shape, "autocast", "cuda")
        plain = results(operator, inputs, "triton", "autocast")
        compiled = results(torch.compile(operator, fullgraph=True, backend="aot_eager"), inputs, "triton", "autocast")
        for x, y in zip(plain, compiled, strict=True):
            torch.testing.assert_close(x, y)

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_works_in_a_cuda_graph(self, shape: tuple[int, int, int, int, int]) -> None:
        operator, inputs = arguments(shape, "float32", "cuda")
        step = partial(
            results, operator, inputs, "triton", "float32", [torch.ones((), device="cuda").expand(x) for x in self.outputs(shape)]
        )
        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        for x in found:
            x.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))

    @staticmethod
    def outputs(shape: tuple[int, int, int, int, int]) -> list[tuple[int, ...]]:
        tokens, _, heads, dim_qk, dim_v = shape
        return [(tokens, heads * dim_v), (tokens, heads, dim_v), (tokens, heads, dim_qk), (tokens, heads, dim_qk)]
