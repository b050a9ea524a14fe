"""The output after HSTU's attention: its definition, its dropout, its kernels against float64, and what PyTorch demands of an operator."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.backend import use
from kernels.hstu_output import hstu_output
from kernels.hstu_output.reference import draws
from tests.kernels.layer_cases import check, output_inputs, results

NARROW = [(37, 50, 50), (5, 20, 30), (1, 7, 3), (64, 64, 64)]
WIDE = [(33, 96, 70), (3, 20, 80), (130, 128, 64)]
LARGE = [(1000, 50, 50), (14001, 50, 50), (4097, 512, 512), (1500, 256, 100)]
"""Tokens, columns of what was attended to, dim."""
SEED = 2**62 + 12345


def arguments(
    shape: tuple[int, int, int], kind: str = "float32", device: str = "cpu", dropout: float = 0.0
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The operator with its dropout, and its tensors."""
    seed = torch.tensor(SEED, device=device)
    return partial(hstu_output, dropout=dropout, training=True, seed=seed), output_inputs(*shape, kind, device)


def test_the_reference_is_the_definition() -> None:
    operator, inputs = arguments((9, 8, 6))
    attended, u, x, scale, shift, weight, bias = (t.double().numpy() for t in inputs.values())
    normal = (attended - attended.mean(1, keepdims=True)) / np.sqrt(attended.var(1, keepdims=True) + 1e-5)
    with use("reference"):
        found = operator(**inputs)
    np.testing.assert_allclose(found, x + ((normal * scale + shift) * u) @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_dropout_keeps_its_share_and_the_mean(backend: Any) -> None:
    # A norm of zero weight and a projection that does nothing leave the mask alone.
    inputs = output_inputs(256, 64, 64, "float32", "cpu")
    zero = torch.zeros(64)
    inputs |= {"u": torch.ones(256, 64), "x": torch.zeros(256, 64), "weight": torch.eye(64)}
    inputs |= {"norm_weight": zero, "norm_bias": zero + 1, "bias": zero}
    with use(backend):
        mask = hstu_output(**inputs, dropout=0.25, training=True, seed=torch.tensor(SEED))
        other = hstu_output(**inputs, dropout=0.25, training=True, seed=torch.tensor(SEED + 2**32))
        whole = hstu_output(**inputs, dropout=0.25, training=False)
    kept = (draws(torch.tensor(SEED), 256, 64) >= 2**14).float()
    torch.testing.assert_close(mask, kept / 0.75)
    assert abs(float(kept.mean()) - 0.75) < 4 * (0.25 * 0.75 / kept.numel()) ** 0.5
    # Two seeds agree where chance has it.
    assert abs(float((mask == other).float().mean()) - 0.625) < 0.02
    assert torch.equal(whole, torch.ones(256, 64))


def test_draws_are_philox() -> None:
    # The known answer of Salmon et al. for a counter and a key of zeros.
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert draws(torch.tensor(0), 1, 8)[0].tolist() == [part for w in words for part in (w % 2**16, w // 2**16)]


def test_a_seed_is_drawn_if_none_is_given() -> None:
    inputs = output_inputs(20, 16, 16, "float32", "cpu")
    with use("reference"):
        torch.manual_seed(5)
        first, second = (hstu_output(**inputs, dropout=0.5, training=True) for _ in range(2))
        torch.manual_seed(5)
        again = hstu_output(**inputs, dropout=0.5, training=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("shape", "kind"), [(s, "float32") for s in NARROW + WIDE] + [(s, "float16") for s in (NARROW[0], WIDE[0])])
def test_kernels_are_as_close_to_float64_as_pytorch(shape: tuple[int, int, int], kind: str, dropout: float) -> None:
    check(*arguments(shape, kind, dropout=dropout), kind)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(8, 70), st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.9]))
def test_any_sizes_will_do(tokens: int, inner: int, dim: int, dropout: float) -> None:
    check(*arguments((tokens, inner, dim), dropout=dropout), "float32")


