"""M-FALCON: many candidates scored behind one history whose keys and values are computed once (Zhai et al. 2024, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.hstu_attention import bucket
from kernels.hstu_attention.reference import slots
from recsys_core.models.hstu.network import HSTUBlock, HSTUNetwork
from recsys_core.sequence.batch import SequenceBatch


@torch.inference_mode()
def score_candidates(network: HSTUNetwork, batch: SequenceBatch, candidates: Tensor, micro_batch: int) -> Tensor:
    """Probabilities [B, C, tasks] of candidates [B, C] behind the histories of a batch.

    A candidate takes the place right behind the history's last rating token. Work: O(n ** 2) for a history of n tokens once, and O(n) for
    each candidate, where a pass of its own would cost O(n ** 2) each. Memory: O(blocks * B * n) kept, O(B * micro_batch * n) at work.
    """
    assert network.tasks is not None
    cache = HistoryCache(network, batch)
    parts = torch.split(candidates.to(batch.tokens.device), micro_batch, dim=1)
    return torch.cat([network.tasks(cache.states(part)).sigmoid().float() for part in parts], 1)


class HistoryCache:
    """Keys and values of every layer for the histories of a batch, as [B, H, L, D] tables."""

    def __init__(self, network: HSTUNetwork, batch: SequenceBatch) -> None:
        self.network, self.size = network, len(batch)
        offsets, x, times, asked = _tokens(network, batch)
        self.lengths = offsets.diff()
        self.longest = int(self.lengths.max())
        self.tables: list[tuple[Tensor, Tensor]] = []
        slot = slots(offsets, len(x), self.longest)

        def table(values: Tensor) -> Tensor:
            padded = values.new_zeros(self.size * self.longest + 1, *values.shape[1:]).index_copy(0, slot, values)
            return padded[:-1].view(self.size, self.longest, *values.shape[1:])

        layout = network.layout(offsets, self.longest, times, asked)
        for block in network.blocks:
            assert isinstance(block, HSTUBlock)
            u, v, q, k = block.project(x)
            self.tables.append((table(k).transpose(1, 2), table(v).transpose(1, 2)))
            x = block.close(x, block.attend(q, k, v, layout).flatten(1), u)
        place = torch.arange(self.longest, device=x.device)
        # The candidate stands at place `length`, so a token at place j is length - j before it.
        self.distance = (self.lengths[:, None] - place).clamp(min=0)
        self.there = place < self.lengths[:, None]
        self.buckets: Tensor | None = None
        if network.config.time != "none":
            assert times is not None
            assert batch.next_times is not None
            now = batch.next_times[batch.last]
            self.buckets = bucket(now[:, None] - table(times[:, None])[..., 0], network.config.time_buckets)

    def states(self, candidates: Tensor) -> Tensor:
        """Last-layer states [B, C, dim] of candidates [B, C], each behind its history and blind to the others."""
        count = candidates.shape[1]
        x = self.network.embedding.items(candidates.flatten())
        for block, (keys, values) in zip(self.network.blocks, self.tables, strict=True):
            assert isinstance(block, HSTUBlock)
            u, v, q, k = block.project(x)
            bias = block.position_bias[:, self.distance.clamp(max=block.length - 1)].transpose(0, 1)
            own = block.position_bias[:, 0]
            if block.time_bias is not None and self.buckets is not None:
                bias = bias + block.time_bias[:, self.buckets].transpose(0, 1)
                own = own + block.time_bias[:, 0]
            queries = q.unflatten(0, (self.size, count)).transpose(1, 2)  # type: ignore[no-untyped-call]
            weights = functional.silu(queries @ keys.transpose(2, 3) + bias[:, :, None]) * self.there[:, None, None]
            attended = (weights @ values).transpose(1, 2).flatten(0, 1)
            alone = functional.silu((q * k).sum(2) + own)[..., None] * v
            x = block.close(x, ((attended + alone) / block.length).flatten(1), u)
        return x.unflatten(0, (self.size, count))  # type: ignore[no-untyped-call, no-any-return]


def _tokens(network: HSTUNetwork, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Offsets, vectors, times and question times of the interleaved histories, up to and including each one's last rating token."""
    offsets, both, times, asked = network.interleave(batch)
    keep = torch.ones(len(both), dtype=torch.bool, device=both.device)
    keep[offsets[1:] - 1] = False
    shorter = offsets - torch.arange(len(offsets), device=offsets.device)
    return shorter, both[keep], None if times is None else times[keep], None if asked is None else asked[keep]
