"""SASRec: a causal transformer over the items of a sequence (Kang & McAuley 2018, arXiv 1808.09781)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.dropout import Dropout, attend
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.padding import Padding
from recsys_core.sequence.recommender import SequenceConfig, SequenceNetwork, SequenceRecommender


class SASRecConfig(SequenceConfig):
    """Settings of SASRec."""

    heads: int = Field(2, ge=1)
    """Attention heads; they share `dim`, so it must be a multiple."""
    inner: int = Field(1, ge=1)
    """Width of the feed-forward layer, as a multiple of `dim`."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


class SASRecBlock(nn.Module):
    """Attention and a feed-forward layer, each behind a layer norm and added to its input."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.inner * config.dim
        self.heads, self.dropout = config.heads, Dropout(config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x: Tensor, padding: Padding, readable: Tensor | None = None) -> Tensor:
        """Tokens [T, dim] to tokens; readable: [B, 1, 1, L] bool, the places all tokens may look at, or None for those up to their own."""
        q, k, v = padding.heads(self.qkv(self.norm1(x)), 3, self.heads)
        attended = attend(q, k, v, readable, self.dropout.share if self.training else 0.0)
        return self._close(x, padding.remove(attended.transpose(1, 2).flatten(2)))

    def last(self, x: Tensor, padding: Padding, last: Tensor) -> Tensor:
        """What `forward` gives for each sequence's last token [B, dim], which stands at `last` [B] and may look at all its sequence."""
        normed, own, dim = self.norm1(x), x[last], x.shape[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = functional.linear(normed[last], weight[:dim], bias[:dim]).view(len(own), self.heads, 1, dim // self.heads)
        k, v = padding.heads(functional.linear(normed, weight[dim:], bias[dim:]), 2, self.heads)
        attended = attend(q, k, v, padding.filled[:, None, None], self.dropout.share if self.training else 0.0)
        return self._close(own, attended.flatten(1))

    def _close(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output [N, dim] of its input and what was attended to."""
        x = x + self.dropout(self.out(attended))
        update: Tensor = self.dropout(self.outer(self.dropout(functional.gelu(self.inner(self.norm2(x))))))
        return x + update


class SASRecNetwork(SequenceNetwork):
    """Item vectors plus learned positions, blocks, a last layer norm."""

    asks_device = False

    def __init__(self, config: SASRecConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_length, config.dim))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: SequenceBatch) -> Tensor:
        states: Tensor = self.norm(self._run(batch, Padding(batch), self.blocks))
        return states

    def last(self, batch: SequenceBatch) -> Tensor:
        # Of the last block nobody reads the other outputs.
        padding, final = Padding(batch), self.blocks[-1]
        assert isinstance(final, SASRecBlock)
        states: Tensor = self.norm(final.last(self._run(batch, padding, self.blocks[:-1]), padding, batch.last))
        return states

    def _run(self, batch: SequenceBatch, padding: Padding, blocks: Iterable[nn.Module]) -> Tensor:
        """Tokens [T, dim] behind some of the blocks."""
        x: Tensor = self.dropout(self.embedding(batch) + functional.embedding(padding.positions, self.positions))
        for block in blocks:
            x = block(x, padding)
        return x


class SASRec(SequenceRecommender):
    """Next-item prediction by softmax attention; item order is used, timestamps are not."""

    name = "sasrec"
    Config = SASRecConfig
    config: SASRecConfig

    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork:
        return SASRecNetwork(self.config, embedding)
