"""What a training writes about itself: one line of JSON an epoch, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys_core.errors import RunStoppedError
from recsys_core.files import atomic_file

JOURNAL_FILE = "training.jsonl"
EVENTS_FOLDER = "tensorboard"


@dataclass(frozen=True)
class EpochReport:
    """One epoch. Losses, norms and speeds are of the epoch alone.

    epoch: from 1; step: steps since training began; loss: mean over the epoch; learning_rate: of its last step; seconds: of training,
    without validation and checkpoints; samples_per_second: what the loss is divided by (positions, users), a second; ndcg: NDCG@10 of the
    validation users, None where not measured; gradient_norm: mean before clipping, None without clipping; peak_memory: bytes that
    tensors took on the GPU at most, None on the processor.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    seconds: float
    samples_per_second: float
    ndcg: float | None = None
    gradient_norm: float | None = None
    peak_memory: int | None = None


class Journal:
    """`training.jsonl` and, where the package tensorboard is installed, event files in `tensorboard/`.

    It begins with the reports that a checkpoint holds, so epochs that are trained again after an interruption appear once.
    """

    def __init__(self, folder: Path, reports: Sequence[EpochReport]) -> None:
        self.path = folder / JOURNAL_FILE
        self.events: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as out:
                out.write("".join(map(_line, reports)).encode())
            if importlib.util.find_spec("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                # Readers drop what an interrupted process wrote from this step on.
                self.events = SummaryWriter(folder / EVENTS_FOLDER, purge_step=reports[-1].step + 1 if reports else 0)
        except OSError as error:
            raise self._unwritable(error) from None

    def add(self, report: EpochReport) -> None:
        """Appends an epoch; it is on disk when this returns. Raises RunStoppedError where the disk does not take it."""
        try:
            with self.path.open("a") as file:
                file.write(_line(report))
                file.flush()
                os.fsync(file.fileno())
            if self.events is not None:
                for name, value in asdict(report).items():
                    if name not in ("epoch", "step") and value is not None:
                        self.events.add_scalar(f"training/{name}", value, report.step)
                self.events.flush()
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Ends the event file."""
        if self.events is not None:
            # What it could not write, `add` has reported.
            with contextlib.suppress(OSError):
                self.events.close()

    def _unwritable(self, error: OSError) -> RunStoppedError:
        return RunStoppedError(f"the journal {self.path} cannot be written ({error}); make room, then fit again to go on")


def _line(report: EpochReport) -> str:
    return json.dumps(asdict(report)) + "\n"
