"""To and from the padded form that a library's attention or recurrence demands."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_core.sequence.batch import SequenceBatch


class Padding:
    """Where each of a batch's T tokens stands in a [B, L] table, L its bound on a sequence; computed once a batch, without a host's look.

    lengths: [B] int64; positions: [T] int64, the place of each token in its sequence, 0 for padding behind the last one.
    """

    def __init__(self, batch: SequenceBatch) -> None:
        self.batch_size, self.longest = batch.size, batch.tightest
        # Sequences of one length are a table as they are. Only where asking is free is that known (see `tightest`).
        known = batch.offsets.device.type == "cpu" and not torch.compiler.is_exporting()
        self.full = known and batch.tokens.shape[0] == self.batch_size * self.longest
        self.lengths, rows = batch.offsets.diff(), batch.rows
        place = torch.arange(rows.shape[0], device=rows.device) - batch.offsets[rows.clamp(max=self.batch_size)]
        real = rows < self.batch_size
        self.positions = torch.where(real, place, 0)
        # Tokens that are padding themselves share one place behind the table.
        self.slots = torch.where(real, rows * self.longest + place, self.batch_size * self.longest)

    @property
    def filled(self) -> Tensor:
        """Whether a token stands at each place [B, L] bool."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def add(self, x: Tensor) -> Tensor:
        """[T, D] to [B, L, D], zeros behind each sequence."""
        if self.full:
            return x.view(self.batch_size, self.longest, x.shape[1])
        table = x.new_zeros(self.batch_size * self.longest + 1, x.shape[1]).index_copy_(0, self.slots, x)
        return table[:-1].view(self.batch_size, self.longest, x.shape[1])

    def heads(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """[T, parts * H * D] to that many [B, H, L, D], as attention takes them."""
        table = self.add(x).view(self.batch_size, self.longest, parts, heads, x.shape[1] // (parts * heads))
        return table.permute(2, 0, 3, 1, 4).unbind(0)

    def remove(self, table: Tensor) -> Tensor:
        """[B, L, D] back to [T, D]; what stands at padding tokens is the last place's, and no loss may read it."""
        flat = table.reshape(self.batch_size * self.longest, table.shape[2])
        return flat if self.full else flat.index_select(0, self.slots.clamp(max=flat.shape[0] - 1))
