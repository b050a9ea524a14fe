"""Settings of HSTU and the published sizes."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from recsys_core.sequence.losses import Negatives
from recsys_core.sequence.recommender import SequenceConfig

SIZES: dict[str, dict[str, Any]] = {
    "base": {"dim": 50, "blocks": 2, "heads": 1, "max_length": 200},
    "large": {"dim": 50, "blocks": 8, "heads": 2, "max_length": 200},
}
"""The two sizes published for MovieLens; everything else (learning rate, dropout, negatives) keeps our defaults."""


class HSTUConfig(SequenceConfig):
    """Settings of HSTU."""

    size: Literal["base", "large"] | None = None
    """A published size (dim, blocks, heads, max_length); fields given beside it win."""
    heads: int = Field(1, ge=1)
    """Attention heads; they share `dim`, so it must be a multiple."""
    blocks: int = Field(1, ge=1)
    """HSTU layers."""
    max_length: int = Field(64, ge=2)
    """Tokens of context: the start token and the latest max_length - 1 items. Longer training sequences are cut into windows."""
    positions: bool = False
    """Whether a learned vector for its place is added to each token, as in the published implementation, beside the relative bias."""
    time: Literal["none", "past", "target"] = "none"
    """Whether attention also reads how long ago things were. `past`: between a token and those before it. `target`: between the moment
    of the question and the tokens, as in the published implementation; in training and evaluation that is the time of the item to be
    found, which a served recommender knows as the present."""
    time_buckets: int = Field(64, ge=2)
    """Buckets of the logarithmic time bias."""
    stochastic_length: float = Field(2.0, gt=0, le=2)
    """The alpha of stochastic length: windows of more than max_length ** (alpha / 2) items are thinned to that many in training, with
    probability 1 - max_length ** alpha / length ** 2 (section 3.3 of the paper, with max_length for the longest length); 2 keeps all."""
    actions: bool = False
    """Whether ratings are tokens of their own behind their items, and a second head predicts them (`HSTU.score_candidates`)."""
    tasks: tuple[float, ...] = (4.0,)
    """What the ranking head predicts of a rating: for each number, the probability of at least as much. Unused without `actions`."""
    ranking_weight: float = Field(0.2, ge=0)
    """Weight of the ranking head's loss beside the retrieval loss."""
    sampling: Negatives = "shared"
    """Where negatives come from."""
    negatives: int = Field(1024, ge=1)
    """Negatives a position."""
    similarity: Literal["dot", "cosine"] = "cosine"
    """How a state and an item's vector are compared."""
    temperature: float = Field(0.05, ge=0.01)
    """Divides similarities."""
    epochs: int = Field(8, ge=1)
    """Passes over the log, at most."""
    batch_size: int = Field(16, ge=1)
    """Windows a step."""
    learning_rate: float = Field(0.014, gt=0)
    """Peak of AdamW's learning rate."""

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**SIZES.get(given.get("size") or "", {}), **given}

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.actions and not self.tasks:
            raise ValueError("actions need at least one task, such as tasks = [4.0]")
        return self
