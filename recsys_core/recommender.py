"""What every recommender is, from Random to an LLM ranker: fit, score, recommend, save, load."""

from __future__ import annotations

import asyncio
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys_core.data.dataset import Dataset
from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Floats, Ints, Jagged, check_rows
from recsys_core.data.preferences import Preferences
from recsys_core.data.split import Holdout
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, damaged
from recsys_core.files import atomic_file, flush, sha256
from recsys_core.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FitOptions", "Histories", "ModelConfig", "Progress", "Recommendations", "Recommender"]


MODEL_FILE = "model.json"
"""Name, configuration and vocabulary of a saved model; it names the weights beside it by their content."""


class ModelConfig(BaseModel):
    """Settings of one recommender; unknown fields and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True)
class FitOptions:
    """What fitting may use beside the training log; none of it belongs to a model's configuration."""

    validation: Holdout | None = None
    """Users for early stopping by NDCG@10; without them a model trains all its epochs and keeps the last."""
    folder: str | Path | None = None
    """Where checkpoints and training logs go; a fit that finds its own checkpoint there goes on from it."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto` for a GPU where there is one. Models without tensors stay on the processor."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, beside the one after every epoch."""
    preferences: Preferences | None = None
    """Pairs to learn from beside the log, for models that are trained on pairs; others refuse them."""


@dataclass(frozen=True, eq=False)
class Recommendations:
    """items: [B, k] int64 dense ids, best first, -1 where the catalogue ran out; scores: [B, k] float32, -inf there."""

    items: Ints
    scores: Floats


