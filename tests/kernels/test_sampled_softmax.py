"""The sampled softmax: the reference against its definition, and the kernels against the reference."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kernels.backend import use
from kernels.sampled_softmax import sampled_softmax
from tests.kernels.loss_cases import DEVICE, TYPES, assert_as_exact, run_loss, with_gradients

# Few, because each is a kernel of its own to compile; not 1, of which every cosine gradient is 0.
DIMS = st.sampled_from([4, 7, 16, 33])


def case(
    tokens: int,
    count: int,
    dim: int,
    items: int,
    *,
    shared: bool = False,
    dtype: torch.dtype = torch.float32,
    valid: bool = True,
    seed: int = 0,
    size: float = 1.0,
    **rest: Any,
) -> dict[str, Any]:
    """Arguments of `sampled_softmax`; targets of positions that are not valid are no item's."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(items, (tokens,), generator=generator)
    negatives = torch.randperm(items, generator=generator)[:count]
    if not shared:
        negatives = torch.randint(items, (tokens, count), generator=generator)
    found = {
        "states": (size * torch.randn(tokens, dim, generator=generator)).to(dtype),
        "targets": targets,
        "negatives": negatives,
        "items": torch.randn(items, dim, generator=generator).to(dtype),
    }
    if valid:
        found["valid"] = torch.rand(tokens, generator=generator) < 0.8
        found["targets"] = torch.where(found["valid"], targets, 10**6)
    return {name: value.to(DEVICE) for name, value in found.items()} | rest


def by_element(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, *, temperature: float, similarity: str, valid: Tensor, eps: float
) -> list[float]:
    """The losses, position by position."""
    if similarity == "cosine":
        states, items = (x / x.norm(dim=1, keepdim=True).clamp(min=eps) for x in (states, items))
    losses = []
    for t in range(len(states)):
        if not valid[t]:
            losses.append(0.0)
            continue
        scores = (items @ states[t] / temperature).tolist()
        target = int(targets[t])
        drawn = [n for n in (negatives if negatives.ndim == 1 else negatives[t]).tolist() if n != target]
        losses.append(math.log(sum(math.exp(scores[n]) for n in [target, *drawn])) - scores[target])
    return losses


run = partial(run_loss, sampled_softmax)


def plain(given_: dict[str, Any]) -> list[Tensor]:
    """The same as `run`, by the plain formula in the type of the inputs: the accuracy the kernels have to keep."""
    states, items = (given_[name].detach().clone().requires_grad_() for name in ("states", "items"))
    left, right = states, items
    if given_.get("similarity", "cosine") == "cosine":
        left, right = functional.normalize(left, dim=1), functional.normalize(right, dim=1)
    left = left / given_.get("temperature", 1.0)
    real = given_.get("valid", torch.ones(len(states), dtype=torch.bool, device=states.device))
    targets, negatives = torch.where(real, given_["targets"], 0), given_["negatives"]
    positive = (left * right[targets]).sum(1)
    drawn = right[negatives]
    scores = left @ drawn.T if negatives.ndim == 1 else torch.einsum("td,tnd->tn", left, drawn)
    scores = torch.cat([positive[:, None], scores.masked_fill(negatives == targets[:, None], -torch.inf)], 1)
    losses = torch.where(real, scores.logsumexp(1) - positive, 0.0)
    return with_gradients(losses, states, items)