@pytest.mark.parametrize("shape", [(9, 50, 50), (9, 80, 40)])
def test_strides_do_not_matter(shape: tuple[int, int, int]) -> None:
    operator, inputs = arguments(shape, dropout=0.2)
    check(operator, {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in inputs.items()}, "float32")

    def turned(**given_: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = operator(**given_)
        return out.T.contiguous()

    check(turned, inputs, "float32")


def test_no_tokens() -> None:
    operator, inputs = arguments((0, 50, 40))
    found = results(operator, inputs, "triton", "float32")
    assert list(found[0].shape) == [0, 40]
    assert all(not x.any() for x in found)


@pytest.mark.parametrize("shape", [(5, 50, 50), (5, 70, 30)])
@pytest.mark.parametrize("dropped", [0, 2**14])
def test_is_an_operator_to_pytorch(shape: tuple[int, int, int], dropped: int) -> None:
    leaves = [x.requires_grad_() for x in output_inputs(*shape, "float32", "cpu").values()]
    seed = torch.tensor(SEED) if dropped else None
    torch.library.opcheck(torch.ops.workbench.hstu_output.default, (*leaves, seed, dropped, 1e-5, torch.float32))


@pytest.mark.parametrize("name", ["u", "norm_weight", "norm_bias", "weight", "bias"])
def test_a_wrong_shape_is_named(name: str) -> None:
    operator, inputs = arguments((3, 6, 4))
    with pytest.raises(ValueError, match=f"{name} is .* needs the shape"):
        operator(**inputs | {name: torch.zeros(5)})


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must be at least 0 and less than 1"):
        hstu_output(**output_inputs(3, 6, 4, "float32", "cpu"), dropout=share)


@pytest.mark.gpu
class TestOnAGPU:
    """The full matrix, and what only a GPU has."""

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "autocast"])
    @pytest.mark.parametrize("shape", [*NARROW[1:3], WIDE[0], *LARGE])
    def test_as_close_to_float64_as_pytorch(self, shape: tuple[int, int, int], kind: str, dropout: float) -> None:
        check(*arguments(shape, kind, "cuda", dropout), kind)

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_repeats_exactly(self, shape: tuple[int, int, int]) -> None:
        operator, inputs = arguments(shape, "autocast", "cuda", 0.2)
        once, again = (results(operator, inputs, "triton", "autocast") for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(once, again, strict=True))

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_works_compiled(self, shape: tuple[int, int, int]) -> None:
        operator, inputs = arguments(shape, "autocast", "cuda", 0.2)
        plain = results(operator, inputs, "triton", "autocast")
        compiled = results(torch.compile(operator, fullgraph=True, backend="aot_eager"), inputs, "triton", "autocast")
        for x, y in zip(plain, compiled, strict=True):
            torch.testing.assert_close(x, y)

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_a_cuda_graph_draws_anew(self, shape: tuple[int, int, int]) -> None:
        inputs = output_inputs(*shape, "float32", "cuda")
        with use("triton"):
            hstu_output(**inputs, dropout=0.5, training=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = hstu_output(**inputs, dropout=0.5, training=True)
        graph.replay()
        once = found.clone()
        graph.replay()
        assert not torch.equal(once, found)

    @pytest.mark.parametrize("shape", LARGE[:3])
    def test_works_in_a_cuda_graph(self, shape: tuple[int, int, int]) -> None:
        operator, inputs = arguments(shape, "float32", "cuda", 0.2)
        slopes = torch.ones(shape[0], shape[2], device="cuda")

        def step() -> list[torch.Tensor]:
            # The gradient of the residual is the slopes themselves.
            found = results(operator, inputs, "triton", "float32", [slopes])
            return [x for x in found if x.data_ptr() != slopes.data_ptr()]

        expected = step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        for x in found:
            x.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