class Recommender(ABC):
    """Base of all recommenders. A subclass sets `name`, `training` and `Config`, and gives `_fit`, `_score`, `_state`, `_load_state`."""

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    learns_preferences: ClassVar[bool] = False
    """Whether `FitOptions.preferences` are of use to the model."""
    keeps_checkpoints: ClassVar[bool] = False
    """Whether `FitOptions.folder` is of use to the model."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        self.config = config or self.Config()
        self.items: Vocabulary | None = None
        self.n_users = 0
        self.trained_on: dict[str, str] = {}
        """Hashes of the log and of its users that the model was trained on: who judges it can tell whether it saw what is held out."""

    @property
    def training(self) -> str:
        """Loss, negatives, and whether order and timestamps are used, in a few words: tables print it."""
        return "not stated"

    def fit(self, dataset: Dataset, progress: Progress | None = None, options: FitOptions | None = None) -> Self:
        """Trains on a log; random parts are drawn from `config.seed` alone."""
        if len(dataset) == 0:
            raise DataError(f"dataset {dataset.name!r} has no interactions; {self.name} cannot be trained on it")
        if options and options.preferences is not None:
            if not self.learns_preferences:
                raise DataError(f"{self.name} is not trained on pairs and would ignore the preferences; take one that is, such as bpr")
            options.preferences.check(len(dataset.users), len(dataset.items))
        self.items, self.n_users = dataset.items, len(dataset.users)
        self.trained_on = {"log": dataset.content_hash, "users": dataset.users.content_hash}
        self._fit(dataset, progress or silent, options or FitOptions())
        return self

    def to(self, device: str) -> Self:
        """Moves a trained model to a device; a model without tensors stays where it is."""
        return self

    def score(self, histories: Histories, candidates: Ints | None = None) -> Floats:
        """Scores, higher is better: [B, I] float32 over the catalogue, or [B, C] of candidates [B, C] (dense ids).

        Raises DataError for what `scores` does, and for candidates of another shape or outside the catalogue.
        """
        scores: Floats = self.scores(histories).cpu().numpy()
        if candidates is not None:
            check_candidates(candidates, *scores.shape)
        return scores if candidates is None else np.take_along_axis(scores, candidates, axis=1)

    def scores(self, histories: Histories) -> Tensor:
        """Scores [B, I] float32 over the catalogue, on the model's device; raises DataError for unknown ids and for NaN."""
        import torch

        catalogue = self._check(histories)
        found = self._score(histories)
        scores = (torch.from_numpy(found) if isinstance(found, np.ndarray) else found).float()
        if scores.shape != (len(histories), len(catalogue)):
            raise DataError(f"{self.name} scored shape {tuple(scores.shape)}, expected {(len(histories), len(catalogue))}")
        # A maximum tells whether there is any NaN, and costs far less than a look at each score.
        if scores.numel() and scores.amax().isnan():
            self._check_numbers(scores.isnan().any(1).cpu().numpy())
        return scores

    def _check_numbers(self, broken: NDArray[np.bool_]) -> None:
        """Raises DataError where users [B] have scores that are NaN."""
        if broken.any():
            raise DataError(f"{self.name} gave NaN for {broken.sum()} of {len(broken)} users; lower its learning rate or check its input")

    def _check(self, histories: Histories) -> Vocabulary:
        """The catalogue; raises DataError for an untrained model and for histories that hold unknown ids."""
        catalogue = self._catalogue()
        values, users = histories.items.values, histories.users
        if len(values) and not (values.min() >= 0 and values.max() < len(catalogue)):
            raise DataError(f"histories hold item ids {values.min()} .. {values.max()}; {self.name} knows 0 .. {len(catalogue) - 1}")
        if len(users) and not (users.min() >= -1 and users.max() < self.n_users):
            wrong = users.max() if users.max() >= self.n_users else users.min()
            raise DataError(f"user id {wrong} is outside training's 0 .. {self.n_users - 1}; give unknown users the id -1")
        return catalogue

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        """The k best items a user; `exclude` (a row of jagged dense ids for each, default: the histories themselves) never appear.

        Equal scores are ordered by dense id, so the list is a function of its input. Raises DataError for what `scores` does, for a k
        below 1, and for rows to exclude that are not one a user or hold ids outside the catalogue.
        """
        check_k(k)
        scores = self.scores(histories).clone()
        banned = histories.items if exclude is None else exclude
        check_rows("exclude", banned, *scores.shape)
        scores[banned.row_ids, banned.values] = float("-inf")
        items, top = (found.cpu().numpy() for found in top_k(scores, min(k, scores.shape[1])))
        items[np.isneginf(top)] = -1
        pad = ((0, 0), (0, k - top.shape[1]))
        return Recommendations(np.pad(items, pad, constant_values=-1), np.pad(top, pad, constant_values=-np.inf))

    async def recommend_async(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        """`recommend` for a caller in an event loop, which goes on meanwhile.

        It runs in a thread, so ask for one batch at a time; a caller that is cancelled is free at once, the thread when its batch is done.
        A model that waits for others' answers overrides this and awaits them.
        """
        return await asyncio.to_thread(self.recommend, histories, k, exclude)

    def save(self, folder: str | Path) -> None:
        """Writes `model.json` (name, config, vocabulary) and the weights that it names into a folder.

        A process that stops meanwhile leaves the model that was there before, or none: `model.json` is replaced last.
        """
        catalogue, folder = self._catalogue(), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        before = weights_file(folder)
        weights = _write_weights(folder, self._state())
        meta = {"name": self.name, "config": self.config.model_dump(), "items": list(catalogue.ids), "n_users": self.n_users}
        meta |= {"trained_on": self.trained_on}
        with atomic_file(folder / MODEL_FILE) as out:
            out.write(json.dumps(meta | {"weights": weights} | self._meta()).encode())
        if before is not None and before != weights_file(folder):
            before.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote; raises DataError when the folder holds another model, or not all of one."""
        folder = Path(folder)
        if not (folder / MODEL_FILE).is_file():
            raise DataError(f"{folder} holds no saved model (no {MODEL_FILE})")
        meta = json.loads((folder / MODEL_FILE).read_text())
        if meta["name"] != cls.name:
            raise DataError(f"{folder} holds a {meta['name']!r} model, not {cls.name!r}; load it with recsys_core.load(folder)")
        try:
            model = cls(cls.Config(**meta["config"]))
            model.items, model.n_users, model.trained_on = Vocabulary(meta["items"]), meta["n_users"], meta["trained_on"]
            model._load_meta(meta)
            model._load_state(load_file(whole_weights(folder, meta["weights"])))
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise damaged(folder, f"{cls.name} model", error) from error
        return model

    def _catalogue(self) -> Vocabulary:
        if self.items is None:
            raise DataError(f"{self.name} has not been trained; call fit(dataset) or load(folder) first")
        return self.items

    def _meta(self) -> dict[str, Any]:
        """What `model.json` holds beside name, config and vocabulary, ready for JSON."""
        return {}

    def _load_meta(self, meta: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `_meta` gave, before `_load_state`."""

    @abstractmethod
    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None: ...

    @abstractmethod
    def _score(self, histories: Histories) -> NDArray | Tensor: ...

    @abstractmethod
    def _state(self) -> dict[str, NDArray]: ...

    @abstractmethod
    def _load_state(self, state: dict[str, NDArray]) -> None: ...


def weights_file(folder: Path) -> Path | None:
    """The weights of the model that a folder holds; None where it holds none."""
    try:
        return folder / _weights_name(str(json.loads((folder / MODEL_FILE).read_text())["weights"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _weights_name(digest: str) -> str:
    """Another content is another file, so that weights never change under a `model.json` that names them."""
    return f"weights-{digest[:16]}.safetensors"


def _write_weights(folder: Path, state: dict[str, NDArray]) -> str:
    """Writes weights under a name of their content and gives their SHA-256."""
    part = folder / f".weights.{os.getpid()}.part"
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, part)
        flush(part)
        digest = sha256(part)
        part.replace(folder / _weights_name(digest))
    finally:
        part.unlink(missing_ok=True)
    return digest


def whole_weights(folder: Path, digest: str) -> Path:
    """The file of the weights with a SHA-256; raises OSError where it is not there, ValueError where it holds others."""
    file = folder / _weights_name(digest)
    if (found := sha256(file)) != digest:
        raise ValueError(f"{file.name} has SHA-256 {found[:12]}, {MODEL_FILE} says {digest[:12]}")
    return file


def check_k(k: int) -> None:
    """Raises DataError for a length of a list that is no whole number from 1."""
    if not isinstance(k, int | np.integer) or k < 1:
        raise DataError(f"k is {k}; ask for at least 1 item, a whole number")


def check_candidates(candidates: Ints, users: int, items: int) -> None:
    """Raises DataError unless candidates are [users, C] dense ids below `items`."""
    if candidates.ndim != 2 or len(candidates) != users:
        raise DataError(f"candidates have shape {candidates.shape}; give one row a history, [{users}, C]")
    if candidates.size and not (candidates.min() >= 0 and candidates.max() < items):
        raise DataError(f"candidates hold item ids {candidates.min()} .. {candidates.max()}; the catalogue has 0 .. {items - 1}")


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of each row of scores [B, I] float32 as ids [B, k] int64 and scores [B, k], best first, ties by id.

    k is at most I, and no score is NaN.
    """
    import torch

    top, ids = scores.topk(k)
    # Where more scores reach the k-th than fit, which of the equal ones topk took is open; 64-bit keys of score and id settle it.
    open_rows = ((scores >= top[:, -1:]).sum(1) > k).nonzero().squeeze(1)
    if len(open_rows):
        # 0.0 and -0.0 are equal but differ in bits; below zero, larger bits are smaller numbers.
        bits = (scores[open_rows] + 0.0).view(torch.int32).long()
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        keys = (ordered << 32) - torch.arange(scores.shape[1], device=scores.device)
        ids[open_rows] = keys.topk(k).indices
    ids = ids.sort(1).values
    order = scores.gather(1, ids).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order.indices), order.values
