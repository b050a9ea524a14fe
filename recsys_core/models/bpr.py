"""BPR-MF: matrix factorization trained to rank taken items above others (Rendle et al. 2009, arXiv 1205.2618)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.data.preferences import Preferences
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender

_RIDGE = 1.0


class BPRConfig(ModelConfig):
    """Settings of BPR-MF; chosen on the validation part of MovieLens-100K (leave-one-out; NDCG@10 .064 to .068 for seeds 0 to 2)."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial factors, the order of the log and the negatives."""
    dim: int = Field(64, ge=1)
    """Factors a user and an item."""
    epochs: int = Field(30, ge=1)
    """Passes over the log."""
    batch_size: int = Field(4096, ge=1)
    """Interactions a step."""
    learning_rate: float = Field(0.05, gt=0)
    """Peak of Adam's learning rate; it falls along a line to 0."""
    l2: float = Field(0.005, ge=0)
    """Weight of the squared norms of the factors in use."""


class BPR(Recommender):
    """score = <user factor, item factor> + item bias, with one uniform negative for each interaction; item order is not used.

    Given preferences are further triples, each met once an epoch, with the given other item for a negative and the loss times its weight.

    A user in training is met by id: the learned factor, moved by what the history gained since. For this a linear map from the mean item
    factor of a history (and a constant) to the user factor is fitted by ridge regression on the training users; it gives unknown users
    (id -1, or without training rows) their factor, and known users the difference between their present and their training history. A
    known user with the training history, or an empty one, has exactly the learned factor.
    """

    name = "bpr"
    Config = BPRConfig
    learns_preferences = True
    config: BPRConfig
    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]
    item_bias: NDArray[np.float32]
    fold_in: NDArray[np.float32]
    trained_mean: NDArray[np.float32]
    trained: NDArray[np.bool_]

    @property
    def training(self) -> str:
        return "BPR, uniform negatives, no order"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        config = self.config
        user, item, given, weight = _triples(dataset, options.preferences)
        generator = torch.Generator().manual_seed(config.seed)
        users = 0.1 * torch.randn(len(dataset.users), config.dim, generator=generator)
        items = 0.1 * torch.randn(len(dataset.items), config.dim, generator=generator)
        bias = torch.zeros(len(dataset.items))
        optimizer = torch.optim.Adam([users, items, bias], config.learning_rate, fused=True)
        steps = config.epochs * -(-len(user) // config.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for epoch in range(config.epochs):
            order = torch.randperm(len(user), generator=generator)
            total = 0.0
            for rows in torch.split(order, config.batch_size):
                negative = torch.randint(len(dataset.items), (len(rows),), generator=generator)
                negative = torch.where(given[rows] < 0, negative, given[rows])
                loss, gradients = loss_and_gradients(users, items, bias, user[rows], item[rows], negative, config.l2, weight[rows])
                users.grad, items.grad, bias.grad = gradients
                optimizer.step()
                schedule.step()
                total += float(loss) * len(rows)
            progress((epoch + 1) / config.epochs, f"epoch {epoch + 1}/{config.epochs}, loss {total / len(user):.3f}")
        self.user_factors, self.item_factors, self.item_bias = users.numpy(), items.numpy(), bias.numpy()
        sequences = dataset.sequences()
        self.trained = sequences.lengths > 0
        self.trained_mean = self._mean_factor(sequences)
        known, wanted = _with_constant(self.trained_mean[self.trained]), self.user_factors[self.trained]
        self.fold_in = np.linalg.solve(known.T @ known + _RIDGE * np.eye(config.dim + 1, dtype=np.float32), known.T @ wanted)

    def _mean_factor(self, rows: Jagged) -> NDArray[np.float32]:
        """Mean item factor of each row [B, dim] float32; 0 for an empty row."""
        sums = np.zeros((len(rows), self.config.dim), np.float32)
        np.add.at(sums, rows.row_ids, self.item_factors[rows.values])
        return sums / np.maximum(rows.lengths, 1).astype(np.float32)[:, None]

    def _score(self, histories: Histories) -> NDArray:
        user = histories.users
        mean = self._mean_factor(histories.items)
        factor = _with_constant(mean) @ self.fold_in
        met = np.flatnonzero((user >= 0) & self.trained[user])
        known = user[met]
        gained = np.where((histories.items.lengths[met] > 0)[:, None], mean[met] - self.trained_mean[known], 0)
        factor[met] = self.user_factors[known] + gained @ self.fold_in[:-1]
        scores: NDArray = factor @ self.item_factors.T + self.item_bias
        return scores

    def _state(self) -> dict[str, NDArray]:
        return {
            "user_factors": self.user_factors, "item_factors": self.item_factors, "item_bias": self.item_bias,
            "fold_in": self.fold_in, "trained_mean": self.trained_mean, "trained": self.trained,
        }  # fmt: skip

    def _load_state(self, state: dict[str, NDArray]) -> None:
        for name, array in state.items():
            setattr(self, name, array)


def loss_and_gradients(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    user: Tensor,
    item: Tensor,
    negative: Tensor,
    l2: float,
    weight: Tensor | float = 1.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The mean of weight * -log sigmoid(margin) over N triples, and the gradients of it plus l2 times their factors' mean squared norms.

    users: [U, d]; items: [I, d]; bias: [I]; user, item, negative: [N] dense ids; weight: [N], or one for all. The gradients have the shapes
    of the first three.
    Written out by hand: it takes a third of the time that autograd needs.
    """
    u, difference = users.index_select(0, user), items.index_select(0, item) - items.index_select(0, negative)
    margin = (u * difference).sum(1) + bias[item] - bias[negative]
    pull = weight * torch.sigmoid(-margin) / len(user)
    u *= pull[:, None]
    difference *= pull[:, None]
    uses = user.bincount(minlength=len(users)), torch.cat([item, negative]).bincount(minlength=len(items))
    to_users, to_items = (table * (2 * l2 / len(user) * count)[:, None] for table, count in zip((users, items), uses, strict=True))
    return (weight * functional.softplus(-margin)).mean(), (
        to_users.index_add_(0, user, difference, alpha=-1),
        to_items.index_add_(0, item, u, alpha=-1).index_add_(0, negative, u),
        torch.zeros_like(bias).index_add_(0, item, pull, alpha=-1).index_add_(0, negative, pull),
    )


def _triples(dataset: Dataset, pairs: Preferences | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """User, item, negative (-1 where it is to be drawn) and weight [N] of the interactions of a log and of preferences."""
    user, item = dataset.user.copy(), dataset.item.copy()
    other, weight = np.full(len(dataset), -1, np.int64), np.ones(len(dataset), np.float32)
    if pairs is not None:
        user, item = np.concatenate([user, pairs.user]), np.concatenate([item, pairs.item])
        other, weight = np.concatenate([other, pairs.other]), np.concatenate([weight, pairs.weight])
    return torch.from_numpy(user), torch.from_numpy(item), torch.from_numpy(other), torch.from_numpy(weight)


def _with_constant(means: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.hstack([means, np.ones((len(means), 1), np.float32)])
