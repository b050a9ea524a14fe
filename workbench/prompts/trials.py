"""What an optimizer may do with a task: try templates on train rows and on the dev rows it searches by. Other rows are out of its reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_core.errors import DataError
from workbench.prompts.metrics import Measured, measure, parse_metric
from workbench.prompts.ranked import Ranked, Ranker
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template, same_features


@dataclass(frozen=True, eq=False)
class Trial:
    """One template on some rows: the rankings and replies, and the value of the metric for each row, in the order of rows."""

    template: Template
    rows: tuple[Row, ...]
    ranked: tuple[Ranked, ...]
    measured: Measured

    @property
    def values(self) -> NDArray[np.float64]:
        """Of the metric that is optimized [R]."""
        return next(iter(self.measured.values.values()))


@dataclass(frozen=True)
class Rejected:
    """A proposal that was not taken: its text, or a template's version, and why."""

    what: str
    why: str


class Trials:
    """Rows to learn from and to search by, and the one way to measure a template on them.

    train: rows whose answers a proposer may see; search: dev rows to choose by, in random order, so that any first n are a fair sample.
    rankers: gives the ranker of a template; metric: what is optimized, as `metrics.measure` names it.
    on_trial: is told of every trial once it is done, for progress and for keeping.
    tried, rejected: everything so far, in order. A row that was ranked by a template is not ranked by it again for the same `repeat`.
    Raises DataError for no search rows and UnknownNameError for an unknown metric.
    """

    def __init__(
        self,
        start: Template,
        train: Sequence[Row],
        search: Sequence[Row],
        rankers: Callable[[Template], Ranker],
        metric: str = "MRR",
        on_trial: Callable[[Trial], None] | None = None,
    ) -> None:
        parse_metric(metric)
        if not search:
            raise DataError("there are no rows to search by; give the task more dev rows")
        self.start, self.train, self.search, self.metric = start, tuple(train), tuple(search), metric
        self.tried: list[Trial] = []
        self.rejected: list[Rejected] = []
        self._rankers, self._on_trial = rankers, on_trial
        self._known: dict[tuple[str, str, int], tuple[Ranked, float]] = {}

    async def measure(self, template: Template, rows: Sequence[Row], repeat: int = 0) -> Trial:
        """Ranks the rows and measures each. Raises DataError for features other than the first template's, and what a ranker raises."""
        same_features(self.start, template)
        version = template.version
        new = [row for row in rows if (version, row.id, repeat) not in self._known]
        if new:
            ranked = await self._rankers(template).rank(new, repeat)
            values = measure(template.name, new, [one.ranking for one in ranked], [self.metric])[self.metric]
            for row, one, value in zip(new, ranked, values, strict=True):
                self._known[version, row.id, repeat] = one, float(value)
        known = [self._known[version, row.id, repeat] for row in rows]
        measured = Measured(template.name, tuple(row.id for row in rows), {self.metric: np.array([value for _, value in known])})
        trial = Trial(template, tuple(rows), tuple(one for one, _ in known), measured)
        self.tried.append(trial)
        if self._on_trial:
            self._on_trial(trial)
        return trial

    def known(self, template: Template) -> dict[str, float]:
        """What is known of a template: by row id, the mean of the metric over the repetitions that were measured."""
        found: dict[str, list[float]] = {}
        wanted = template.version
        for (version, row, _), (_, value) in self._known.items():
            if version == wanted:
                found.setdefault(row, []).append(value)
        return {row: float(np.mean(values)) for row, values in found.items()}

    def reject(self, what: str, why: str) -> None:
        """Writes down a proposal that was not taken, so that a proposer can be told."""
        self.rejected.append(Rejected(what, why))
