"""Learning from windows of a log: which, in what order, in batches of how many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_core.data.jagged import Jagged
from recsys_core.sequence.batch import BY_TOKEN, SequenceBatch, SequenceLog
from recsys_core.training.learner import Learner

Batch = TypeVar("Batch", bound=SequenceBatch)


class WindowLearner(Learner[SequenceBatch]):
    """Base of learners whose batches are windows of a log, of at most `max_length` tokens, `batch_size` of them a step."""

    def __init__(self, log: SequenceLog, n_items: int, max_length: int, batch_size: int) -> None:
        super().__init__()
        self.log, self.n_items, self.max_length, self.batch_size = log, n_items, max_length, batch_size

    @abstractmethod
    def windows(self, rng: np.random.Generator) -> Jagged:
        """The windows of an epoch, places of the log, in random order."""

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[SequenceBatch]:
        windows = self.windows(rng)
        # One batch of the whole epoch goes to the device in one piece; steps are views of it.
        whole = self.log.batch(windows, self.n_items, self.max_length).to(device)
        size = self.batch_size
        return [cut(whole, windows.offsets, start, min(start + size, len(windows))) for start in range(0, len(windows), size)]

    def shard(self, batch: SequenceBatch, rank: int, world: int) -> SequenceBatch:
        bounds = [len(batch) * n // world for n in range(world + 1)]
        return cut(batch, batch.offsets.cpu().numpy(), bounds[rank], bounds[rank + 1])

    def static(self, batches: Sequence[SequenceBatch]) -> SequenceBatch | None:
        # Where sequences are cut varies from epoch to epoch; a batch that outgrows the room is stepped without the graph.
        tokens = int(1.05 * max(len(batch.tokens) for batch in batches)) + 64
        return batches[0].roomy(tokens, self.batch_size)


def cut(batch: Batch, offsets: NDArray, start: int, stop: int) -> Batch:
    """Sequences `start` to `stop` (excluded) of a batch whose offsets are also known to the processor: views, no copies."""
    first, last = int(offsets[start]), int(offsets[stop])

    def part(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[first:last]

    changed: dict[str, Any] = {name: part(getattr(batch, name)) for name in BY_TOKEN}
    changed["features"] = {name: column[first:last] for name, column in batch.features.items()}
    return replace(batch, offsets=batch.offsets[start : stop + 1] - first, users=batch.users[start:stop], **changed)
