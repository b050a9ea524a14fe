"""The output and its backward as operators of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.layer.plan import NARROW
from kernels.library import differentiable, operator

_Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _run(
    attended: Tensor, u: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    seed: Tensor | None, dropped: int, eps: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if not x.shape[0]:
        return torch.empty_like(x)
    if max(weight.shape) <= NARROW:
        from kernels.hstu_output.narrow import forward
    else:
        from kernels.hstu_output.wide import forward
    attended, u, x, norm_weight, norm_bias, weight, bias = (
        t.contiguous() for t in (attended, u, x, norm_weight, norm_bias, weight, bias)
    )  # fmt: skip
    return forward(attended, u, x, norm_weight, norm_bias, weight, bias, seed, dropped, eps, dtype)


def _fake(
    attended: Tensor, u: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    seed: Tensor | None, dropped: int, eps: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _run_backward(
    grad: Tensor, attended: Tensor, u: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    seed: Tensor | None, dropped: int, eps: float, dtype: torch.dtype,
) -> _Six:  # fmt: skip
    if not grad.shape[0]:
        nothing = torch.empty_like(attended), torch.empty_like(u)
        return *nothing, *(torch.zeros_like(p) for p in (norm_weight, norm_bias, weight, bias))  # type: ignore[return-value]
    if max(weight.shape) <= NARROW:
        from kernels.hstu_output.narrow import backward
    else:
        from kernels.hstu_output.wide import backward
    grad, attended, u, norm_weight, norm_bias, weight, bias = (
        t.contiguous() for t in (grad, attended, u, norm_weight, norm_bias, weight, bias)
    )  # fmt: skip
    return backward(grad, attended, u, norm_weight, norm_bias, weight, bias, seed, dropped, eps, dtype)


def _fake_backward(
    grad: Tensor, attended: Tensor, u: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    seed: Tensor | None, dropped: int, eps: float, dtype: torch.dtype,
) -> _Six:  # fmt: skip
    shape = torch.contiguous_format
    return (
        torch.empty_like(attended, memory_format=shape),
        torch.empty_like(u, memory_format=shape),
        torch.empty_like(norm_weight, memory_format=shape),
        torch.empty_like(norm_bias, memory_format=shape),
        torch.empty_like(weight, memory_format=shape),
        torch.empty_like(bias, memory_format=shape),
    )


_PARAMETERS = "Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias"
_SETTINGS = "Tensor? seed, int dropped, float eps, ScalarType dtype"

close = operator(f"hstu_output(Tensor attended, Tensor u, Tensor x, {_PARAMETERS}, {_SETTINGS}) -> Tensor", _run, _fake)
_close_backward = operator(
    f"hstu_output_backward(Tensor grad, Tensor attended, Tensor u, {_PARAMETERS}, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attended, u, _, *parameters, seed, dropped, eps, dtype = inputs
    ctx.save_for_backward(attended, u, *parameters, seed)
    ctx.settings = dropped, eps, dtype


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dattended, du, *parameters = _close_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return dattended, du, grad, *parameters, None, None, None, None


differentiable(close, _save, _differentiate)
