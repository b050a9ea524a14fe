"""A floor for every table: scores without any information."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recsys_core.data.dataset import Dataset
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender

Words = NDArray[np.uint64]


class RandomConfig(ModelConfig):
    """Settings of Random."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Another seed gives another order."""


class Random(Recommender):
    """Uniform scores that are a hash of (seed, user id, history, item), so the same question gets the same answer, in any batch."""

    name = "random"
    Config = RandomConfig
    config: RandomConfig

    @property
    def training(self) -> str:
        return "none"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        progress(1.0, "nothing to learn")

    def _score(self, histories: Histories) -> NDArray:
        rows = histories.items
        place = np.arange(len(rows.values)) - np.repeat(rows.offsets[:-1], rows.lengths)
        words = _mix(_mix(rows.values) + place.astype(np.uint64))
        # Sums of a row as differences of a running sum: exact, because uint64 wraps around.
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words, dtype=np.uint64)])
        history = running[rows.offsets[1:]] - running[rows.offsets[:-1]]
        user = _mix(_mix(histories.users) + _mix(np.array([self.config.seed])) + history)
        hashed = _mix(user[:, None] + _mix(np.arange(len(self._catalogue()))))
        return (hashed >> np.uint64(40)).astype(np.float32) / np.float32(2**24)

    def _state(self) -> dict[str, NDArray]:
        return {}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        pass


def _mix(words: NDArray) -> Words:
    """SplitMix64's finalizer (Steele et al. 2014): every input bit changes about half the output bits."""
    x = words.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
