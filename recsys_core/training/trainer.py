"""The training loop: AdamW, warm-up, clipping, autocast, early stopping, checkpoints, data parallelism, captured steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_core.errors import DataError
from recsys_core.progress import Progress
from recsys_core.recommender import FitOptions
from recsys_core.training.config import TrainingConfig
from recsys_core.training.learner import Batch, Learner


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; raises DataError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DataError(f"device {name!r} is unknown; use cpu, cuda, cuda:N or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"device {name!r} was asked for and torch finds no GPU; use cpu or auto")
    return device


@dataclass(frozen=True)
class EpochReport:
    """One epoch: its number from 1, mean loss, NDCG@10 on the validation users (None where not measured), seconds of training alone."""

    epoch: int
    loss: float
    ndcg: float | None
    seconds: float


class Trainer:
    """Trains one learner. `validate`, where given, is asked for NDCG@10 while the learner is in evaluation mode."""

    def __init__(
        self, learner: Learner, config: TrainingConfig, options: FitOptions, progress: Progress, validate: Callable[[], float] | None = None
    ) -> None:
        self.config, self.progress, self.validate = config, progress, validate
        self.device = pick_device(options.device)
        self.learner = learner.to(self.device)
        on_gpu = self.device.type == "cuda"
        # A captured step replays on fixed addresses, so there the learning rate is a tensor.
        rate = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        self.optimizer = torch.optim.AdamW(
            [p for p in learner.parameters() if p.requires_grad], rate, (0.9, config.beta2),
            weight_decay=config.weight_decay, fused=True, capturable=on_gpu,
        )  # fmt: skip
        self.loss: Callable[[Any], Tensor] = torch.compile(learner) if config.compile else learner
        self.reports: list[EpochReport] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None

    def run(self) -> list[EpochReport]:
        """Trains to the end, or until validation stops improving; leaves the learner in evaluation mode with the weights to keep."""
        config = self.config
        for epoch in range(config.epochs):
            loss, seconds = self._epoch(epoch)
            ndcg = None
            last = epoch + 1 == config.epochs
            if self.validate is not None and ((epoch + 1) % config.validate_every == 0 or last):
                self.learner.eval()
                ndcg = self.validate()
                if self.best is None or ndcg > self.best[0]:
                    self.best = ndcg, epoch, {k: v.detach().to("cpu", copy=True) for k, v in self.learner.state_dict().items()}
            self.reports.append(EpochReport(epoch + 1, loss, ndcg, seconds))
            shown = f"epoch {epoch + 1}/{config.epochs}, loss {loss:.3f}" + ("" if ndcg is None else f", NDCG@10 {ndcg:.4f}")
            self.progress((epoch + 1) / config.epochs, shown)
            if self._is_stale(epoch):
                break
        if config.patience and self.best is not None:
            self.learner.load_state_dict(self.best[2])
        self.learner.eval()
        return self.reports

    def _is_stale(self, epoch: int) -> bool:
        waited = 0 if self.best is None else (epoch - self.best[1]) // self.config.validate_every
        return self.config.patience > 0 and waited >= self.config.patience

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """Mean loss and seconds of one pass."""
        start = time.perf_counter()
        self.learner.train()
        rng = np.random.default_rng([self.config.seed, epoch])
        batches = self.learner.epoch(rng, self.device)
        total = torch.zeros((), device=self.device)
        weight = 0.0
        for number, batch in enumerate(batches):
            self._set_rate((epoch + (number + 0.5) / len(batches)) / self.config.epochs)
            count = self.learner.weight(batch)
            total += self._step(batch, count)
            weight += count
        loss = float(total) / weight
        if not math.isfinite(loss):
            raise DataError(f"training diverged in epoch {epoch + 1} (loss {loss}); lower learning_rate {self.config.learning_rate:g}")
        return loss, time.perf_counter() - start

    def _step(self, batch: Batch, weight: float) -> Tensor:
        """One step of the optimizer; returns the batch's summed loss, on the device."""
        bf16 = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            loss: Tensor = self.loss(batch)
        self.optimizer.zero_grad()
        (loss / weight).backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _set_rate(self, share: float) -> None:
        """The learning rate after a share of training: up a line, then along a cosine to 0, or level."""
        config = self.config
        rise = min(share / config.warmup, 1.0) if config.warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) if config.schedule == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            rate = config.learning_rate * rise * fall
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
