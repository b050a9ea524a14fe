"""Trainings that the trainer's tests start in processes of their own, to kill or to run side by side."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_core.data import Dataset, Vocabulary, leave_one_out
from recsys_core.models.sasrec import SASRec, SASRecConfig
from recsys_core.models.tiger import TIGER
from recsys_core.models.tiger import model as tiger
from recsys_core.progress import Progress
from recsys_core.recommender import FitOptions
from recsys_core.semantic import SemanticIds
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.recommender import SequenceLearner
from recsys_core.sequence.windows import WindowLearner

SMALL: dict[str, Any] = {"dim": 8, "blocks": 1, "heads": 1, "max_length": 6, "epochs": 3, "batch_size": 20, "clip_norm": 1.0}
PLAIN: dict[str, Any] = SMALL | {"dropout": 0.0, "learning_rate": 0.01}
"""Without random numbers in a step, so that any number of processes computes the same."""
RANDOM: dict[str, Any] = SMALL | {"dropout": 0.3, "sampling": "uniform", "negatives": 5}


def circle(users: int = 60, n_items: int = 20, length: int = 9) -> Dataset:
    """Each user starts anywhere and takes i, i + 1, ... around a circle."""
    item = (np.random.default_rng(0).integers(0, n_items, users)[:, None] + np.arange(length)) % n_items
    names = Vocabulary(map(str, range(users))), Vocabulary(map(str, range(n_items)))
    return Dataset("circle", *names, np.repeat(np.arange(users), length), item.ravel().astype(np.int64), np.arange(item.size))


def loss_and_gradients(learner: WindowLearner, batch: SequenceBatch) -> list[torch.Tensor]:
    """The loss of a batch and what it gives each parameter that has a part in it."""
    learner.zero_grad()
    loss = learner(batch)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]


class Stopping(SASRec):
    """SASRec that is interrupted, as by Ctrl-C, in one of its steps: in every process in the same."""

    steps_left = 10**9

    def _learner(self, dataset: Dataset) -> SequenceLearner:
        learner = super()._learner(dataset)
        learner.register_forward_pre_hook(self._count)
        return learner

    def _count(self, *_: object) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KeyboardInterrupt


def fit(settings: dict[str, Any], folder: str | Path | None, stop_after: int | None = None, device: str = "cpu", **options: Any) -> SASRec:
    """Trains on the circle; with `stop_after`, KeyboardInterrupt comes after that many steps."""
    split = leave_one_out(circle())
    model = Stopping(SASRecConfig(**settings))
    if stop_after is not None:
        model.steps_left = stop_after
    model.fit(split.train, options=FitOptions(split.valid, folder, device, **options))
    return model


def fit_and_save(settings: dict[str, Any], folder: Path, out: Path) -> None:
    """One training in a process of its own."""
    fit(settings, folder, checkpoint_every=2).save(out)


def together(root: Path, device: str) -> None:
    """What every process of a `torchrun` does; each saves its models in a folder of its rank."""
    own, early = root / os.environ["RANK"], RANDOM | {"patience": 2}
    fit(PLAIN, None, device=device).save(own / "plain")
    fit(PLAIN | {"batch_size": 1, "epochs": 1}, None, device=device).save(own / "single-rows")
    fit(early, root / "straight", device=device).save(own / "straight")
    with contextlib.suppress(KeyboardInterrupt):
        fit(early, root / "resumed", 9, device, checkpoint_every=2)
    fit(early, root / "resumed", device=device).save(own / "resumed")
    for tokenizer in ("kmeans", "rqvae"):
        for part in ("ids", "ids-again"):
            generate(tokenizer, root / f"{tokenizer}-ids", device).save(own / f"{tokenizer}-{part}")


class Noisy(TIGER):
    """TIGER whose item vectors are another's in each process, as if last bits decided."""

    def _semantic_ids(self, dataset: Dataset, progress: Progress, options: FitOptions) -> SemanticIds:
        made, noise = tiger.item_vectors, 0.3 * int(os.environ["RANK"])
        try:
            tiger.item_vectors = lambda *given: made(*given) + noise * torch.randn(len(dataset.items), 1)
            return super()._semantic_ids(dataset, progress, options)
        finally:
            tiger.item_vectors = made


def generate(tokenizer: str, folder: Path, device: str) -> TIGER:
    """A small TIGER, whose ids are kept in the folder."""
    sizes = {"levels": 2, "codes": 4, "dim": 8, "layers": 1, "heads": 1, "head_dim": 8, "inner": 8, "max_length": 4}
    model = Noisy(Noisy.Config(vectors="log", tokenizer=tokenizer, tokenizer_epochs=2, epochs=1, batch_size=50, **sizes))
    model.fit(leave_one_out(circle()).train, options=FitOptions(None, folder, device))
    return model


if __name__ == "__main__":
    together(Path(sys.argv[1]), sys.argv[2])
