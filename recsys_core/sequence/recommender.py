"""What all sequence models share: settings, windows, losses, training and ranking. A model adds its network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.evaluation.evaluate import evaluate
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender
from recsys_core.sequence.batch import SequenceBatch, SequenceLog, history_batch
from recsys_core.sequence.embedding import TokenEmbedding, feature_schema
from recsys_core.sequence.losses import Negatives, Objective, distinct_uniform, full_softmax, sampled_loss, shared_softmax
from recsys_core.training import Learner, Trainer, TrainingConfig, pick_device


class SequenceConfig(TrainingConfig):
    """Settings of a sequence model. Rows of a batch are windows of at most `max_length` items."""

    dim: int = Field(64, ge=1)
    """Width of item vectors and of the network."""
    blocks: int = Field(2, ge=1)
    """Layers."""
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

    @model_validator(mode="after")
    def _objective_has_negatives(self) -> Self:
        if self.sampling == "all" and self.loss != "softmax":
            raise ValueError(f"loss {self.loss!r} needs sampled negatives; set sampling to uniform, shared or in-batch")
        return self


class SequenceNetwork(nn.Module):
    """Base of networks: `embedding` makes vectors of tokens, `forward` states [T, dim] of a batch's tokens."""

    embedding: TokenEmbedding

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """States [T, dim]; the state of a token may depend on it and the tokens before it in its sequence alone."""


