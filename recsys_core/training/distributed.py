"""The processes that train one model together, as `torchrun` starts them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from recsys_core.errors import DataError
from recsys_core.training.learner import Batch, Learner

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one, of several processes each its own; raises DataError for a device this machine lacks."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise DataError(f"device {name!r} is unknown; use cpu, cuda, cuda:N or auto") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise DataError(f"device {name!r} was asked for and torch finds no GPU; use cpu or auto")
    if name in ("auto", "cuda") and _processes() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if (device.index or 0) >= torch.cuda.device_count():
        raise DataError(f"GPU {device.index} was asked for and this machine has {torch.cuda.device_count()}; start fewer processes on it")
    return device


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return _processes() == 1 or os.environ.get("RANK", "0") == "0"


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class World:
    """This process among those that train together: rank of size, and its device. Every method is called by all of them, or by none."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> World:
        """The world that torchrun's environment variables describe, or a world of one; raises DataError where some of them are missing."""
        picked = pick_device(device)
        if _processes() == 1:
            return cls(0, 1, picked)
        if not distributed.is_initialized():
            if missing := [name for name in _VARIABLES if name not in os.environ]:
                raise DataError(f"WORLD_SIZE is {_processes()} and {', '.join(missing)} not set; start the processes with torchrun")
            if picked.type == "cuda":
                torch.cuda.set_device(picked)
                distributed.init_process_group("nccl", device_id=picked)
            else:
                distributed.init_process_group("gloo")
            # Kept for later fits: a group that was destroyed cannot be joined a second time through the same store.
            atexit.register(distributed.destroy_process_group)
        return cls(distributed.get_rank(), distributed.get_world_size(), picked)

    def part(self, learner: Learner[Batch], batch: Batch) -> Batch:
        """What this process computes of a batch."""
        return batch if self.size == 1 else learner.shard(batch, self.rank, self.size)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replaces each gradient by the sum over the processes; one that computed none, having no rows, adds zeros.

        One exchange after the backward pass: it asks nothing of a model (parameters may go unused, parts may be empty) and can be captured.
        """
        if self.size == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        distributed.all_reduce(flat)
        parts = flat.split([p.numel() for p in parameters])  # type: ignore[no-untyped-call]
        for parameter, summed in zip(parameters, parts, strict=True):
            parameter.grad = summed.view_as(parameter)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """A tensor of each process, as [size, ...] on the processor; shapes must be equal."""
        if self.size == 1:
            return value[None].cpu()
        own = value.to(self.device)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        distributed.all_gather(parts, own)
        return torch.stack(parts).cpu()

    def from_main(self, value: float) -> float:
        """What process 0 gave."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return float(told)

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            distributed.barrier()