def assert_as_exact_as_plain(given_: dict[str, Any], backend: Any = "triton") -> None:
    """Losses within twice, gradients within five times the error of the plain formula at that type, against float64."""
    assert_as_exact(run(given_, backend), plain(given_), run(given_, "reference", torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 6), st.integers(1, 8), st.integers(1, 9), st.integers(1, 7), st.booleans(), st.sampled_from(["cosine", "dot"]),
    st.sampled_from([0.3, 1.0]), st.integers(0, 99),
)  # fmt: skip
def test_the_reference_is_the_definition(
    tokens: int, count: int, dim: int, items: int, shared: bool, similarity: str, temperature: float, seed: int
) -> None:
    given_ = case(
        tokens, count, dim, items, shared=shared, dtype=torch.float64, seed=seed, temperature=temperature, similarity=similarity, eps=1e-12
    )
    with use("reference"):
        found = sampled_softmax(**given_)
    torch.testing.assert_close(found.cpu(), torch.tensor(by_element(**given_), dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(2, 7), st.sampled_from([1.0, 20.0]), st.integers(0, 99))
def test_a_shared_negative_drawn_twice_counts_twice_and_a_target_once(tokens: int, count: int, items: int, size: float, seed: int) -> None:
    given_ = case(
        tokens, count, 3, items, shared=True, dtype=torch.float64, seed=seed, size=size, temperature=0.5, similarity="dot", eps=1e-12
    )
    given_["negatives"] = torch.randint(items, (count,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    found, *grads = run(given_, "reference")
    torch.testing.assert_close(found.cpu(), torch.tensor(by_element(**given_), dtype=torch.float64))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradients_of_the_reference_are_those_of_finite_differences(shared: bool, similarity: str) -> None:
    given_ = case(5, 4, 3, 6, shared=shared, dtype=torch.float64, temperature=0.5, similarity=similarity)
    inputs = tuple(given_[name].requires_grad_() for name in ("states", "items"))
    with use("reference"):
        assert torch.autograd.gradcheck(lambda s, x: sampled_softmax(**given_ | {"states": s, "items": x}), inputs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("tokens", "count", "dim", "items"), [(6, 5, 3, 9), (5, 130, 50, 211), (3, 20, 200, 30)])
def test_kernels(tokens: int, count: int, dim: int, items: int, shared: bool, similarity: str, dtype: torch.dtype) -> None:
    temperature = 0.1 if similarity == "cosine" else 1.0
    assert_as_exact_as_plain(case(tokens, count, dim, items, shared=shared, dtype=dtype, temperature=temperature, similarity=similarity))


@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_of_more_than_one_block_of_positions(dtype: torch.dtype) -> None:
    assert_as_exact_as_plain(case(150, 80, 25, 100, shared=True, dtype=dtype, temperature=0.1))


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 40), DIMS, st.integers(1, 30), st.booleans(), st.booleans(), st.integers(0, 99)
)  # fmt: skip
def test_kernels_at_any_size(tokens: int, count: int, dim: int, items: int, shared: bool, valid: bool, seed: int) -> None:
    assert_as_exact_as_plain(case(tokens, count, dim, items, shared=shared, valid=valid, seed=seed, temperature=0.5))


@pytest.mark.parametrize("shared", [False, True])
def test_large_scores(shared: bool) -> None:
    assert_as_exact_as_plain(case(10, 60, 32, 90, shared=shared, size=18.0, similarity="dot"))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shared", [False, True])
def test_hits_do_not_count(backend: Any, shared: bool) -> None:
    given_ = case(4, 6, 3, 5, valid=False)
    given_["targets"] = torch.full_like(given_["targets"], 2)
    given_["negatives"] = torch.full_like(given_["negatives"][0] if shared else given_["negatives"], 2)
    losses, to_states, to_items = run(given_, backend)
    for tensor in (losses, to_states, to_items):
        torch.testing.assert_close(tensor, torch.zeros_like(tensor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shared", [False, True])
def test_positions_that_are_not_valid_lose_nothing(backend: Any, shared: bool) -> None:
    given_ = case(12, 6, 3, 20, shared=shared)
    losses, to_states, _ = run(given_, backend)
    padding = ~given_["valid"]
    assert padding.any()
    assert (losses[padding] == 0).all()
    assert (to_states[padding] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_vector_of_zeros_has_a_finite_gradient(shared: bool) -> None:
    given_ = case(5, 7, 4, 9, shared=shared, valid=False, eps=1e-3)
    given_["states"][1] = 0
    given_["items"][given_["negatives"].flatten()[0]] = 0
    for found, exact in zip(run(given_, "triton"), run(given_, "reference", torch.float64), strict=True):
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)


def test_states_and_items_of_two_types() -> None:
    given_ = case(9, 20, 16, 30, dtype=torch.float16)
    given_["items"] = given_["items"].float()
    for shared in (False, True):
        chosen = given_ | {"negatives": given_["negatives"][0].unique()} if shared else given_
        leaves = {name: chosen[name].detach().clone().requires_grad_() for name in ("states", "items")}
        with use("triton"):
            sampled_softmax(**chosen | leaves).sum().backward()
        assert leaves["states"].grad is not None
        assert leaves["states"].grad.dtype == torch.float16
        exact = {name: chosen[name].detach().double().requires_grad_() for name in ("states", "items")}
        with use("reference"):
            sampled_softmax(**chosen | exact).sum().backward()
        assert leaves["items"].grad is not None
        assert exact["items"].grad is not None
        torch.testing.assert_close(leaves["items"].grad, exact["items"].grad.float(), atol=1e-5, rtol=1e-4)


def test_strided_views() -> None:
    given_ = case(9, 12, 10, 30)
    wide = {name: torch.stack([given_[name]] * 2, -1)[..., 0] for name in ("states", "items", "negatives", "targets")}
    assert not wide["states"].is_contiguous()
    for found, expected in zip(run(given_ | wide, "triton"), run(given_, "triton"), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_deterministic_algorithms_repeat_to_the_last_bit(shared: bool) -> None:
    given_ = case(9, 30, 10, 11, shared=shared, temperature=0.2)
    assert_as_exact_as_plain(given_)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        runs = [run(given_, "triton") for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
    for found, exact in zip(runs[0], run(given_, "reference", torch.float64), strict=True):
        torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": "euclid"}, "give 'cosine' or 'dot'"),
        ({"temperature": 0.0}, "need to be above 0"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"need the shape \[4\]"),
        ({"targets": torch.zeros(4)}, "the type int64"),
        ({"negatives": torch.zeros(3, 2, dtype=torch.int64)}, r"need the shape \[4, N\] or \[N\]"),
        ({"items": torch.zeros(5, 7)}, r"need the shapes \[T, D\] and \[I, D\]"),
        ({"valid": torch.ones(4)}, "the type bool"),
        ({"states": torch.zeros(4, 3, dtype=torch.int64)}, "floating type"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled_softmax(**case(4, 2, 3, 5) | change)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("tokens", "count", "dim", "items"),
    [(1, 1, 1, 1), (3001, 128, 50, 3416), (2048, 128, 64, 3416), (777, 500, 25, 1000), (512, 256, 256, 9000), (130, 64, 1000, 500)],
)
def test_kernels_on_a_gpu(tokens: int, count: int, dim: int, items: int, shared: bool, similarity: str, dtype: torch.dtype) -> None:
    temperature = 0.05 if similarity == "cosine" else 2.0
    assert_as_exact_as_plain(case(tokens, count, dim, items, shared=shared, dtype=dtype, temperature=temperature, similarity=similarity))


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
def test_as_an_operator(shared: bool) -> None:
    from kernels.sampled_softmax.operators import losses_and_sums

    given_ = case(20, 16, 8, 50, shared=shared)
    states, items = (given_[name].requires_grad_() for name in ("states", "items"))
    torch.library.opcheck(
        losses_and_sums.registered, (states, given_["targets"], given_["negatives"], items, 0.1, True, 1e-6, given_["valid"], False),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
def test_under_torch_compile(shared: bool) -> None:
    given_ = case(64, 32, 16, 100, shared=shared)

    def loss(states: Tensor, items: Tensor) -> Tensor:
        return sampled_softmax(2 * states, given_["targets"], given_["negatives"], items, temperature=0.1, valid=given_["valid"]).sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [given_[name].detach().clone().requires_grad_() for name in ("states", "items")]
        function(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    for eager, compiled in zip(*grads, strict=True):
        torch.testing.assert_close(eager, compiled, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("shared", [False, True])
def test_in_a_cuda_graph(shared: bool) -> None:
    given_ = case(64, 32, 16, 100, shared=shared)
    leaves = [given_[name].detach().clone().requires_grad_() for name in ("states", "items")]

    def step() -> tuple[Tensor, ...]:
        chosen = given_ | dict(zip(("states", "items"), leaves, strict=True))
        return torch.autograd.grad(sampled_softmax(**chosen, temperature=0.1).sum(), leaves)

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
