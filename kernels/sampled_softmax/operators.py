"""The kernels as operators of PyTorch, with their backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.library import differentiable, operator
from kernels.sampled_softmax import own, shared


def _run(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, cosine: bool, eps: float,
    valid: Tensor | None, ordered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    form = shared if negatives.ndim == 1 else own
    tensors = (tensor.contiguous() for tensor in (states, targets, negatives, items))
    found: tuple[Tensor, Tensor, Tensor] = form.forward(*tensors, temperature, cosine, eps, _contiguous(valid))
    return found


def _contiguous(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.contiguous()


def _fake(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, cosine: bool, eps: float,
    valid: Tensor | None, ordered: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    norms = len(items) if cosine and negatives.ndim == 2 else 0
    return tuple(states.new_empty(size, dtype=torch.float32) for size in (len(states), len(states), norms))  # type: ignore[return-value]


def _run_backward(
    grads: Tensor, states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, norms: Tensor, sums: Tensor,
    temperature: float, cosine: bool, eps: float, valid: Tensor | None, ordered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grads, states, targets, negatives, items = (tensor.contiguous() for tensor in (grads, states, targets, negatives, items))
    valid = _contiguous(valid)
    found: tuple[Tensor, Tensor]
    if negatives.ndim == 1:
        found = shared.backward(grads, states, targets, negatives, items, sums, temperature, cosine, eps, valid)
    else:
        found = own.backward(grads, states, targets, negatives, items, norms, sums, temperature, cosine, eps, valid, ordered)
    return found


def _fake_backward(
    grads: Tensor, states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, norms: Tensor, sums: Tensor,
    temperature: float, cosine: bool, eps: float, valid: Tensor | None, ordered: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return states.new_empty(states.shape), items.new_empty(items.shape)


losses_and_sums = operator(
    "sampled_softmax(Tensor states, Tensor targets, Tensor negatives, Tensor items, float temperature, bool cosine, float eps, "
    "Tensor? valid, bool ordered) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_gradients = operator(
    "sampled_softmax_backward(Tensor grads, Tensor states, Tensor targets, Tensor negatives, Tensor items, Tensor norms, Tensor sums, "
    "float temperature, bool cosine, float eps, Tensor? valid, bool ordered) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    states, targets, negatives, items, *ctx.settings, valid, ctx.ordered = inputs
    _, sums, norms = output
    ctx.mark_non_differentiable(sums, norms)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(states, targets, negatives, items, norms, sums, valid)


def _differentiate(ctx: Any, grads: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grads is None:
        return (None,) * 9
    *tensors, valid = ctx.saved_tensors
    to_states, to_items = _gradients(grads, *tensors, *ctx.settings, valid, ctx.ordered)
    return to_states, None, None, to_items, *(None,) * 5


differentiable(losses_and_sums, _keep, _differentiate)
