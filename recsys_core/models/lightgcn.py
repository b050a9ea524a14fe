"""LightGCN: matrix factorization over vectors averaged along the user-item graph (He et al. 2020, arXiv 2002.02126)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.recommender import Histories
from recsys_core.training import Learner, TrainingConfig
from recsys_core.training.network import NetworkRecommender


class LightGCNConfig(TrainingConfig):
    """Settings of LightGCN. Rows of a batch are interactions; each step propagates over the whole graph, so large batches are quick.

    Chosen on the validation part of MovieLens-100K (leave-one-out; NDCG@10 .058 with seed 0).
    """

    epochs: int = Field(40, ge=1)
    """Passes over the interactions, at most."""
    batch_size: int = Field(4096, ge=1)
    """Interactions a step, over all processes."""
    learning_rate: float = Field(0.03, gt=0)
    """Peak of AdamW's learning rate."""
    dim: int = Field(64, ge=1)
    """Width of the vectors."""
    layers: int = Field(3, ge=1)
    """Steps of propagation."""
    l2: float = Field(1e-3, ge=0)
    """Weight of half the squared norms of the vectors in use, before propagation."""


class LightGCNNetwork(nn.Module):
    """Vectors of users and items before propagation, and tables of what propagation makes of them.

    vectors: [U + I, dim]; items: [I, dim], propagated; users: [U, dim], propagated; own: [U, dim], the part of `users` that is a user's own
    vector, 0 for users without training rows; fold_in: [I, dim], what an item gives to a user's propagated vector, times the square root
    of the user's degree. The tables are filled by the learner in evaluation mode.
    """

    own: Tensor
    users: Tensor
    items: Tensor
    fold_in: Tensor

    def __init__(self, n_users: int, n_items: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(0.1 * torch.randn(n_users + n_items, dim))
        for name, rows in (("own", n_users), ("users", n_users), ("items", n_items), ("fold_in", n_items)):
            self.register_buffer(name, torch.zeros(rows, dim))


class LightGCN(NetworkRecommender):
    """score = <user, item>, each the mean of its vectors after 0 to `layers` steps of propagation; order and repeats do not matter.

    Propagation is linear, so a user's vector is a part of its own plus a sum over its items. That sum is taken over the history it is asked
    about: for a training history this is exactly the trained vector, a grown one moves it, and an unknown user (id -1, or without training
    rows) has the sum alone. A known user with an empty history has the trained vector.
    """

    name = "lightgcn"
    Config = LightGCNConfig
    config: LightGCNConfig
    network: LightGCNNetwork

    @property
    def training(self) -> str:
        return "BPR, uniform negatives, no order"

    def _network(self) -> LightGCNNetwork:
        return LightGCNNetwork(self.n_users, len(self._catalogue()), self.config.dim)

    def _learner(self, dataset: Dataset) -> LightGCNLearner:
        return LightGCNLearner(self.network, self.config, dataset.sequences().distinct())

    @torch.inference_mode()
    def _score(self, histories: Histories) -> Tensor:
        network, user = self.network, histories.users
        device, rows = network.vectors.device, histories.items.distinct()
        lengths = torch.from_numpy(rows.lengths).to(device)
        sums = functional.embedding_bag(
            torch.from_numpy(rows.values).to(device), network.fold_in, torch.from_numpy(rows.offsets).to(device), mode="sum",
            include_last_offset=True,
        )  # fmt: skip
        ids = torch.from_numpy(user).to(device)
        known, index = (ids >= 0)[:, None], ids.clamp(min=0)
        vectors = sums * lengths.clamp(min=1).rsqrt()[:, None] + torch.where(known, network.own[index], 0.0)
        return torch.where(known & (lengths == 0)[:, None], network.users[index], vectors) @ network.items.T


class LightGCNLearner(Learner[Tensor]):
    """A network with the training graph. A batch is [3, B] int64: user, item, and an item drawn uniformly, in rows of `vectors`."""

    graph: Tensor

    def __init__(self, network: LightGCNNetwork, config: LightGCNConfig, baskets: Jagged) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.n_users, self.n_items = len(network.users), len(network.items)
        self.user, self.item = baskets.row_ids, baskets.values
        self.register_buffer("graph", normalized(self.user, self.item + self.n_users, self.n_users + self.n_items), persistent=False)

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[Tensor]:
        order = rng.permutation(len(self.user))
        negative = rng.integers(0, self.n_items, len(order))
        rows = np.stack([self.user[order], self.item[order] + self.n_users, negative + self.n_users])
        return torch.split(torch.from_numpy(rows).to(device), self.config.batch_size, dim=1)

    def weight(self, batch: Tensor) -> float:
        return float(batch.shape[1])

    def shard(self, batch: Tensor, rank: int, world: int) -> Tensor:
        return batch[:, batch.shape[1] * rank // world : batch.shape[1] * (rank + 1) // world]

    def forward(self, batch: Tensor) -> Tensor:
        vectors, rows = self.network.vectors, batch.flatten()
        propagated = propagate(self.graph, vectors, self.config.layers).index_select(0, rows)
        user, item, negative = propagated.view(3, -1, vectors.shape[1])
        loss = -functional.logsigmoid((user * (item - negative)).sum(1)).sum()
        return loss + 0.5 * self.config.l2 * vectors.index_select(0, rows).square().sum()

    @torch.no_grad()
    def train(self, mode: bool = True) -> LightGCNLearner:
        """Leaving training fills the tables that ranking reads."""
        super().train(mode)
        if not mode:
            network, layers = self.network, self.config.layers
            last = propagate(self.graph, network.vectors, layers)
            network.users.copy_(last[: self.n_users])
            network.items.copy_(last[self.n_users :])
            degree = torch.from_numpy(np.bincount(self.item, minlength=self.n_items)).to(last.device)[:, None]
            # A user's propagated vector sums what its items had one step earlier, so the last layer of the items is not in it.
            share = layers / (layers + 1)
            earlier = propagate(self.graph, network.vectors, layers - 1)[self.n_users :] * share
            network.fold_in.copy_(earlier * degree.clamp(min=1).rsqrt() * (degree > 0))
            met = torch.from_numpy(np.bincount(self.user, minlength=self.n_users) > 0).to(last.device)[:, None]
            network.own.copy_(network.vectors[: self.n_users] / (layers + 1) * met)
            network.users.mul_(met)
        return self


def normalized(user: NDArray[np.int64], item: NDArray[np.int64], size: int) -> Tensor:
    """The graph with an edge both ways for each (user, item), weighted 1 / sqrt(degree of one * degree of the other): [N, N] sparse CSR."""
    rows, columns = np.concatenate([user, item]), np.concatenate([item, user])
    order = np.lexsort((columns, rows))
    degree = np.bincount(rows, minlength=size)
    weights = (1 / np.sqrt(degree[rows] * degree[columns]))[order].astype(np.float32)
    ends = np.concatenate([[0], np.cumsum(degree)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            torch.from_numpy(ends), torch.from_numpy(columns[order]), torch.from_numpy(weights), (size, size), check_invariants=True
        )


class _Propagation(torch.autograd.Function):
    """The mean of A^k x over k = 0 .. layers. A is symmetric, so the gradient is the same mean of the gradient, and nothing is kept."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, vectors: Tensor, layers: int) -> Tensor:
        ctx.graph, ctx.layers = graph, layers
        return _mean_of_powers(graph, vectors, layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, _mean_of_powers(ctx.graph, gradients[0], ctx.layers), None


def _mean_of_powers(graph: Tensor, vectors: Tensor, layers: int) -> Tensor:
    # Sparse products exist in 32 bits only.
    with torch.autocast(vectors.device.type, enabled=False):
        # Horner's rule: x + A (x + A (x + ...)) is the sum of all powers, without a tensor for each.
        total = vectors
        for _ in range(layers):
            total = torch.addmm(vectors, graph, total)
        return total / (layers + 1)


def propagate(graph: Tensor, vectors: Tensor, layers: int) -> Tensor:
    """The mean over k = 0 .. layers of what vectors [N, dim] become after k steps along a normalized graph [N, N]: [N, dim]."""
    propagated: Tensor = _Propagation.apply(graph, vectors, layers)  # type: ignore[no-untyped-call]
    return propagated
