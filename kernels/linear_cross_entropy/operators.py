"""The kernels as operators of PyTorch, with their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.library import differentiable, operator
from kernels.linear_cross_entropy import chunked, fused


def _form(states: Tensor, items: Tensor) -> Any:
    return chunked if chunked.faster(states, items) else fused


def _run(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    states, targets, items = states.contiguous(), targets.contiguous(), items.contiguous()
    valid = None if valid is None else valid.contiguous()
    found: tuple[Tensor, Tensor] = _form(states, items).forward(states, targets, items, scale, valid)
    return found


def _fake(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    return states.new_empty(len(states), dtype=torch.float32), states.new_empty(len(states), dtype=torch.float32)


def _run_backward(grads: Tensor, states: Tensor, targets: Tensor, items: Tensor, sums: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    grads, states, targets, items = (tensor.contiguous() for tensor in (grads, states, targets, items))
    found: tuple[Tensor, Tensor] = _form(states, items).backward(grads, states, targets, items, sums, scale)
    return found


def _fake_backward(grads: Tensor, states: Tensor, targets: Tensor, items: Tensor, sums: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape), items.new_empty(items.shape)


losses_and_sums = operator(
    "linear_cross_entropy(Tensor states, Tensor targets, Tensor items, float scale, Tensor? valid) -> (Tensor, Tensor)", _run, _fake
)
_gradients = operator(
    "linear_cross_entropy_backward(Tensor grads, Tensor states, Tensor targets, Tensor items, Tensor sums, float scale)"
    " -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    states, targets, items, ctx.scale, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(states, targets, items, output[1])


def _differentiate(ctx: Any, grads: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grads is None:
        return (None,) * 5
    to_states, to_items = _gradients(grads, *ctx.saved_tensors, ctx.scale)
    return to_states, None, to_items, None, None


differentiable(losses_and_sums, _keep, _differentiate)
