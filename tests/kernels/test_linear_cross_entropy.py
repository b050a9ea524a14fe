"""The linear cross-entropy: the reference against PyTorch's, and the kernels against the reference."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels.backend import use
from kernels.linear_cross_entropy import linear_cross_entropy, reference
from tests.kernels.loss_cases import DEVICE, TYPES, assert_as_exact, run_loss, with_gradients

# Rows behind the last item overflow float16, unseen.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
# Few, because each is a kernel of its own to compile.
DIMS = st.sampled_from([1, 7, 16, 33])


def case(
    tokens: int,
    dim: int,
    items: int,
    *,
    dtype: torch.dtype = torch.float32,
    valid: bool = True,
    seed: int = 0,
    size: float = 1.0,
    **rest: Any,
) -> dict[str, Any]:
    """Arguments of `linear_cross_entropy`; scores are about `size`, and targets of positions that are not valid are no item's."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(items, (tokens,), generator=generator)
    found = {
        "states": (size * torch.randn(tokens, dim, generator=generator)).to(dtype),
        "targets": targets,
        "items": (torch.randn(items, dim, generator=generator) / dim**0.5).to(dtype),
    }
    if valid:
        found["valid"] = torch.rand(tokens, generator=generator) < 0.8
        found["targets"] = torch.where(found["valid"], targets, 10**10)
    return {name: value.to(DEVICE) for name, value in found.items()} | rest


run = partial(run_loss, linear_cross_entropy)


def plain(given_: dict[str, Any]) -> list[Tensor]:
    """The same as `run`, by PyTorch's functions in the type of the inputs: the accuracy the kernels have to keep."""
    states, items = (given_[name].detach().clone().requires_grad_() for name in ("states", "items"))
    real = given_.get("valid", torch.ones(len(states), dtype=torch.bool, device=states.device))
    losses = functional.cross_entropy(
        given_.get("scale", 1.0) * (states @ items.T), torch.where(real, given_["targets"], 0), reduction="none"
    )
    losses = torch.where(real, losses, 0.0)
    return with_gradients(losses, states, items)


def assert_as_exact_as_plain(given_: dict[str, Any]) -> None:
    """Losses within twice, gradients within five times the error of PyTorch at that type, against float64."""
    assert_as_exact(run(given_, "triton"), plain(given_), run(given_, "reference", torch.float64))


