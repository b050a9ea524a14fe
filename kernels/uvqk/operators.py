"""The projection and its backward as operators of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.layer.learned import Learned, nothing_learned
from kernels.layer.plan import NARROW
from kernels.library import differentiable, operator, shaped_like

_LEARNED = "Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias"
_SETTINGS = "SymInt heads, SymInt dim_qk, SymInt dim_v, float eps, ScalarType dtype"
_Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _fake(x: Tensor, *rest: Any) -> _Four:
    tokens, (heads, dim_qk, dim_v, _, dtype) = x.shape[0], rest[4:]
    return (
        x.new_empty(tokens, heads * dim_v, dtype=dtype),
        x.new_empty(tokens, heads, dim_v, dtype=dtype),
        x.new_empty(tokens, heads, dim_qk, dtype=dtype),
        x.new_empty(tokens, heads, dim_qk, dtype=dtype),
    )


def _run(x: Tensor, *rest: Any) -> _Four:
    learned, (heads, dim_qk, dim_v, eps, _) = Learned(*rest[:4]), rest[4:]
    outputs = _fake(x, *rest)
    if x.shape[0]:
        if max(x.shape[1], heads * dim_qk, heads * dim_v) <= NARROW:
            from kernels.uvqk.narrow import forward
        else:
            from kernels.uvqk.wide import forward
        forward(outputs, x.contiguous(), learned.contiguous(), eps)
    return outputs


def _fake_backward(du: Tensor, dv: Tensor, dq: Tensor, dk: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return shaped_like(x, *rest[:4])


def _run_backward(du: Tensor, dv: Tensor, dq: Tensor, dk: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    learned, eps = Learned(*rest[:4]), rest[4]
    if not x.shape[0]:
        return torch.empty_like(x), *nothing_learned(learned)
    # A view where the heads of a token lie side by side, which they do in all but odd cases.
    grads = tuple(g if g.stride(1) == 1 else g.contiguous() for g in (g.flatten(1) for g in (du, dv, dq, dk)))
    if max(x.shape[1], grads[0].shape[1], grads[2].shape[1]) <= NARROW:
        from kernels.uvqk.narrow import backward
    else:
        from kernels.uvqk.wide import backward
    found: tuple[Tensor, ...] = backward(grads, x.contiguous(), learned.contiguous(), eps)
    return found


project = operator(f"uvqk(Tensor x, {_LEARNED}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)", _run, _fake)
_project_backward = operator(
    f"uvqk_backward(Tensor du, Tensor dv, Tensor dq, Tensor dk, Tensor x, {_LEARNED}, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Four) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.eps = inputs[8]


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return (*_project_backward(*grads, *ctx.saved_tensors, ctx.eps), None, None, None, None, None)


differentiable(project, _save, _differentiate)
