"""What the tests of the losses share: where they run, and how near to float64 losses and gradients have to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.backend import use

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# On a processor the kernels run in Triton's interpreter, which has no bfloat16 products.
TYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


def run_loss(loss: Callable[..., Tensor], given_: dict[str, Any], backend: Any, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Losses and both gradients, of a weighted sum of losses, in float64."""
    dtype = dtype or given_["states"].dtype
    leaves = {name: given_[name].detach().to(dtype, copy=True).requires_grad_() for name in ("states", "items")}
    with use(backend):
        return with_gradients(loss(**given_ | leaves), **leaves)


def with_gradients(losses: Tensor, states: Tensor, items: Tensor) -> list[Tensor]:
    """Losses and the gradients of their weighted sum by states and items, in float64."""
    (losses * torch.linspace(0.5, 1.5, len(losses), device=losses.device, dtype=losses.dtype)).sum().backward()
    assert states.grad is not None
    assert items.grad is not None
    return [losses.detach().double(), states.grad.double(), items.grad.double()]


def assert_as_exact(ours: list[Tensor], plain: list[Tensor], wanted: list[Tensor]) -> None:
    """Losses within twice, gradients within five times the error of the plain formula at that type, against float64."""
    for found, usual, exact, times in zip(ours, plain, wanted, (2, 5, 5), strict=True):
        assert found.shape == exact.shape
        floor = 3e-7 * (1 + exact.norm())
        assert (found - exact).norm() <= times * max((usual - exact).norm(), floor)
