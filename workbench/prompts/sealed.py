"""The test split, sealed: every look at it is written down before it is taken, and a report prints what choosing on dev cost."""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from recsys_core.errors import DataError

if TYPE_CHECKING:
    from workbench.prompts.metrics import Measured
    from workbench.prompts.tasks import Row
    from workbench.store.records import Opening


class Journal(Protocol):
    """Where openings of test splits are kept; a `Store` is one."""

    def record_opening(self, opening: Opening) -> None:
        """Keeps an opening before it returns, or raises."""

    def openings(self, test_hash: str = "") -> list[Opening]:
        """All openings, or those of one test split, oldest first."""


class MemoryJournal:
    """A journal that is lost with the process: for tests, and for rows made up on the spot."""

    def __init__(self) -> None:
        self._openings: list[Opening] = []

    def record_opening(self, opening: Opening) -> None:
        """Keeps an opening as long as this object lives."""
        self._openings.append(opening)

    def openings(self, test_hash: str = "") -> list[Opening]:
        """All openings, or those of one test split, oldest first."""
        return [o for o in self._openings if test_hash in ("", o.test_hash)]


class SealedTest:
    """Test rows that anybody may count and only `open` gives out.

    content_hash: SHA-256 over the rows; openings are counted by it, so a changed dev split does not make the same test rows fresh.
    """

    def __init__(self, rows: Sequence[Row], task: str, task_hash: str, content_hash: str) -> None:
        self.content_hash = content_hash
        self._task, self._task_hash = task, task_hash
        self.__rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.__rows)

    def __repr__(self) -> str:
        return f"SealedTest({len(self)} rows of {self._task!r}, sealed; read them with open(reason, journal))"

    def open(self, reason: str, journal: Journal, template: str = "", who: str = "") -> tuple[Row, ...]:
        """The rows, after the journal has kept who reads them, when, why and for which template (its version, empty for none).

        who: a person or program, by default the user of this process. Raises DataError for an empty reason; what the journal raises, such
        as RunStoppedError for a full store, leaves the split sealed.
        """
        from workbench.store.records import Opening

        if not reason.strip():
            raise DataError(f"the test split of {self._task!r} is opened for no reason; say why, the journal keeps it")
        opening = Opening(self._task, self._task_hash, self.content_hash, template, who or _user(), reason, time.time())
        journal.record_opening(opening)
        return self.__rows


@dataclass(frozen=True)
class Shrinkage:
    """How much better a ranking looks on dev, where it was chosen, than on test: `difference = dev - test`, 95% interval `low .. high`."""

    metric: str
    dev: float
    test: float
    difference: float
    low: float
    high: float


def shrinkage(dev: Measured, test: Measured, metric: str, seed: int = 0, resamples: int = 2000) -> Shrinkage:
    """Dev minus test of one ranker, with the percentile bootstrap over the rows of both parts, which are drawn independently."""
    import numpy as np

    from recsys_core.evaluation.compare import bootstrap_means

    rng = np.random.default_rng(seed)
    there, here = dev[metric], test[metric]
    drawn = bootstrap_means(there, rng, resamples) - bootstrap_means(here, rng, resamples)
    low, high = np.quantile(drawn, (0.025, 0.975))
    difference = float(there.mean() - here.mean())
    return Shrinkage(metric, float(there.mean()), float(here.mean()), difference, float(low), float(high))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"