@pytest.fixture(params=["fused", "chunked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in turn, whatever the width of the vectors; the chunks are small."""
    from kernels.linear_cross_entropy import chunked

    monkeypatch.setattr(chunked, "faster", lambda states, items: request.param == "chunked")
    monkeypatch.setattr(chunked, "SCORES", 4096)
    return str(request.param)


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_reference_is_cross_entropy(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = case(9, 4, 7, valid=False, scale=2.0)
    monkeypatch.setattr(reference, "_ROOM", 63 // pieces)
    for found, expected in zip(run(given_, "reference"), plain(given_), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_gradients_of_the_reference_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = case(5, 3, 6, dtype=torch.float64, scale=0.7)
    inputs = tuple(given_[name].requires_grad_() for name in ("states", "items"))
    for room in (2**20, 12):
        monkeypatch.setattr(reference, "_ROOM", room)
        with use("reference"):
            assert torch.autograd.gradcheck(lambda s, x: linear_cross_entropy(**given_ | {"states": s, "items": x}), inputs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "dim", "items"), [(1, 1, 1), (9, 5, 13), (140, 25, 77), (10, 50, 700), (64, 64, 128), (9, 200, 130)])
def test_kernels(form: str, tokens: int, dim: int, items: int, dtype: torch.dtype) -> None:
    assert_as_exact_as_plain(case(tokens, dim, items, dtype=dtype, size=4.0, scale=1.3))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 140), DIMS, st.integers(1, 200), st.booleans(), st.integers(0, 99))
def test_kernels_at_any_size(tokens: int, dim: int, items: int, valid: bool, seed: int) -> None:
    assert_as_exact_as_plain(case(tokens, dim, items, valid=valid, seed=seed))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [20.0, 100.0])
def test_large_scores(form: str, size: float, dtype: torch.dtype) -> None:
    assert_as_exact_as_plain(case(40, 32, 90, dtype=dtype, size=size))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_slopes_of_any_size(form: str, size: float, dtype: torch.dtype) -> None:
    """Such as those of a mean, or of a loss that was scaled."""
    given_ = case(40, 16, 60, dtype=dtype)
    with use("triton"):
        leaves = {name: given_[name].detach().clone().requires_grad_() for name in ("states", "items")}
        (linear_cross_entropy(**given_ | leaves) * size).sum().backward()
    exact = {name: given_[name].detach().double().requires_grad_() for name in ("states", "items")}
    with use("reference"):
        (linear_cross_entropy(**given_ | exact) * size).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert exact[name].grad is not None
        error = (leaf.grad.double() - exact[name].grad).norm() / exact[name].grad.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


def test_a_target_far_above_the_rest_costs_nothing() -> None:
    given_ = case(20, 16, 50, valid=False)
    given_["targets"] = torch.arange(20, device=DEVICE)
    given_["states"] = 100 * functional.normalize(given_["items"][:20])
    given_["items"] = functional.normalize(given_["items"])
    losses, to_states, _ = run(given_, "triton")
    assert (losses >= 0).all()
    torch.testing.assert_close(losses, run(given_, "reference", torch.float64)[0], atol=2e-6, rtol=1e-4)
    assert to_states.isfinite().all()


def test_positions_that_are_not_valid_lose_nothing(form: str) -> None:
    given_ = case(150, 6, 30)
    given_["valid"][128:] = False
    losses, to_states, _ = run(given_, "triton")
    padding = ~given_["valid"]
    assert (losses[padding] == 0).all()
    assert (to_states[padding] == 0).all()


def test_results_repeat_to_the_last_bit(form: str) -> None:
    given_ = case(66, 20, 80)
    first = run(given_, "triton")
    assert all(torch.equal(a, b) for a, b in zip(first, run(given_, "triton"), strict=True))


def test_strided_views(form: str) -> None:
    given_ = case(50, 10, 60)
    wide = {name: torch.stack([given_[name]] * 2, -1)[..., 0] for name in ("states", "items", "targets", "valid")}
    assert not wide["states"].is_contiguous()
    for found, expected in zip(run(given_ | wide, "triton"), run(given_, "triton"), strict=True):
        torch.testing.assert_close(found, expected)


def test_autocast_chooses_the_type() -> None:
    given_ = case(9, 5, 13)
    given_["states"] = given_["states"].bfloat16()
    with torch.autocast(DEVICE, torch.bfloat16), use("reference"):
        found = linear_cross_entropy(**given_)
    with use("reference"):
        expected = linear_cross_entropy(**given_ | {"items": given_["items"].bfloat16()})
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "needs to be above 0"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"need the shape \[4\]"),
        ({"targets": torch.zeros(4)}, "the type int64"),
        ({"items": torch.zeros(5, 7)}, r"need the shapes \[T, D\] and \[I, D\]"),
        ({"items": torch.zeros(0, 3)}, "I at least 1"),
        ({"items": torch.zeros(5, 3, dtype=torch.float16)}, "convert both to one floating type"),
        ({"valid": torch.ones(4)}, "the type bool"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**case(4, 3, 5) | change)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("tokens", "dim", "items"),
    [(3001, 50, 3416), (4096, 64, 2048), (2000, 128, 12102), (1111, 256, 5000), (500, 512, 3001), (77, 1000, 999)],
)
def test_kernels_on_a_gpu(tokens: int, dim: int, items: int, dtype: torch.dtype) -> None:
    for size in (1.0, 20.0):
        assert_as_exact_as_plain(case(tokens, dim, items, dtype=dtype, size=size))


@pytest.mark.gpu
def test_scores_are_never_all_held() -> None:
    given_ = case(4096, 64, 50_000, dtype=torch.bfloat16)
    leaves = {name: given_[name].requires_grad_() for name in ("states", "items")}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(**given_ | leaves).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 4096 * 50_000 // 4


@pytest.mark.gpu
def test_as_an_operator() -> None:
    from kernels.linear_cross_entropy.operators import losses_and_sums

    given_ = case(40, 16, 50)
    states, items = (given_[name].requires_grad_() for name in ("states", "items"))
    torch.library.opcheck(losses_and_sums.registered, (states, given_["targets"], items, 0.9, given_["valid"]), atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_under_torch_compile(form: str) -> None:
    given_ = case(64, 16, 100)

    def loss(states: Tensor, items: Tensor) -> Tensor:
        return linear_cross_entropy(2 * states, given_["targets"], items, valid=given_["valid"]).sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [given_[name].detach().clone().requires_grad_() for name in ("states", "items")]
        function(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_in_a_cuda_graph(form: str) -> None:
    given_ = case(64, 16, 100)
    leaves = [given_[name].detach().clone().requires_grad_() for name in ("states", "items")]

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear_cross_entropy(**given_ | dict(zip(("states", "items"), leaves, strict=True))).sum(), leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].mul_(-1)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
