"""The projection and its backward as operators of PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.layer.plan import NARROW
from kernels.library import differentiable, operator

_ARGUMENTS = "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias, SymInt heads, SymInt dim_qk, SymInt dim_v"
_Four = tuple[Tensor, Tensor, Tensor, Tensor]
_Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _outputs(x: Tensor, heads: int, dim_qk: int, dim_v: int, dtype: torch.dtype) -> _Four:
    tokens = x.shape[0]
    return (
        x.new_empty(tokens, heads * dim_v, dtype=dtype),
        x.new_empty(tokens, heads, dim_v, dtype=dtype),
        x.new_empty(tokens, heads, dim_qk, dtype=dtype),
        x.new_empty(tokens, heads, dim_qk, dtype=dtype),
    )


def _run(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    heads: int, dim_qk: int, dim_v: int, eps: float, dtype: torch.dtype,
) -> _Four:  # fmt: skip
    outputs = _outputs(x, heads, dim_qk, dim_v, dtype)
    if x.shape[0]:
        if max(x.shape[1], heads * dim_qk, heads * dim_v) <= NARROW:
            from kernels.uvqk.narrow import forward
        else:
            from kernels.uvqk.wide import forward
        x, norm_weight, norm_bias, weight, bias = (t.contiguous() for t in (x, norm_weight, norm_bias, weight, bias))
        forward(outputs, x, norm_weight, norm_bias, weight, bias, eps)
    return outputs


def _fake(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor,
    heads: int, dim_qk: int, dim_v: int, eps: float, dtype: torch.dtype,
) -> _Four:  # fmt: skip
    return _outputs(x, heads, dim_qk, dim_v, dtype)


def _run_backward(
    du: Tensor, dv: Tensor, dq: Tensor, dk: Tensor,
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> _Five:  # fmt: skip
    if not x.shape[0]:
        return torch.empty_like(x), *(torch.zeros_like(p) for p in (norm_weight, norm_bias, weight, bias))  # type: ignore[return-value]
    # A view where the heads of a token lie side by side, which they do in all but odd cases.
    grads = tuple(g if g.stride(1) == 1 else g.contiguous() for g in (g.flatten(1) for g in (du, dv, dq, dk)))
    if max(x.shape[1], grads[0].shape[1], grads[2].shape[1]) <= NARROW:
        from kernels.uvqk.narrow import backward
    else:
        from kernels.uvqk.wide import backward
    x, norm_weight, norm_bias, weight, bias = (t.contiguous() for t in (x, norm_weight, norm_bias, weight, bias))
    return backward(grads, x, norm_weight, norm_bias, weight, bias, eps)


def _fake_backward(
    du: Tensor, dv: Tensor, dq: Tensor, dk: Tensor,
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> _Five:  # fmt: skip
    shape = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=shape),
        torch.empty_like(norm_weight, memory_format=shape),
        torch.empty_like(norm_bias, memory_format=shape),
        torch.empty_like(weight, memory_format=shape),
        torch.empty_like(bias, memory_format=shape),
    )


project = operator(f"uvqk({_ARGUMENTS}, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor, Tensor)", _run, _fake)
_project_backward = operator(
    "uvqk_backward(Tensor du, Tensor dv, Tensor dq, Tensor dk, Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor bias, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Four) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.eps = inputs[8]


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return (*_project_backward(*grads, *ctx.saved_tensors, ctx.eps), None, None, None, None, None)


differentiable(project, _save, _differentiate)
