"""A training step recorded once as a CUDA graph and replayed: what is left of a small model's step is launching its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

WARM_UP = 3
"""Steps run one kernel at a time first: libraries choose their algorithms, the optimizer makes its state, torch.compile translates."""


class StaticBatch(Protocol):
    """A batch that other batches can be copied into, so that its addresses and shapes never change."""

    def load(self, batch: Self) -> bool:
        """Takes over a batch; False, and nothing changed, where there is no room for it."""


B = TypeVar("B", bound=StaticBatch)


class CapturedStep(Generic[B]):
    """Runs `step(batch, weight)`, which must ask the device for nothing, by replaying one recording of it.

    The first `WARM_UP` calls are real steps on the static batch, run kernel by kernel; then one is recorded. A batch without room is
    stepped as it is.
    """

    def __init__(self, step: Callable[[B, Tensor], Tensor], static: B) -> None:
        self.step, self.static = step, static
        self.weight = torch.ones((), device="cuda")
        self.graph: torch.cuda.CUDAGraph | None = None
        self.loss: Tensor | None = None
        self.calls = 0
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, batch: B, weight: float) -> Tensor:
        """One step; returns the batch's summed loss, on the device."""
        if not self.static.load(batch):
            return self.step(batch, torch.tensor(weight, device="cuda"))
        self.weight.fill_(weight)
        self.calls += 1
        if self.calls <= WARM_UP:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss = self.step(self.static, self.weight)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.step(self.static, self.weight)
        self.graph.replay()
        assert self.loss is not None
        return self.loss
