"""What one library is asked to measure, and the watch it measures with; standard library only, for any interpreter."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One training and its evaluations.

    log: a folder `ml-100k` with `ml-100k.inter`, a RecBole atomic file in which no user has equal timestamps. A user's last item is the
    test target and the one before it is left out of training too.
    scratch: a folder for whatever a library leaves behind.
    loss: `full` (cross-entropy over the catalogue) or `one` (one uniform negative a target).
    batch: about how many targets a step trains on; a library that batches users gets `batch` divided by the mean targets a user.
    budget: about how many targets are trained in all, so that every library takes as many steps.
    windows: of our library alone, see `ours`.
    """

    log: str
    scratch: str
    loss: str = "full"
    max_length: int = 50
    dim: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.2
    windows: str = "all"
    learning_rate: float = 0.001
    batch: int = 2048
    budget: int = 200_000
    evaluations: int = 5
    seed: int = 0
    threads: int = 2

    @classmethod
    def read(cls) -> Job:
        """The job that the parent gave as the last argument."""
        return cls(**json.loads(sys.argv[-1]))

    def epochs(self, targets: int) -> int:
        """Passes over so many targets that come nearest to the budget, at least 1."""
        return max(1, round(self.budget / targets))

    def text(self) -> str:
        """The argument that `read` understands."""
        return json.dumps(asdict(self))


class Watch:
    """Wall and CPU seconds (all threads of this process) of stretches of work."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def start(self) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self._begun
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def repeat(self, times: int, work: Callable[[], Any]) -> Any:
        """Runs `work` several times and gives its last result."""
        for _ in range(times):
            self.start()
            result = work()
            self.stop()
        return result


def answer(epochs: Watch, evaluations: Watch, targets: int, steps: int, users: int, **more: Any) -> None:
    """Prints the figures as the last line of output. targets, steps: trained in one epoch; users: ranked in one evaluation."""
    figures = {"targets": targets, "steps": steps, "users": users, **more}
    print("\n" + json.dumps({"epochs": seconds(epochs), "evaluations": seconds(evaluations), **figures}))


def seconds(watch: Watch) -> dict[str, list[float]]:
    """The stretches of a watch, for JSON."""
    return {"wall": watch.wall, "cpu": watch.cpu}
