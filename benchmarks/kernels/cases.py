"""What is timed: a case is one operator at one shape by one implementation, with the operations and bytes that it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend

Prepare = Callable[[], tuple[Callable[[], Any], list[Tensor]]]
"""Makes the inputs and gives the forward pass, and the tensors that gradients are asked for (none: no backward is timed)."""
BACKENDS: dict[str, Backend] = {"kernels": "triton", "PyTorch": "reference"}
"""What implementations are called in tables."""


@dataclass(frozen=True)
class Case:
    """flops: of the forward pass; backward_flops; bytes: that the forward pass must read and write once each; backward_bytes."""

    operator: str
    shape: str
    implementation: str
    prepare: Prepare
    flops: float = 0.0
    backward_flops: float = 0.0
    bytes: float = 0.0
    backward_bytes: float = 0.0


REGISTRY: dict[str, Callable[[], Iterator[Case]]] = {}


def benchmark(operator: str) -> Callable[[Callable[[], Iterator[Case]]], Callable[[], Iterator[Case]]]:
    """Registers a generator of an operator's cases."""

    def register(cases: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
        REGISTRY[operator] = cases
        return cases

    return register


def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    """Random numbers on the GPU."""
    return (scale * torch.randn(*shape, device="cuda")).to(dtype).requires_grad_(grad)


def bounds(lengths: list[int]) -> Tensor:
    """Offsets [B + 1] on the GPU."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device="cuda")
