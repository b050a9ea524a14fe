"""Inputs of the operators around HSTU's attention, and how far their results may be from exact ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from kernels.backend import use

Operator = Callable[..., Tensor | tuple[Tensor, ...]]
UVQK = ("x", "norm_weight", "norm_bias", "weight", "bias")
OUTPUT = ("attended", "u", "x", "norm_weight", "norm_bias", "weight", "bias")

DTYPES = {
    "float32": (torch.float32, torch.float32, None),
    "float16": (torch.float16, torch.float16, None),
    "bfloat16": (torch.bfloat16, torch.bfloat16, None),
    "autocast": (torch.float32, torch.float32, torch.bfloat16),
}
"""Of the residual stream and of the parameters, and autocast's."""


def uvqk_inputs(tokens: int, dim: int, heads: int, dim_qk: int, dim_v: int, kind: str, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Tensors by argument."""
    residual, parameter, _ = DTYPES[kind]
    normal = _normal(seed, device)
    rows = heads * (2 * dim_v + 2 * dim_qk)
    return {
        "x": normal(tokens, dim).to(residual),
        "norm_weight": (1 + normal(dim) / 5).to(parameter),
        "norm_bias": (normal(dim) / 5).to(parameter),
        "weight": (normal(rows, dim) / dim**0.5).to(parameter),
        "bias": (normal(rows) / 3).to(parameter),
    }


def output_inputs(tokens: int, inner: int, dim: int, kind: str, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Tensors by argument; inner: columns of attended and u."""
    residual, parameter, cast = DTYPES[kind]
    normal = _normal(seed, device)
    return {
        "attended": normal(tokens, inner).to(cast or residual),
        "u": normal(tokens, inner).to(cast or residual),
        "x": normal(tokens, dim).to(residual),
        "norm_weight": (1 + normal(inner) / 5).to(parameter),
        "norm_bias": (normal(inner) / 5).to(parameter),
        "weight": (normal(dim, inner) / inner**0.5).to(parameter),
        "bias": (normal(dim) / 3).to(parameter),
    }


def results(operator: Operator, inputs: dict[str, Tensor], backend: Any, kind: str, grads: list[Tensor] | None = None) -> list[Tensor]:
    """Outputs, then the gradients of all inputs; grads: those of the outputs, drawn in their types if None."""
    cast = DTYPES[kind][2] if inputs["x"].dtype != torch.float64 else None
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    with use(backend), torch.autocast(inputs["x"].device.type, cast) if cast else nullcontext():
        found = operator(**leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    if grads is None:
        grads = upstream(outputs)
    grads = [g.to(x.dtype) for g, x in zip(grads, outputs, strict=True)]
    return [x.detach() for x in outputs] + list(torch.autograd.grad(outputs, list(leaves.values()), grads))


def upstream(outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of outputs, drawn in their types."""
    normal = _normal(99, outputs[0].device.type)
    return [normal(*x.shape).to(x.dtype) for x in outputs]


def check(operator: Operator, inputs: dict[str, Tensor], kind: str) -> None:
    """The kernels' distance from float64 is at most twice PyTorch's in outputs, five times in gradients; types are PyTorch's."""
    plain = results(operator, inputs, "reference", kind)
    count = len(plain) - len(inputs)
    grads = upstream(plain[:count])
    exact = results(operator, {name: x.double() for name, x in inputs.items()}, "reference", kind, grads)
    ours = results(operator, inputs, "triton", kind)
    for n, (x, y, z) in enumerate(zip(exact, plain, ours, strict=True)):
        assert z.dtype == y.dtype
        assert z.shape == y.shape
        # What rounding alone makes of a float32 result, for the few that PyTorch happens to compute exactly.
        allowed = (2 if n < count else 5) * distance(y, x) + 2e-7
        assert distance(z, x) <= allowed, f"result {n}: {distance(z, x):.2e} from float64, PyTorch {distance(y, x):.2e}"


def distance(x: Tensor, exact: Tensor) -> float:
    """The norm of the difference over that of the exact values."""
    return float((x.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def _normal(seed: int, device: str) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(device)
