"""SASRec: a causal transformer over the items of a sequence (Kang & McAuley 2018, arXiv 1808.09781)."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.sequence.batch import SequenceBatch
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
        self.heads, self.dropout = config.heads, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, dim)

    def forward(self, x: Tensor, padding: Padding, readable: Tensor | None = None) -> Tensor:
        """Tokens [T, dim] to tokens; readable: [B, 1, 1, L] bool, the places all tokens may look at, or None for those up to their own."""
        q, k, v = (padding.heads(t, self.heads) for t in self.qkv(self.norm1(x)).chunk(3, dim=1))
        dropped = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(q, k, v, readable, dropped, is_causal=readable is None)
        x = x + functional.dropout(self.out(padding.remove(attended.transpose(1, 2).flatten(2))), self.dropout, self.training)
        hidden = functional.dropout(functional.gelu(self.inner(self.norm2(x))), self.dropout, self.training)
        return x + functional.dropout(self.outer(hidden), self.dropout, self.training)


class SASRecNetwork(SequenceNetwork):
    """Item vectors plus learned positions, blocks, a last layer norm."""

    asks_device = False

    def __init__(self, config: SASRecConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding, self.scale = embedding, config.dim**0.5
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_length, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: SequenceBatch) -> Tensor:
        padding = Padding(batch)
        x = self.dropout(self.embedding(batch) + self.positions[padding.positions])
        for block in self.blocks:
            x = block(x, padding)
        states: Tensor = self.norm(x)
        return states


class SASRec(SequenceRecommender):
    """Next-item prediction by softmax attention; item order is used, timestamps are not."""

    name = "sasrec"
    Config = SASRecConfig
    config: SASRecConfig

    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork:
        return SASRecNetwork(self.config, embedding)
