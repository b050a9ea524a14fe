"""MultVAE: a variational autoencoder of what a user takes, with a multinomial likelihood (Liang et al. 2018, arXiv 1802.05814)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.recommender import Histories
from recsys_core.training import Learner, TrainingConfig
from recsys_core.training.network import NetworkRecommender


class MultVAEConfig(TrainingConfig):
    """Settings of MultVAE. Rows of a batch are users.

    Chosen on the validation part of MovieLens-100K (leave-one-out; NDCG@10 .077 with seed 0); the paper's are hidden 600, dim 200.
    """

    epochs: int = Field(60, ge=1)
    """Passes over the users, at most."""
    batch_size: int = Field(64, ge=1)
    """Users a step, over all processes."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of AdamW's learning rate."""
    hidden: int = Field(300, ge=1)
    """Width of the one hidden layer of the encoder, and of that of the decoder."""
    dim: int = Field(100, ge=1)
    """Width of the latent vector."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of a user's items hidden from the encoder in training."""
    beta: float = Field(0.2, ge=0)
    """Weight of the Kullback-Leibler term once it is reached."""
    anneal: float = Field(0.5, ge=0, le=1)
    """Share of training in which that weight rises from 0 along a line."""


class Baskets(NamedTuple):
    """The distinct items of B users. items: [T] int64 dense ids; offsets: [B + 1] int64."""

    items: Tensor
    offsets: Tensor

    @property
    def rows(self) -> Tensor:
        """The user of each item [T] int64."""
        return torch.repeat_interleave(self.offsets.diff(), output_size=len(self.items))

    def cut(self, offsets: np.ndarray, start: int, stop: int) -> Baskets:
        """Users `start` to `stop` (excluded), by offsets that the processor knows: views, no copies."""
        return Baskets(self.items[offsets[start] : offsets[stop]], self.offsets[start : stop + 1] - int(offsets[start]))


class MultVAENetwork(nn.Module):
    """Items, scaled to unit norm, to a normal distribution of latent vectors; a latent vector to a logit for each item. Both by tanh."""

    def __init__(self, config: MultVAEConfig, n_items: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        # The first layer's input is nearly all zeros: a sum of the rows of the items that are there is the same product.
        self.into = nn.Parameter(torch.empty(n_items, config.hidden))
        self.bias = nn.Parameter(torch.zeros(config.hidden))
        self.posterior = nn.Linear(config.hidden, 2 * config.dim)
        self.inner, self.out = nn.Linear(config.dim, config.hidden), nn.Linear(config.hidden, n_items)
        for weight in (self.into, self.posterior.weight, self.inner.weight, self.out.weight):
            nn.init.xavier_normal_(weight)
        for layer in (self.posterior, self.inner, self.out):
            nn.init.zeros_(layer.bias)

    def encode(self, baskets: Baskets) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, dim] of each user's latent vector."""
        norm = baskets.offsets.diff().clamp(min=1).to(self.into.dtype).rsqrt()
        weights = functional.dropout(norm[baskets.rows], self.dropout, self.training)
        x = functional.embedding_bag(
            baskets.items, self.into, baskets.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )
        mean, log_variance = self.posterior(torch.tanh(x + self.bias)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Logits [B, I] of latent vectors [B, dim]."""
        logits: Tensor = self.out(torch.tanh(self.inner(latent)))
        return logits


class MultVAE(NetworkRecommender):
    """score = the logit of an item for the mean latent vector of the history's items; users are met by their history alone.

    Order and repeats in a history do not matter. The encoder's input is dropped out, so it learns to name the items it was not shown.
    """

    name = "multvae"
    Config = MultVAEConfig
    config: MultVAEConfig
    network: MultVAENetwork

    @property
    def training(self) -> str:
        return "multinomial likelihood with KL, all items, no order"

    def _network(self) -> MultVAENetwork:
        return MultVAENetwork(self.config, len(self._catalogue()))

    def _learner(self, dataset: Dataset) -> MultVAELearner:
        return MultVAELearner(self.network, self.config, dataset.sequences())

    @torch.inference_mode()
    def _score(self, histories: Histories) -> Tensor:
        rows = histories.items.distinct()
        device = self.network.bias.device
        mean, _ = self.network.encode(Baskets(torch.from_numpy(rows.values).to(device), torch.from_numpy(rows.offsets).to(device)))
        return self.network.decode(mean)


class MultVAELearner(Learner[Baskets]):
    """A network with the training users: each is to be told apart from all others by what it took."""

    steps: Tensor

    def __init__(self, network: MultVAENetwork, config: MultVAEConfig, sequences: Jagged) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.baskets = sequences.take(np.flatnonzero(sequences.lengths)).distinct()
        # How far the annealing is: a buffer, so that a resumed training goes on from there.
        self.register_buffer("steps", torch.zeros(()))
        self.anneal_steps = config.anneal * config.epochs * -(-len(self.baskets) // config.batch_size)

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[Baskets]:
        rows = self.baskets.take(rng.permutation(len(self.baskets)))
        whole = Baskets(torch.from_numpy(rows.values).to(device), torch.from_numpy(rows.offsets).to(device))
        size = self.config.batch_size
        return [whole.cut(rows.offsets, start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

    def weight(self, batch: Baskets) -> float:
        return float(len(batch.offsets) - 1)

    def shard(self, batch: Baskets, rank: int, world: int) -> Baskets:
        users = len(batch.offsets) - 1
        return batch.cut(batch.offsets.cpu().numpy(), users * rank // world, users * (rank + 1) // world)

    def forward(self, batch: Baskets) -> Tensor:
        mean, log_variance = self.network.encode(batch)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        logits = self.network.decode(latent).float()
        likelihood = logits[batch.rows, batch.items].sum() - (batch.offsets.diff() * logits.logsumexp(1)).sum()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return self.beta() * divergence - likelihood

    def beta(self) -> Tensor | float:
        """The weight of the divergence at this step, which counts as one if the learner is in training."""
        if not self.anneal_steps:
            return self.config.beta
        if self.training:
            self.steps += 1
        return self.config.beta * (self.steps / self.anneal_steps).clamp(max=1)
