"""What every recommender is, from Random to an LLM ranker: fit, score, recommend, save, load."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.numpy import load_file, save_file

from recsys_core.data.dataset import Dataset, Floats, Ints, Jagged, Vocabulary
from recsys_core.data.histories import Histories
from recsys_core.errors import DataError
from recsys_core.progress import Progress, silent

__all__ = ["Histories", "ModelConfig", "Progress", "Recommendations", "Recommender"]


class ModelConfig(BaseModel):
    """Settings of one recommender; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True, eq=False)
class Recommendations:
    """items: [B, k] int64 dense ids, best first, -1 where the catalogue ran out; scores: [B, k] float32, -inf there."""

    items: Ints
    scores: Floats


class Recommender(ABC):
    """Base of all recommenders. A subclass sets `name`, `training` and `Config`, and gives `_fit`, `_score`, `_state`, `_load_state`."""

    name: ClassVar[str]
    training: ClassVar[str] = "not stated"
    """Loss, negatives, and whether order and timestamps are used, in a few words: tables print it."""
    Config: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, config: ModelConfig | None = None) -> None:
        self.config = config or self.Config()
        self.items: Vocabulary | None = None
        self.n_users = 0

    def fit(self, dataset: Dataset, progress: Progress | None = None) -> Self:
        """Trains on a log; random parts are drawn from `config.seed` alone."""
        if len(dataset) == 0:
            raise DataError(f"dataset {dataset.name!r} has no interactions; {self.name} cannot be trained on it")
        self.items, self.n_users = dataset.items, len(dataset.users)
        self._fit(dataset, progress or silent)
        return self

    def score(self, histories: Histories, candidates: Ints | None = None) -> Floats:
        """Scores, higher is better: [B, I] float32 over the catalogue, or [B, C] of candidates [B, C] (dense ids)."""
        catalogue = self._catalogue()
        values = histories.items.values
        if len(values) and not (values.min() >= 0 and values.max() < len(catalogue)):
            raise DataError(f"histories hold item ids {values.min()} .. {values.max()}; {self.name} knows 0 .. {len(catalogue) - 1}")
        scores = self._score(histories).astype(np.float32, copy=False)
        if scores.shape != (len(histories), len(catalogue)):
            raise DataError(f"{self.name} scored shape {scores.shape}, expected {(len(histories), len(catalogue))}")
        if np.isnan(scores).any():
            broken = int(np.isnan(scores).any(1).sum())
            raise DataError(f"{self.name} gave NaN for {broken} of {len(scores)} users; lower its learning rate or check its input")
        return scores if candidates is None else np.take_along_axis(scores, candidates, axis=1)

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        """The k best items a user; `exclude` (jagged dense ids, default: the histories themselves) never appear.

        Equal scores are ordered by dense id, so the list is a function of its input.
        """
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 item")
        scores = self.score(histories).copy()
        banned = histories.items if exclude is None else exclude
        scores[banned.row_ids, banned.values] = -np.inf
        width = min(k, scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :width].astype(np.int64)
        top = np.take_along_axis(scores, best, axis=1)
        best[np.isneginf(top)] = -1
        pad = ((0, 0), (0, k - width))
        return Recommendations(np.pad(best, pad, constant_values=-1), np.pad(top, pad, constant_values=-np.inf))

    def save(self, folder: Path) -> None:
        """Writes `model.json` (name, config, vocabulary) and `weights.safetensors` into a folder."""
        catalogue = self._catalogue()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in self._state().items()}, folder / "weights.safetensors")
        meta = {"name": self.name, "config": self.config.model_dump(), "items": list(catalogue.ids), "n_users": self.n_users}
        (folder / "model.json").write_text(json.dumps(meta))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote; raises DataError when the folder holds another model."""
        if not (folder / "model.json").is_file():
            raise DataError(f"{folder} holds no saved model (no model.json)")
        meta = json.loads((folder / "model.json").read_text())
        if meta["name"] != cls.name:
            raise DataError(f"{folder} holds a {meta['name']!r} model, not {cls.name!r}; load it with recsys_core.load(folder)")
        model = cls(cls.Config(**meta["config"]))
        model.items, model.n_users = Vocabulary(meta["items"]), meta["n_users"]
        model._load_state(load_file(folder / "weights.safetensors"))
        return model

    def _catalogue(self) -> Vocabulary:
        if self.items is None:
            raise DataError(f"{self.name} has not been trained; call fit(dataset) or load(folder) first")
        return self.items

    @abstractmethod
    def _fit(self, dataset: Dataset, progress: Progress) -> None: ...

    @abstractmethod
    def _score(self, histories: Histories) -> NDArray: ...

    @abstractmethod
    def _state(self) -> dict[str, NDArray]: ...

    @abstractmethod
    def _load_state(self, state: dict[str, NDArray]) -> None: ...
