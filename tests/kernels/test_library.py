"""Operators of PyTorch made from plain functions: the short way and the dispatcher's give the same, and whoever watches is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.library import differentiable, operator

calls: list[str] = []


def _run(x: Tensor, factor: float) -> Tensor:
    calls.append("forward")
    return x * factor


def _run_backward(grad: Tensor, factor: float) -> Tensor:
    calls.append("backward")
    return grad * factor


def _fake(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.factor = inputs[1]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return multiplied_backward(grad, ctx.factor), None


multiplied = operator("multiplied_in_a_test(Tensor x, float factor) -> Tensor", _run, _fake)
multiplied_backward = operator("multiplied_in_a_test_backward(Tensor grad, float factor) -> Tensor", _run_backward, _fake)
differentiable(multiplied, _save, _differentiate)


weighed = operator(
    "weighed_in_a_test(Tensor x, float factor, Tensor? weight) -> Tensor",
    lambda x, factor, weight: x * factor if weight is None else x * factor * weight,
    lambda x, factor, weight: torch.empty_like(x),
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[2])
    ctx.factor = inputs[1]


def _weigh(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
    x, weight = ctx.saved_tensors
    if weight is None:
        return grad * ctx.factor, None, None
    return grad * ctx.factor * weight, None, grad * ctx.factor * x


differentiable(weighed, _keep, _weigh)


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.clear()


class Watch(TorchDispatchMode):
    """Notes which operators are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("way", [multiplied, torch.ops.workbench.multiplied_in_a_test.default])
def test_both_ways_compute_and_differentiate(way: Any) -> None:
    x = torch.randn(3, requires_grad=True)
    out = way(x, 3.0)
    (grad,) = torch.autograd.grad(out, x, torch.ones(3))
    assert torch.equal(out.detach(), x.detach() * 3)
    assert torch.equal(grad, torch.full((3,), 3.0))
    assert calls == ["forward", "backward"]
    assert not way(x.detach(), 3.0).requires_grad
    with torch.no_grad():
        assert not way(x, 3.0).requires_grad


@pytest.mark.parametrize("way", [weighed, torch.ops.workbench.weighed_in_a_test.default])
@pytest.mark.parametrize("learning", [(True, True), (True, False), (False, True), (True, None), (False, False)])
def test_each_input_that_learns_gets_its_own_gradient(learning: tuple[bool, bool | None], way: Any) -> None:
    x = torch.randn(3, requires_grad=learning[0])
    weight = None if learning[1] is None else torch.randn(3, requires_grad=learning[1])
    out = way(x, 3.0, weight)
    assert out.requires_grad == any(learning)
    if not out.requires_grad:
        return
    out.backward(torch.ones(3))
    for tensor, other in ((x, weight), (weight, x)):
        if tensor is not None and tensor.requires_grad:
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, torch.full((3,), 3.0) if other is None else 3 * other.detach())
        elif tensor is not None:
            assert tensor.grad is None


def test_pytorch_finds_nothing_to_say_against_it() -> None:
    torch.library.opcheck(torch.ops.workbench.multiplied_in_a_test.default, (torch.randn(3, requires_grad=True), 3.0))


def test_a_mode_sees_the_operator_and_its_backward() -> None:
    x = torch.randn(3, requires_grad=True)
    with Watch() as watch:
        torch.autograd.grad(multiplied(x, 3.0), x, torch.ones(3))
    assert [name for name in watch.seen if "workbench" in name] == [
        "workbench.multiplied_in_a_test.default",
        "workbench.multiplied_in_a_test_backward.default",
    ]


def test_tensors_without_data_never_reach_the_implementation() -> None:
    with FakeTensorMode() as mode:
        x = torch.empty(3, requires_grad=True)
        assert multiplied(x, 3.0).shape == (3,)
    # Outside its mode too.
    fake = mode.from_tensor(torch.empty(4))
    assert multiplied(fake, 3.0).shape == (4,)
    assert not calls


def test_it_is_one_operator_to_torch_compile() -> None:
    x = torch.randn(3, requires_grad=True)
    found = torch.compile(lambda x: multiplied(x + 1, 3.0), fullgraph=True, backend="aot_eager")(x)
    (grad,) = torch.autograd.grad(found, x, torch.ones(3))
    assert torch.equal(found.detach(), (x.detach() + 1) * 3)
    assert torch.equal(grad, torch.full((3,), 3.0))


def test_a_second_derivative_is_an_error_and_not_a_wrong_number() -> None:
    x = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(multiplied(x, 3.0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()  # type: ignore[no-untyped-call]
