"""Settings of HLLM."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recsys_core.language.decoder import SMOLLM2
from recsys_core.sequence.recommender import NextItemConfig


class HLLMConfig(NextItemConfig):
    """Settings of HLLM. A step reads the texts of its histories, targets and negatives, each once; that is what it costs."""

    item_model: str = SMOLLM2
    """Decoder that reads texts: an asset's name, or a folder of any Hugging Face decoder with its `tokenizer.json`."""
    user_model: str = SMOLLM2
    """Decoder that reads sequences of item vectors, likewise; its own word embeddings are not used."""
    item_layers: int | None = Field(None, ge=1)
    """How many of the item model's layers are taken, from the first on; all if left out."""
    user_layers: int | None = Field(None, ge=1)
    """The same of the user model."""
    pretrained: bool = True
    """Whether both start from their trained weights, or from random ones."""
    train_item_model: bool = True
    """Whether the item model learns, as published. If not, texts are read once before training (the mean state of their words, standardized
    over the catalogue) and a linear map of those vectors learns in its place, which costs a small share of the time."""
    prompt: str = "Compress the following sentence into embedding:"
    """What stands in front of each text."""
    text_length: int = Field(32, ge=1)
    """Tokens of a text that are read, its beginning, beside the prompt."""
    piece: int = Field(16384, ge=1)
    """Tokens of text, padding among them, that go through the item model at once."""
    recompute: bool = False
    """Whether the backward pass computes the item model's activations again, a third more work; one piece's are held then and not all."""
    max_length: int = Field(50, ge=2)
    """Tokens of context: the start token and the latest max_length - 1 items. Longer training sequences are cut into windows."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the numbers of an item's vector dropped in training where the user model reads it; none as published."""
    sampling: Literal["all", "shared", "in-batch"] = "shared"
    """Where negatives come from: all items, ones drawn uniformly for the batch (as published), or the batch's own targets with the log Q
    correction, whose texts are read anyway."""
    negatives: int = Field(512, ge=1)
    """Negatives a position; unused where all items are."""
    similarity: Literal["dot", "cosine"] = "cosine"
    """How a state and an item's vector are compared."""
    temperature: float = Field(0.07, ge=0.01)
    """Divides similarities; fixed, where the published implementation learns it from .07 on."""
    epochs: int = Field(5, ge=1)
    """Passes over the log, at most."""
    batch_size: int = Field(64, ge=1)
    """Windows a step, over all processes."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak of AdamW's learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Most that the norm of a step's gradient may be; a larger one is scaled down."""
