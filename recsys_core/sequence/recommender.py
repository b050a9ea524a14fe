"""What all sequence models share: settings, windows, losses, training and ranking. A model adds its network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from kernels.backend import compiled
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.sampled_softmax import sampled_softmax
from recsys_core.data.dataset import Dataset
from recsys_core.data.features import Features
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.recommender import Histories, ModelConfig
from recsys_core.sequence.batch import SequenceBatch, SequenceLog, history_batch
from recsys_core.sequence.embedding import ItemEmbedding, Schema, TokenEmbedding, feature_schema
from recsys_core.sequence.losses import (
    Negatives,
    Objective,
    distinct_uniform,
    full_softmax,
    log_q,
    sampled_loss,
    softmax_sum,
)
from recsys_core.sequence.windows import WindowLearner
from recsys_core.training import TrainingConfig
from recsys_core.training.network import NetworkRecommender
from recsys_core.vectors import Value, VectorRecommender

_CPU_PIECE = 2**19
"""Numbers of a layer's activations [T, dim] a thread works on at once when ranking on a processor: its cache holds about so many."""


class NextItemConfig(TrainingConfig):
    """How sequences are read and what is learned from them. Rows of a batch are windows of at most `max_length` items."""

    max_length: int = Field(50, ge=2)
    """Tokens of context: the start token and the latest max_length - 1 items. Longer training sequences are cut into windows."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of activations dropped in training."""
    loss: Objective = "softmax"
    """Objective over a target and its negatives."""
    sampling: Negatives = "all"
    """Where negatives come from; `all` is the full softmax."""
    negatives: int = Field(256, ge=1)
    """Negatives a position; unused where all items are."""
    similarity: Literal["dot", "cosine"] = "dot"
    """How a state and an item's vector are compared."""
    temperature: float = Field(1.0, ge=0.01)
    """Divides similarities."""
    calibration: float = Field(0.75, ge=0, le=1)
    """The `t` of gBCE."""
    windows: Literal["all", "latest"] = "all"
    """What is learned from a sequence longer than max_length: all of it, cut into windows anew each epoch, or its latest items alone."""

    @model_validator(mode="after")
    def _objective_has_negatives(self) -> Self:
        if self.sampling == "all" and self.loss != "softmax":
            raise ValueError(f"loss {self.loss!r} needs sampled negatives; set sampling to uniform, shared or in-batch")
        return self


class SequenceConfig(NextItemConfig):
    """Settings of a sequence model of ids and features."""

    dim: int = Field(64, ge=1)
    """Width of item vectors and of the network."""
    blocks: int = Field(2, ge=1)
    """Layers."""
    features: bool = False
    """Whether the dataset's user, item and interaction features are read beside the ids."""


class SequenceNetwork(nn.Module):
    """Base of networks: `embedding` makes vectors of tokens, `forward` states [T, dim] of a batch's tokens."""

    embedding: ItemEmbedding
    asks_device: ClassVar[bool] = True
    """Whether a step waits for an answer of the device, such as the length of a sequence; else it can be replayed as a CUDA graph."""
    causal: ClassVar[bool] = True
    """Whether a token's state depends on it and the tokens before it alone."""

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """States [T, dim]; the state of a token may depend on no other sequence, and, if causal, on no later token."""

    def last(self, batch: SequenceBatch) -> Tensor:
        """States [B, dim] of each sequence's last token; a network that can leave out work for the others overrides it."""
        states: Tensor = self(batch)[batch.last]
        return states


