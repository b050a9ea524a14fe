"""What most users took: the baseline a personalized recommender has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.dataset import Dataset
from recsys_core.recommender import FitOptions, Histories, Progress, Recommender


class Popularity(Recommender):
    """Scores an item by its interactions in the training log, the same for every user."""

    name = "popularity"
    counts: NDArray[np.float32]

    @property
    def training(self) -> str:
        return "counts"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        self.counts = dataset.item_counts.astype(np.float32)
        progress(1.0, "counted")

    def _score(self, histories: Histories) -> NDArray:
        return np.tile(self.counts, (len(histories), 1))

    def _state(self) -> dict[str, NDArray]:
        return {"counts": self.counts}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.counts = state["counts"]
