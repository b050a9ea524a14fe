"""Settings of TIGER."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recsys_core.semantic import TokenizerConfig
from recsys_core.training import TrainingConfig


class TIGERConfig(TrainingConfig):
    """Settings of TIGER; sizes are the paper's. Rows of a batch are items to predict, each behind its history."""

    vectors: str = "text"
    """What semantic ids are made of: `text`, titles and tags; `log`, the interactions; or the folder of a saved model with item vectors."""
    tokenizer: Literal["kmeans", "rqvae"] = "kmeans"
    """How vectors become codes: residual k-means, or the paper's autoencoder."""
    tokenizer_epochs: int = Field(500, ge=1)
    """Passes of the autoencoder over the items."""
    levels: int = Field(3, ge=1)
    """Codes an item, before the one that tells items apart."""
    codes: int = Field(256, ge=2)
    """Codes a level."""
    dim: int = Field(128, ge=1)
    """Width of the network."""
    layers: int = Field(4, ge=1)
    """Layers of the encoder, and of the decoder."""
    heads: int = Field(6, ge=1)
    """Attention heads."""
    head_dim: int = Field(64, ge=1)
    """Width of a head."""
    inner: int = Field(1024, ge=1)
    """Width of the feed-forward layers."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of activations and of attention weights dropped in training."""
    max_length: int = Field(20, ge=1)
    """Items of a history that are read, its latest."""
    users: int = Field(0, ge=0)
    """Rows of the table that user ids are folded into, 2000 in the paper; 0 reads no user. An unknown user has no row."""
    softmax: Literal["codebook", "children"] = "children"
    """Over what a code's probability is taken: all codes of its level, as in the paper, or those that some item has behind the prefix."""
    targets: int = Field(0, ge=0)
    """Positions of the log learned from in an epoch, drawn anew each time; 0 takes all."""
    beams: int = Field(64, ge=0)
    """Prefixes that are kept at each level while a list is searched, at least the list's length; 0 ranks the whole catalogue instead."""
    proof: bool = True
    """Whether a list that the search cannot prove to be the best is searched with a beam four times as wide, and if that proves nothing
    either, ranked in full; without, it is the paper's search."""
    batch_size: int = Field(256, ge=1)
    """Items to predict a step, over all processes."""

    def tokenizer_config(self) -> TokenizerConfig:
        """The tokenizer's own settings."""
        own: dict[str, Any] = {"kind": self.tokenizer, "levels": self.levels, "size": self.codes, "epochs": self.tokenizer_epochs}
        return TokenizerConfig(**own, seed=self.seed, capture=self.capture)