class NextItemRecommender(NetworkRecommender, VectorRecommender):
    """Base of models that rank what comes next by their state behind a sequence. A subclass sets `Config` and gives `_network`.

    `uses_time` says whether timestamps are read, and which.
    """

    Config: ClassVar[type[ModelConfig]] = NextItemConfig
    config: NextItemConfig
    network: SequenceNetwork

    @property
    def uses_time(self) -> Literal["no", "past", "target"]:
        """`past`: timestamps of the history; `target`: also the time of the question, in training that of the target."""
        return "no"

    @property
    def uses_ratings(self) -> bool:
        """Whether ratings of the history are read."""
        return False

    @property
    def training(self) -> str:
        config = self.config
        in_batch = "in-batch with logQ" if config.loss == "softmax" else "in-batch"
        sampled = {"all": "all items", "shared": "shared uniform", "uniform": "uniform", "in-batch": in_batch}[config.sampling]
        negatives = sampled if config.sampling == "all" else f"{config.negatives} {sampled}"
        time = {"no": "no timestamps", "past": "timestamps of the past", "target": "timestamps, the target's too"}[self.uses_time]
        return f"{config.loss}, {negatives}, {config.similarity}, order, {time}"

    def _learner(self, dataset: Dataset) -> SequenceLearner:
        return SequenceLearner(self.network, self.config, SequenceLog.of(dataset), dataset.item_counts)

    def _initialize(self, dataset: Dataset) -> None:
        if self.uses_time != "no" and not dataset.timed:
            raise DataError(f"{self.name} reads timestamps, and {dataset.name!r} has an order only; train it without time")
        super()._initialize(dataset)

    @torch.inference_mode()
    def query_vectors(self, histories: Histories) -> Tensor:
        if self.uses_time != "no" and histories.timestamps is None:
            raise DataError(f"{self.name} was trained with timestamps and these histories have none; give them, or train it without time")
        device, dim = next(self.network.parameters()).device, self.network.embedding.dim
        room = torch.get_num_threads() * _CPU_PIECE // (dim * self.config.max_length)
        step = max(room if device.type == "cpu" else len(histories), 1)
        # Histories of like length need little padding.
        order = np.argsort(histories.items.lengths, kind="stable")
        states = torch.empty(len(order), dim, device=device)
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            states[torch.from_numpy(rows).to(device)] = self.network.last(self._question(histories.take(rows)).to(device))
        return similarity_scale(self.config, states)

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        return similarity_vectors(self.config, self.network.embedding.items().detach())

    def _question(self, histories: Histories) -> SequenceBatch:
        """The batch whose last states rank the catalogue."""
        return history_batch(histories, len(self._catalogue()), self.config.max_length)


class SequenceRecommender(NextItemRecommender):
    """Base of sequence models of ids and features. A subclass sets `Config` and gives `_build`."""

    Config: ClassVar[type[ModelConfig]] = SequenceConfig
    config: SequenceConfig
    schema: Schema

    @property
    def training(self) -> str:
        return super().training + (", features" if self.config.features else "")

    @abstractmethod
    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork: ...

    @property
    def _embedding(self) -> TokenEmbedding:
        embedding = self.network.embedding
        assert isinstance(embedding, TokenEmbedding)
        return embedding

    def _network(self) -> SequenceNetwork:
        return self._build(TokenEmbedding(len(self._catalogue()), self.n_users, self.config.dim, self.schema))

    def _initialize(self, dataset: Dataset) -> None:
        features = dataset.features if self.config.features else Features()
        self.schema = feature_schema(features)
        super()._initialize(dataset)
        self._embedding.fill(features)

    def id_vectors(self) -> Tensor:
        return self._embedding.ids.weight.detach()[: len(self._catalogue())]

    @property
    def item_features(self) -> tuple[str, ...]:
        return tuple(spec["name"] for spec in self.schema["item"])

    def _append(self, vectors: Tensor, features: Sequence[Mapping[str, Value]]) -> None:
        self._embedding.append(vectors, features)
        self.schema = self._embedding.schema

    def _meta(self) -> dict[str, Any]:
        return {"features": self.schema}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self.schema = meta["features"]


def similarity_scale(config: NextItemConfig, states: Tensor) -> Tensor:
    """States [T, D] such that their products with `similarity_vectors` are the scores: similarity / temperature."""
    return (functional.normalize(states, dim=1) if config.similarity == "cosine" else states) / config.temperature


def similarity_vectors(config: NextItemConfig, items: Tensor) -> Tensor:
    """Item vectors [N, D], of unit length for cosine."""
    return functional.normalize(items, dim=1) if config.similarity == "cosine" else items


