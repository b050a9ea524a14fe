"""To and from the padded form that a library's attention or recurrence demands."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_core.sequence.batch import SequenceBatch


class Padding:
    """Where each of a batch's T tokens stands in a [B, L] table, L its bound on a sequence; computed once a batch, without a host's look.

    positions: [T] int64, the place of each token in its sequence, 0 for padding behind the last one.
    """

    def __init__(self, batch: SequenceBatch) -> None:
        self.batch_size, self.longest = batch.size, batch.tightest
        rows = batch.rows
        place = torch.arange(rows.shape[0], device=rows.device) - batch.offsets[rows.clamp(max=self.batch_size)]
        real = rows < self.batch_size
        self.positions = torch.where(real, place, 0)
        # Tokens that are padding themselves share one place behind the table.
        self.slots = torch.where(real, rows * self.longest + place, self.batch_size * self.longest)

    def add(self, x: Tensor) -> Tensor:
        """[T, D] to [B, L, D], zeros behind each sequence."""
        table = x.new_zeros(self.batch_size * self.longest + 1, x.shape[1]).index_copy(0, self.slots, x)
        return table[:-1].view(self.batch_size, self.longest, x.shape[1])

    def heads(self, x: Tensor, heads: int) -> Tensor:
        """[T, H * D] to [B, H, L, D], as attention takes it."""
        return self.add(x).view(self.batch_size, self.longest, heads, x.shape[1] // heads).transpose(1, 2)

    def remove(self, table: Tensor) -> Tensor:
        """[B, L, D] back to [T, D]; what stands at padding tokens is the last place's, and no loss may read it."""
        flat = table.reshape(self.batch_size * self.longest, table.shape[2])
        return flat.index_select(0, self.slots.clamp(max=flat.shape[0] - 1))
