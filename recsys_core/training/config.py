"""Settings of training that every model trained by gradient steps shares."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from recsys_core.recommender import ModelConfig


class TrainingConfig(ModelConfig):
    """How a model is trained; models add their own fields and choose their own defaults."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the data, dropout and negatives."""
    epochs: int = Field(20, ge=1)
    """Passes over the log, at most."""
    batch_size: int = Field(128, ge=1)
    """Rows (windows of a sequence, users, interactions: as the model says) a step, over all processes."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak of AdamW's learning rate."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of training in which the learning rate rises to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    beta2: float = Field(0.98, gt=0, lt=1)
    """AdamW's decay of squared gradients."""
    clip_norm: float | None = Field(None, gt=0)
    """Most that the norm of a step's gradient may be; a larger one is scaled down."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes matrix products in 16 bits (autocast); weights stay float32."""
    patience: int = Field(0, ge=0)
    """Validations without a better NDCG@10 after which training stops and the best weights return; 0 trains all epochs, keeps the last."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations."""
    capture: bool = True
    """On a GPU, whether a step is recorded once and replayed as a CUDA graph, where the model allows it."""
    compile: bool = False
    """Whether torch.compile translates the forward and backward pass: slower to start, faster on a GPU."""

    def rate(self, share: float) -> float:
        """The learning rate after a share of training: up a line, then along a cosine to 0, or level."""
        rise = min(share / self.warmup, 1.0) if self.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) if self.schedule == "cosine" else 1.0
        return self.learning_rate * rise * fall