class SequenceLearner(WindowLearner):
    """A network with a training log: windows in random order, each position predicting the item after it."""

    network: SequenceNetwork
    config: NextItemConfig

    def __init__(self, network: SequenceNetwork, config: NextItemConfig, log: SequenceLog, item_counts: NDArray) -> None:
        super().__init__(log, len(item_counts), config.max_length, config.batch_size)
        self.network, self.config = network, config
        frequency = torch.from_numpy(item_counts / max(item_counts.sum(), 1)).float()
        self.register_buffer("log_frequency", frequency.clamp(min=1e-12).log(), persistent=False)

    def windows(self, rng: np.random.Generator) -> Jagged:
        length = self.config.max_length
        windows = self.log.latest(length) if self.config.windows == "latest" else self.log.windows(length, rng)
        return windows.take(rng.permutation(len(windows)))

    def weight(self, batch: SequenceBatch) -> float:
        return float(len(batch.tokens))

    def static(self, batches: Sequence[SequenceBatch]) -> SequenceBatch | None:
        return None if self.network.asks_device else super().static(batches)

    def forward(self, batch: SequenceBatch) -> Tensor:
        assert batch.targets is not None
        return self.loss(self.network(batch), batch.targets, batch.real)

    def loss(self, states: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """The sum of the losses of positions that are real, bool [T], a scalar."""
        if self.config.sampling != "all":
            return self.losses(states, targets, real).sum()
        scaled, items = similarity_scale(self.config, states), similarity_vectors(self.config, self.network.embedding.items())
        if compiled(states):
            return linear_cross_entropy(scaled, targets, items, valid=real).sum()
        return softmax_sum(scaled, targets, items, real)

    def losses(self, states: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
        """The loss [T] of states [T, D] against the items [T] that follow; 0 where not real, bool [T], by default nowhere."""
        config, embedding = self.config, self.network.embedding
        if config.sampling == "all":
            found = full_softmax(similarity_scale(config, states), targets, similarity_vectors(config, embedding.items()))
        elif config.sampling == "in-batch":
            found = self._in_batch(similarity_scale(config, states), targets, len(targets) if real is None else real.sum())
        elif config.loss == "softmax":
            drawn, items = self._drawn(len(states), states.device), embedding.items()
            return sampled_softmax(
                states, targets, drawn, items, temperature=config.temperature, similarity=config.similarity, valid=real
            )  # fmt: skip
        else:
            states, drawn = similarity_scale(config, states), self._drawn(len(states), states.device)
            vectors = similarity_vectors(config, embedding.items(drawn.flatten())).view(*drawn.shape, -1)
            negative = states @ vectors.T if drawn.ndim == 1 else torch.einsum("td,tnd->tn", states, vectors)
            found = self._sampled(self._positive(states, targets), negative, drawn == targets[:, None])
        return found if real is None else torch.where(real, found, 0.0)

    def _in_batch(self, states: Tensor, targets: Tensor, count: Tensor | int) -> Tensor:
        """The losses against targets of the first `count` positions; states: scaled."""
        config = self.config
        places = torch.rand(config.negatives, device=states.device) * count
        # In float32 a product may round up to the count itself.
        drawn = targets[places.long().clamp(max=len(targets) - 1)]
        scores = states @ similarity_vectors(config, self.network.embedding.items(drawn)).T
        if config.loss == "softmax":
            scores = log_q(scores, self.get_buffer("log_frequency")[drawn])
        return self._sampled(self._positive(states, targets), scores, targets[:, None] == drawn)

    def _positive(self, states: Tensor, targets: Tensor) -> Tensor:
        """The scores [T] of the targets; states: scaled."""
        return (states * similarity_vectors(self.config, self.network.embedding.items(targets))).sum(1)

    def _drawn(self, positions: int, device: torch.device) -> Tensor:
        """Negatives drawn uniformly: distinct ones [N] that all positions share, or [T, N] of each position's own."""
        if self.config.sampling == "shared":
            return distinct_uniform(self.n_items, self.config.negatives, device)
        return torch.randint(self.n_items, (positions, self.config.negatives), device=device)

    def _sampled(self, positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
        share = min(self.config.negatives / max(self.n_items - 1, 1), 1.0)
        return sampled_loss(self.config.loss, positive, negative, hit, share, self.config.calibration)
