"""A training on disk: one safetensors file, replaced in one piece, from which it goes on exactly."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_core.data.dataset import Dataset
from recsys_core.data.split import Holdout
from recsys_core.errors import DataError, RunStoppedError
from recsys_core.files import flush
from recsys_core.training.journal import EpochReport

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass
class Position:
    """How far a training is.

    epoch: epochs done; batch: batches done of the next one, whose weights sum to `weight` and which took `seconds`; step: steps in all;
    best_ndcg, best_epoch: the best validation so far and its epoch, from 0; finished: nothing is left to do.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    weight: float = 0.0
    best_ndcg: float | None = None
    best_epoch: int = 0
    finished: bool = False
    reports: list[EpochReport] = field(default_factory=list)


def identity(model: str, dataset: Dataset, validation: Holdout | None) -> dict[str, str]:
    """What a training is of, beside its configuration: a model's name and hashes of its data."""
    digest = hashlib.sha256()
    if validation is not None:
        for part in (validation.histories.items, validation.targets):
            digest.update(part.values.tobytes() + part.offsets.tobytes())
    return {"model": model, "dataset": dataset.content_hash, "validation": "none" if validation is None else digest.hexdigest()}


class Checkpoint:
    """The checkpoint file of a folder, of the training that `identity` (any JSON) describes."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / CHECKPOINT_FILE
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    def write(self, position: Position, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the file; a process killed meanwhile leaves the old one. Raises RunStoppedError where the disk does not take it."""
        partial = self.path.with_name(CHECKPOINT_FILE + ".partial")
        # Copies: tied weights share memory, which the format forbids.
        stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        text = json.dumps({"identity": self.identity, "position": asdict(position)})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(stored, partial, {"training": text, "crc32": str(_crc32(text, stored))})
            flush(partial)
            partial.replace(self.path)
            flush(self.path.parent)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            kept = "the checkpoint before it is kept" if self.path.exists() else "there is none yet"
            what = f"step {position.step} could not be stored in {self.path.parent} ({error})"
            raise RunStoppedError(f"{what}; {kept}; make room, then fit again to go on") from None

    def read(self) -> tuple[Position, dict[str, Tensor]] | None:
        """What `write` stored, or None where there is no file; raises DataError for a damaged file and for another training's."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise self._damaged(str(error)) from None
        text = meta.get("training", "")
        if meta.get("crc32") != str(_crc32(text, tensors)):
            raise self._damaged("its checksum is wrong")
        held = json.loads(text)
        self._check(held["identity"])
        position = Position(**held["position"])
        position.reports = [EpochReport(**report) for report in held["position"]["reports"]]
        return position, tensors

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path} is no whole checkpoint ({reason}); delete it to train from the start, or give another folder")

    def _check(self, held: dict[str, Any]) -> None:
        names = [name for name in held.keys() | self.identity.keys() if held.get(name) != self.identity.get(name)]
        if names:
            other = ", ".join(f"{name} {_short(held.get(name))}, here {_short(self.identity.get(name))}" for name in sorted(names))
            raise DataError(f"{self.path} belongs to another training ({other}); give another folder, or delete the file")


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counters of every parameter, as `NUMBER.NAME`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": tensor for number, held in state.items() for name, tensor in held.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes back what `optimizer_tensors` gave; learning rates and other settings stay the optimizer's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _crc32(text: str, tensors: Mapping[str, Tensor]) -> int:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 24 else text[:12] + "..."
