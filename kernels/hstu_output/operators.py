"""The output and its backward as operators of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.hstu_output.settings import Settings
from kernels.layer.learned import Learned, nothing_learned
from kernels.layer.plan import NARROW
from kernels.library import differentiable, operator, shaped_like

_LEARNED = "Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias"
_SETTINGS = "Tensor? seed, int dropped, float eps, ScalarType dtype"


def _run(attended: Tensor, u: Tensor, x: Tensor, *rest: Any) -> Tensor:
    learned, settings = Learned(*rest[:4]), Settings(*rest[4:])
    if not x.shape[0]:
        return torch.empty_like(x)
    if max(learned.weight.shape) <= NARROW:
        from kernels.hstu_output.narrow import forward
    else:
        from kernels.hstu_output.wide import forward
    return forward(attended.contiguous(), u.contiguous(), x.contiguous(), learned.contiguous(), settings)


def _fake(attended: Tensor, u: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return shaped_like(x)[0]


def _run_backward(grad: Tensor, attended: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    learned, settings = Learned(*rest[:4]), Settings(*rest[4:])
    if not grad.shape[0]:
        return *shaped_like(attended, u), *nothing_learned(learned)
    if max(learned.weight.shape) <= NARROW:
        from kernels.hstu_output.narrow import backward
    else:
        from kernels.hstu_output.wide import backward
    return backward(grad.contiguous(), attended.contiguous(), u.contiguous(), learned.contiguous(), settings)


def _fake_backward(grad: Tensor, attended: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return shaped_like(attended, u, *rest[:4])


close = operator(f"hstu_output(Tensor attended, Tensor u, Tensor x, {_LEARNED}, {_SETTINGS}) -> Tensor", _run, _fake)
_close_backward = operator(
    f"hstu_output_backward(Tensor grad, Tensor attended, Tensor u, {_LEARNED}, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attended, u, _, *learned, seed, dropped, eps, dtype = inputs
    ctx.save_for_backward(attended, u, *learned, seed)
    ctx.settings = dropped, eps, dtype


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dattended, du, *learned = _close_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return dattended, du, grad, *learned, None, None, None, None


differentiable(close, _save, _differentiate)
