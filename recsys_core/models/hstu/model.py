"""HSTU as a recommender: retrieval of the next item and, with rating tokens, the ranking of candidates."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Floats, Ints, Jagged
from recsys_core.errors import DataError
from recsys_core.models.hstu.config import HSTUConfig
from recsys_core.models.hstu.falcon import score_candidates
from recsys_core.models.hstu.network import HSTUNetwork
from recsys_core.recommender import Histories, check_candidates
from recsys_core.sequence.batch import SequenceBatch, SequenceLog
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.recommender import SequenceLearner, SequenceRecommender

_MOST_LEVELS = 32


class HSTU(SequenceRecommender):
    """Next-item prediction with a sampled softmax over cosine similarities; item order is used, timestamps where `config.time` says so.

    Each history is read behind a learned start token, so an empty one gets a trained score too. Fitting is deterministic for a seed on one
    machine and thread count.
    """

    name = "hstu"
    Config = HSTUConfig
    config: HSTUConfig
    network: HSTUNetwork
    levels: list[float]

    @property
    def uses_time(self) -> Literal["no", "past", "target"]:
        return "no" if self.config.time == "none" else self.config.time

    @property
    def uses_ratings(self) -> bool:
        return self.config.actions

    @property
    def training(self) -> str:
        return super().training + (", rating tokens" if self.config.actions else "")

    def _build(self, embedding: TokenEmbedding) -> HSTUNetwork:
        return HSTUNetwork(self.config, embedding, len(self.levels))

    def _initialize(self, dataset: Dataset) -> None:
        self.levels = rating_levels(dataset) if self.config.actions else []
        super()._initialize(dataset)
        self.network.get_buffer("levels").copy_(torch.tensor(self.levels))

    def _learner(self, dataset: Dataset) -> HSTULearner:
        return HSTULearner(self.network, self.config, SequenceLog.of(dataset), dataset.item_counts)

    def score_candidates(self, histories: Histories, candidates: Ints, micro_batch: int = 256) -> Floats:
        """Probabilities [B, C, tasks] float32 that a user who takes a candidate rates it at least `config.tasks`, by the ranking head.

        candidates: [B, C] dense ids. The history is encoded once and its keys and values are kept; candidates see it and themselves, never
        each other, so the answer for one does not depend on the others, and `micro_batch` of them are computed at a time (M-FALCON,
        section 3.4 of the paper). Raises DataError for a model without rating tokens, and for candidates of another shape or outside the
        catalogue.
        """
        if not self.config.actions:
            raise DataError("score_candidates needs the ranking head; train hstu with actions = true on a log with ratings")
        check_candidates(candidates, len(histories), len(self._catalogue()))
        question = self._question(histories).to(next(self.network.parameters()).device)
        return score_candidates(self.network, question, torch.from_numpy(candidates), micro_batch).cpu().numpy()

    def _meta(self) -> dict[str, Any]:
        return super()._meta() | {"levels": self.levels}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        super()._load_meta(meta)
        self.levels = meta["levels"]


def rating_levels(dataset: Dataset) -> list[float]:
    """The ratings that get a token each, rising; at most 32, else quantiles. Raises DataError for a log without ratings."""
    if dataset.rating is None:
        raise DataError(f"hstu with actions = true needs ratings, and {dataset.name!r} has none; leave actions out")
    levels = np.unique(dataset.rating)
    if len(levels) > _MOST_LEVELS:
        levels = np.unique(np.quantile(dataset.rating, np.linspace(0, 1, _MOST_LEVELS)))
    return [float(level) for level in levels]


class HSTULearner(SequenceLearner):
    """Adds stochastic length and the loss of the ranking head."""

    config: HSTUConfig
    network: HSTUNetwork

    def windows(self, rng: np.random.Generator) -> Jagged:
        windows = super().windows(rng)
        config = self.config
        return windows if config.stochastic_length == 2 else thinned(windows, config.max_length, config.stochastic_length, rng)

    def forward(self, batch: SequenceBatch) -> Tensor:
        if not self.config.actions:
            return super().forward(batch)
        assert batch.targets is not None
        assert batch.next_ratings is not None
        assert self.network.tasks is not None
        retrieval, ranking = self.network.interleaved(batch)
        found = self.loss(retrieval, batch.targets, batch.real)
        rated = batch.real & ~batch.next_ratings.isnan()
        liked = batch.next_ratings[:, None] >= self.network.get_buffer("bounds")
        entropy = functional.binary_cross_entropy_with_logits(self.network.tasks(ranking).float(), liked.float(), reduction="none").mean(1)
        return found + self.config.ranking_weight * torch.where(rated, entropy, 0.0).sum()


def thinned(windows: Jagged, longest: int, alpha: float, rng: np.random.Generator) -> Jagged:
    """Stochastic length: rows of n > m = longest ** (alpha / 2) values keep m of them, drawn evenly and in order.

    They do so with probability 1 - longest ** alpha / n ** 2, and stay whole otherwise (equation 4 of the paper).
    """
    keep, lengths = int(longest ** (alpha / 2)), windows.lengths
    long = (lengths > keep) & (rng.random(len(lengths)) < 1 - longest**alpha / np.maximum(lengths, 1) ** 2)
    key = rng.random(len(windows.values))
    order = np.lexsort((key, windows.row_ids))
    rank: NDArray[np.int64] = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(windows.offsets[:-1], lengths)
    chosen = ~np.repeat(long, lengths) | (rank < keep)
    offsets = np.concatenate([[0], np.cumsum(np.where(long, keep, lengths))]).astype(np.int64)
    return Jagged(windows.values[chosen], offsets)
