"""The training loop: AdamW, warm-up, clipping, autocast, early stopping, exact resume, several processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_core.errors import DataError
from recsys_core.progress import Progress, silent
from recsys_core.recommender import FitOptions
from recsys_core.training.checkpoint import Checkpoint, Position, optimizer_tensors, restore_optimizer, strip
from recsys_core.training.config import TrainingConfig
from recsys_core.training.distributed import World
from recsys_core.training.graph import CapturedStep
from recsys_core.training.journal import EpochReport, Journal
from recsys_core.training.learner import Batch, Learner


class Trainer:
    """Trains one learner on one device, or on one of each process that torchrun started.

    validate: asked, where given, for NDCG@10 while the learner is in evaluation mode. identity: what is trained, beside the configuration
    (see `recsys_core.training.identity`); a checkpoint in the options' folder is taken up only where both are the same.
    """

    def __init__(
        self,
        learner: Learner,
        config: TrainingConfig,
        options: FitOptions,
        progress: Progress,
        validate: Callable[[], float] | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if options.checkpoint_every < 1:
            raise DataError(f"checkpoint_every is {options.checkpoint_every}; it must be at least 1 step")
        self.config, self.options, self.validate = config, options, validate
        self.world = World.join(options.device)
        self.device = self.world.device
        self.progress = progress if self.world.rank == 0 else silent
        self.learner = learner.to(self.device)
        self.parameters = [p for p in learner.parameters() if p.requires_grad]
        on_gpu = self.device.type == "cuda"
        # A captured step replays on fixed addresses, so there the learning rate is a tensor.
        rate = torch.tensor(config.learning_rate, device=self.device) if on_gpu else config.learning_rate
        self.optimizer = torch.optim.AdamW(
            self.parameters, rate, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True, capturable=on_gpu
        )
        self.loss: Callable[[Any], Tensor] = learner.translated(self.device) if config.compile else learner
        self.captured: CapturedStep | None = None
        self.position = Position()
        self.best: dict[str, Tensor] = {}
        # Sums over the epoch under way: of losses of this process, and of gradient norms.
        self.total, self.norms = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.journal: Journal | None = None
        self.checkpoint: Checkpoint | None = None
        self.folder = None if options.folder is None else Path(options.folder)
        if self.folder is not None:
            self.checkpoint = Checkpoint(self.folder, {**(identity or {}), **config.model_dump(mode="json")})

    def run(self) -> list[EpochReport]:
        """Trains to the end, or until validation stops improving; leaves the learner in evaluation mode with the weights to keep.

        Raises DataError where the loss is no longer finite or the folder's checkpoint is not this training's, RunStoppedError where a
        checkpoint cannot be stored. After an interruption of any kind a fit with the same folder goes on from the last checkpoint.
        """
        self._restore()
        position = self.position
        if self.folder is not None and self.world.rank == 0 and not position.finished:
            self.journal = Journal(self.folder, position.reports)
        try:
            while not position.finished:
                self._epoch()
                # The loss first: it names a training that diverged better than scores that are NaN.
                loss = self._loss()
                report = self._report(loss, self._validate())
                position.reports.append(report)
                position.epoch, position.batch, position.seconds, position.weight = position.epoch + 1, 0, 0.0, 0.0
                position.finished = position.epoch == self.config.epochs or self._is_stale()
                if position.finished and self.best:
                    self.learner.load_state_dict(self.best)
                # Before the checkpoint: a line that no checkpoint knows is written anew, one that was never written would be missing.
                if self.journal is not None:
                    self.journal.add(report)
                self._save()
                ndcg = "" if report.ndcg is None else f", NDCG@10 {report.ndcg:.4f}"
                self._tell(position.epoch, f"loss {report.loss:.3f}{ndcg}")
        finally:
            if self.journal is not None:
                self.journal.close()
        self.learner.eval()
        return position.reports

    def _epoch(self) -> None:
        """What is left of the epoch under way."""
        position, learner = self.position, self.learner
        learner.train()
        # Such that it shows the time of training: with what came before a resume, without checkpoints.
        clock = self._now() - position.seconds
        shown = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        batches = learner.epoch(np.random.default_rng([self.config.seed, position.epoch]), self.device)
        if not position.batch:
            self.total.zero_()
            self.norms.zero_()
        if self.captured is None and self.config.capture and self.device.type == "cuda" and self.world.size == 1:
            static = learner.static(batches)
            self.captured = None if static is None else CapturedStep(self._compute, static)
        for batch in batches[position.batch :]:
            self._set_rate((position.epoch + (position.batch + 0.5) / len(batches)) / self.config.epochs)
            count = learner.weight(batch)
            self.total += self._step(self.world.part(learner, batch), count)
            position.weight += count
            position.batch += 1
            position.step += 1
            if position.step % self.options.checkpoint_every == 0 and position.batch < len(batches):
                position.seconds = self._now() - clock
                self._save()
                clock = self._now() - position.seconds
            if time.perf_counter() - shown > 1:
                shown = time.perf_counter()
                self._tell(position.epoch + position.batch / len(batches), f"step {position.batch}/{len(batches)}")
        position.seconds = self._now() - clock

    def _tell(self, epochs: float, text: str) -> None:
        self.progress(epochs / self.config.epochs, f"epoch {math.ceil(epochs)}/{self.config.epochs}, {text}")

    def _now(self) -> float:
        """Seconds on a clock, when the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _step(self, batch: Batch, weight: float) -> Tensor:
        """One step, replayed where it was recorded."""
        return self._compute(batch, weight) if self.captured is None else self.captured(batch, weight)

    def _compute(self, batch: Batch, weight: float | Tensor) -> Tensor:
        """One step of the optimizer; returns the batch's summed loss, on the device.

        In a world of several, `batch` is this process's part, which may be empty, and `weight` that of the whole.
        """
        bf16 = self.config.precision == "bfloat16"
        loss = torch.zeros((), device=self.device)
        self.optimizer.zero_grad()
        if self.learner.weight(batch):
            with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
                loss = self.loss(batch)
            (loss / weight).backward()  # type: ignore[no-untyped-call]
        self.world.sum_gradients(self.parameters)
        if self.config.clip_norm is not None:
            self.norms += torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        return loss.detach()

    def _set_rate(self, share: float) -> None:
        """The learning rate after a share of training."""
        rate = self.config.rate(share)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _loss(self) -> float:
        """Mean loss of the epoch just trained; raises DataError where it is not finite."""
        loss = float(self.world.total(self.total)) / self.position.weight
        if not math.isfinite(loss):
            where = f"training diverged in epoch {self.position.epoch + 1} (loss {loss})"
            raise DataError(f"{where}; lower learning_rate {self.config.learning_rate:g}")
        return loss

    def _report(self, loss: float, ndcg: float | None) -> EpochReport:
        """The epoch just trained."""
        position, rate = self.position, float(self.optimizer.param_groups[0]["lr"])
        norm = None if self.config.clip_norm is None else float(self.norms) / position.batch
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        speed = position.weight / position.seconds
        return EpochReport(position.epoch + 1, position.step, loss, rate, position.seconds, speed, ndcg, norm, memory)

    def _validate(self) -> float | None:
        """NDCG@10 after the epoch just trained, where it is measured; process 0 ranks, and all keep the best weights."""
        position, config = self.position, self.config
        epoch = position.epoch
        if self.validate is None or ((epoch + 1) % config.validate_every and epoch + 1 < config.epochs):
            return None
        self.learner.eval()
        ndcg = self.world.from_main(self.validate() if self.world.rank == 0 else 0.0)
        if position.best_ndcg is None or ndcg > position.best_ndcg:
            position.best_ndcg, position.best_epoch = ndcg, epoch
            if config.patience:
                self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.learner.state_dict().items()}
        return ndcg

    def _is_stale(self) -> bool:
        position, config = self.position, self.config
        waited = (position.epoch - 1 - position.best_epoch) // config.validate_every
        return config.patience > 0 and position.best_ndcg is not None and waited >= config.patience

    def _save(self) -> None:
        """Stores the training; of a finished one, its weights alone."""
        if self.checkpoint is None:
            return
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        if not self.position.finished:
            tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(self.optimizer).items()}
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
            tensors["norms"] = self.norms
            # What differs between processes, by rank.
            tensors |= {"rank.total": self.world.gather(self.total), "rank.random": self.world.gather(torch.get_rng_state())}
            if self.device.type == "cuda":
                tensors["rank.cuda"] = self.world.gather(torch.cuda.get_rng_state(self.device))
        if self.world.rank == 0:
            self.checkpoint.write(self.position, tensors)
        self.world.wait()

    def _restore(self) -> None:
        """Takes up the folder's checkpoint, if there is one; else gives each process its own random stream."""
        found = None if self.checkpoint is None else self.checkpoint.read()
        steps = self.world.gather(torch.tensor(-1 if found is None else found[0].step))
        if (steps != steps[0]).any():
            raise DataError(f"processes found checkpoints of steps {steps.tolist()} (-1: none); give them one folder that all of them see")
        if self.world.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([self.config.seed, self.world.rank]).generate_state(1)[0]))
        if found is None:
            return
        self.position, tensors = found
        self.learner.load_state_dict(strip(tensors, "learner."))
        if self.position.finished:
            return
        restore_optimizer(self.optimizer, strip(tensors, "optimizer."))
        self.best = strip(tensors, "best.")
        self.norms.copy_(tensors["norms"])
        if len(tensors["rank.total"]) != self.world.size:
            # Another number of processes: the sum is one process's, and streams begin anew.
            self.total.copy_(tensors["rank.total"].sum() if self.world.rank == 0 else torch.zeros(()))
            return
        self.total.copy_(tensors["rank.total"][self.world.rank])
        torch.set_rng_state(tensors["rank.random"][self.world.rank].clone())
        if self.device.type == "cuda" and "rank.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rank.cuda"][self.world.rank].clone(), self.device)