class SequenceRecommender(Recommender):
    """Base of sequence models. A subclass sets `Config` and gives `_build`; `uses_time` says whether timestamps are read, and which."""

    Config: ClassVar[type[ModelConfig]] = SequenceConfig
    config: SequenceConfig
    network: SequenceNetwork
    schema: dict[str, list[dict[str, Any]]]

    @property
    def uses_time(self) -> Literal["no", "past", "target"]:
        """`past`: timestamps of the history; `target`: also the time of the question, in training that of the target."""
        return "no"

    @property
    def training(self) -> str:
        config = self.config
        sampled = {"all": "all items", "shared": "shared uniform", "uniform": "uniform", "in-batch": "in-batch, logQ"}[config.sampling]
        negatives = sampled if config.sampling == "all" else f"{config.negatives} {sampled}"
        time = {"no": "no timestamps", "past": "timestamps of the past", "target": "timestamps, the target's too"}[self.uses_time]
        return f"{config.loss}, {negatives}, {config.similarity}, order, {time}"

    @abstractmethod
    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork: ...

    def _network(self) -> SequenceNetwork:
        return self._build(TokenEmbedding(len(self._catalogue()), self.n_users, self.config.dim, self.schema))

    def _learner(self, dataset: Dataset) -> SequenceLearner:
        return SequenceLearner(self.network, self.config, SequenceLog.of(dataset), dataset.item_counts)

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        device = pick_device(options.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed)
            self.schema = feature_schema(dataset.features)
            self.network = self._network()
            self.network.embedding.fill(dataset.features)
            users = options.validation
            validate = None if users is None else lambda: evaluate(self, users, ("NDCG@10",)).means["NDCG@10"]
            Trainer(self._learner(dataset), self.config, options, progress, validate).run()

    def to(self, device: str) -> Self:
        self.network.to(pick_device(device))
        return self

    @torch.inference_mode()
    def _score(self, histories: Histories) -> Tensor:
        if self.uses_time != "no" and histories.timestamps is None:
            raise DataError(f"{self.name} was trained with timestamps and these histories have none; give them, or train it without time")
        weight = self.network.embedding.ids.weight
        batch = self._question(histories).to(weight.device)
        states = self.network(batch)[batch.last]
        return similarity_scale(self.config, states) @ similarity_vectors(self.config, self.network.embedding.items()).T

    def _question(self, histories: Histories) -> SequenceBatch:
        """The batch whose last states rank the catalogue."""
        return history_batch(histories, len(self._catalogue()), self.config.max_length)

    def _meta(self) -> dict[str, Any]:
        return {"features": self.schema}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self.schema = meta["features"]

    def _state(self) -> dict[str, NDArray]:
        return {name: tensor.cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.network = self._network().eval()
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def similarity_scale(config: SequenceConfig, states: Tensor) -> Tensor:
    """States [T, D] such that their products with `similarity_vectors` are the scores: similarity / temperature."""
    return (functional.normalize(states, dim=1) if config.similarity == "cosine" else states) / config.temperature


def similarity_vectors(config: SequenceConfig, items: Tensor) -> Tensor:
    """Item vectors [N, D], of unit length for cosine."""
    return functional.normalize(items, dim=1) if config.similarity == "cosine" else items


class SequenceLearner(Learner[SequenceBatch]):
    """A network with a training log: windows in random order, each position predicting the item after it."""

    def __init__(self, network: SequenceNetwork, config: SequenceConfig, log: SequenceLog, item_counts: NDArray) -> None:
        super().__init__()
        self.network, self.config, self.log = network, config, log
        self.n_items = len(item_counts)
        frequency = torch.from_numpy(item_counts / max(item_counts.sum(), 1)).float()
        self.register_buffer("log_frequency", frequency.clamp(min=1e-12).log(), persistent=False)

    def windows(self, rng: np.random.Generator) -> Jagged:
        """The windows of an epoch, in random order."""
        windows = self.log.windows(self.config.max_length, rng)
        return windows.take(rng.permutation(len(windows)))

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[SequenceBatch]:
        windows = self.windows(rng)
        # One batch of the whole epoch goes to the device in one piece; steps are views of it.
        whole = self.log.batch(windows, self.n_items, self.config.max_length).to(device)
        size = self.config.batch_size
        return [cut(whole, windows.offsets, start, min(start + size, len(windows))) for start in range(0, len(windows), size)]

    def weight(self, batch: SequenceBatch) -> float:
        return float(len(batch.tokens))

    def shard(self, batch: SequenceBatch, rank: int, world: int) -> SequenceBatch:
        bounds = [len(batch) * n // world for n in range(world + 1)]
        return cut(batch, batch.offsets.cpu().numpy(), bounds[rank], bounds[rank + 1])

    def forward(self, batch: SequenceBatch) -> Tensor:
        states = self.network(batch)
        assert batch.targets is not None
        return torch.where(batch.real, self.losses(states, batch.targets), 0.0).sum()

    def losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """The loss [T] of states [T, D] against the items [T] that follow."""
        config, embedding = self.config, self.network.embedding
        states = similarity_scale(config, states)
        if config.sampling == "all":
            return full_softmax(states, targets, similarity_vectors(config, embedding.items()))
        positive = (states * similarity_vectors(config, embedding.items(targets))).sum(1)
        if config.sampling == "shared":
            drawn = distinct_uniform(self.n_items, config.negatives, states.device)
            vectors = similarity_vectors(config, embedding.items(drawn))
            if config.loss == "softmax":
                return shared_softmax(states, positive, vectors, torch.isin(targets, drawn))
            hit = targets[:, None] == drawn
            return self._sampled(positive, states @ vectors.T, hit)
        if config.sampling == "uniform":
            drawn = torch.randint(self.n_items, (len(states), config.negatives), device=states.device)
            vectors = similarity_vectors(config, embedding.items(drawn.flatten())).view(*drawn.shape, -1)
            return self._sampled(positive, torch.einsum("td,tnd->tn", states, vectors), drawn == targets[:, None])
        drawn = targets[torch.randint(len(targets), (config.negatives,), device=states.device)]
        # Items come up as often as they are taken: taking off log q makes the softmax one over the catalogue (Bengio & Senecal 2008).
        correction = self.get_buffer("log_frequency")
        scores = states @ similarity_vectors(config, embedding.items(drawn)).T - correction[drawn]
        return self._sampled(positive - correction[targets], scores, targets[:, None] == drawn)

    def _sampled(self, positive: Tensor, negative: Tensor, hit: Tensor) -> Tensor:
        share = min(self.config.negatives / max(self.n_items - 1, 1), 1.0)
        return sampled_loss(self.config.loss, positive, negative, hit, share, self.config.calibration)


def cut(batch: SequenceBatch, offsets: NDArray, start: int, stop: int) -> SequenceBatch:
    """Sequences `start` to `stop` (excluded) of a batch whose offsets are also known to the processor: views, no copies."""
    first, last = int(offsets[start]), int(offsets[stop])

    def part(column: Tensor | None) -> Tensor | None:
        return None if column is None else column[first:last]

    return replace(
        batch,
        tokens=batch.tokens[first:last],
        offsets=batch.offsets[start : stop + 1] - first,
        users=batch.users[start:stop],
        targets=part(batch.targets),
        times=part(batch.times),
        next_times=part(batch.next_times),
        ratings=part(batch.ratings),
        next_ratings=part(batch.next_ratings),
        features={name: column[first:last] for name, column in batch.features.items()},
    )
