"""EASE: a linear item-to-item model with a closed form (Steck 2019, arXiv 1905.03375)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender

_BLOCK = 1024


class EASEConfig(ModelConfig):
    """Settings of EASE."""

    l2: float = Field(100.0, gt=0)
    """Weight of the squared norm of B; larger spreads weight over more items. Chosen on the validation part of MovieLens-100K."""


class EASE(Recommender):
    """Minimizes |X - X B|^2 + l2 |B|^2 with diag(B) = 0 for the binary user-item matrix X; scores a history's items' multi-hot row times B.

    With P = (X'X + l2 I)^-1: B[i, j] = -P[i, j] / P[j, j] off the diagonal (equation 8). Order and repeats in a history do not matter.
    Memory: about three float64 matrices of I x I while fitting (1,682 items: 70 MB; 20,000 items: 10 GB), one float32 afterwards.
    """

    name = "ease"
    Config = EASEConfig
    config: EASEConfig
    weights: NDArray[np.float32]

    @property
    def training(self) -> str:
        return "squared error, all items, no order"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        n_items = len(dataset.items)
        gram = np.zeros((n_items, n_items))
        sequences = dataset.sequences()
        for start in range(0, len(sequences), _BLOCK):
            seen = multi_hot(sequences.take(range(start, min(start + _BLOCK, len(sequences)))), n_items)
            # Counts below 2^24 are exact in float32, which multiplies twice as fast.
            gram += seen.T @ seen
            progress(0.5 * min(start + _BLOCK, len(sequences)) / len(sequences), "counting pairs of items")
        gram[np.diag_indices(n_items)] += self.config.l2
        # The matrix is symmetric and positive definite, whose inverse takes a third of the time of any other's.
        lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(gram))
        if failed:
            raise DataError(f"l2 is {self.config.l2:g}, too little beside {len(dataset)} interactions to solve for the weights; raise it")
        precision = torch.cholesky_inverse(lower).numpy()
        precision /= -np.diag(precision).copy()
        weights = precision.astype(np.float32)
        np.fill_diagonal(weights, 0.0)
        self.weights = weights
        progress(1.0, "solved")

    def _score(self, histories: Histories) -> NDArray:
        # A product with a row of ones and zeros is the sum of a few rows of B; as a product it would read all of them.
        taken = histories.items.distinct()
        items, starts = torch.from_numpy(taken.values), torch.from_numpy(taken.offsets[:-1])
        return functional.embedding_bag(items, torch.from_numpy(self.weights), starts, mode="sum").numpy()

    def _state(self) -> dict[str, NDArray]:
        return {"weights": self.weights}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.weights = state["weights"]


def multi_hot(rows: Jagged, n_items: int) -> NDArray[np.float32]:
    """Which items each row holds: [B, I] float32 of 0 and 1."""
    hot = np.zeros((len(rows), n_items), np.float32)
    hot[rows.row_ids, rows.values] = 1.0
    return hot
