"""What the trainer trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from recsys_core.training.compiling import compiled
from recsys_core.training.graph import StaticBatch

Batch = TypeVar("Batch")


class Learner(nn.Module, Generic[Batch]):
    """A module with its data: the batches of an epoch, and the loss of one.

    `forward(batch)` gives the *sum* of the losses of a batch and `weight(batch)` what it is divided by (positions, users), known without
    asking the device; so a batch shared between processes has the loss and gradient it has in one.
    """

    @abstractmethod
    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[Batch]:
        """The batches of one epoch, on the device, in random order; a function of `rng` alone."""

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """What the loss of a batch is divided by."""

    @abstractmethod
    def shard(self, batch: Batch, rank: int, world: int) -> Batch:
        """The part of a batch that process `rank` of `world` computes; the parts are disjoint and make up the batch."""

    def static(self, batches: Sequence[Batch]) -> StaticBatch | None:
        """A batch with room for each of an epoch's, for steps replayed as a CUDA graph; None where a step has to ask the device."""
        return None

    def translated(self, device: torch.device) -> nn.Module:
        """The learner with a forward and backward pass that torch.compile translates; raises UnavailableError without a compiler."""
        return compiled(self, device)

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch, a scalar."""
