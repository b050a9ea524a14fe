"""Improving a prompt with proof: a search on some dev rows, a paired test on others, and the sealed test rows once, at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.chat import BudgetExceeded
from recsys_core.errors import DataError
from recsys_core.evaluation import Comparison
from workbench.prompts.acceptance import Confirmation, Curse, confirm, winners_curse
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.metrics import DEFAULT_METRICS, Measured, compare, measure
from workbench.prompts.optimizer import Optimizer, Outcome
from workbench.prompts.ranked import Ranked, Ranker, Rates, rates
from workbench.prompts.sealed import Journal, Shrinkage, shrinkage
from workbench.prompts.tasks import RankingTask, Row, divide
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trial, Trials

Watch = Callable[[str, Trial], None]
"""Is told of every trial and of the part its rows are of: `train`, `search`, `fresh` or `test`."""


@dataclass(frozen=True)
class Rules:
    """How a search is judged.

    metric: what is optimized and confirmed; metrics: what is reported beside it; search_share: of the dev rows, to choose by, the others
    stay fresh for the finalists; finalists: most templates that are looked at again; alpha: level of the confirming test over all
    finalists together; seed: of every draw. Raises DataError for values out of bounds.
    """

    metric: str = "MRR"
    metrics: tuple[str, ...] = DEFAULT_METRICS
    search_share: float = 0.5
    finalists: int = 3
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.search_share < 1 or self.finalists < 1 or not 0 < self.alpha < 1:
            raise DataError(
                f"search_share is {self.search_share:g}, finalists {self.finalists}, alpha {self.alpha:g}; "
                "give shares between 0 and 1, and at least 1 finalist"
            )

    @property
    def reported(self) -> tuple[str, ...]:
        """All metrics, the one that is optimized first."""
        return (self.metric, *(name for name in self.metrics if name != self.metric))


@dataclass(frozen=True, eq=False)
class Part:
    """Start and favourite on the same rows. differences: by metric, after minus before; rates: of the replies of both."""

    before: Measured
    after: Measured
    differences: dict[str, Comparison]
    baselines: list[Measured]
    rates: tuple[Rates, Rates]


@dataclass(frozen=True, eq=False)
class Report:
    """What a search found and how sure that is.

    favourite: the finalist with the best mean on the fresh rows, or the start where there was none; confirmed: whether the paired test on
    the fresh rows says that it is better, the only claim made here; claimed: whether the search itself says so; stopped: why it ended
    early, if it did. confirmation, and the favourite's adjusted_p in it, are None without finalists, curse where fewer than two templates
    were measured on all search rows, test where the test part stayed sealed. shrinkage: by name of template and parts, how much better it
    looks on the first than on the second.
    """

    start: Template
    favourite: Template
    confirmed: bool
    claimed: bool
    note: str
    stopped: str
    searched: int
    rejected: int
    fresh: Part
    confirmation: Confirmation | None
    adjusted_p: float | None
    curse: Curse | None
    test: Part | None
    shrinkage: dict[str, Shrinkage] = field(default_factory=dict)

    @property
    def adopted(self) -> Template:
        """What to use: the favourite if it is confirmed, else the start."""
        return self.favourite if self.confirmed else self.start


async def optimize(
    task: RankingTask,
    start: Template,
    optimizer: Optimizer,
    rankers: Callable[[Template], Ranker],
    rules: Rules | None = None,
    *,
    test: tuple[str, Journal] | None = None,
    watch: Watch | None = None,
    after_search: Callable[[], None] | None = None,
) -> Report:
    """Searches, confirms and reports.

    A search that runs out of its budget ends with what it has; finalists are then the best tried. test: why the test rows are opened and
    the journal that keeps it; None leaves them sealed. after_search: called once between search and confirmation, such as to release the
    budget held back for it. Raises what rankers, proposers and the journal raise.
    """
    rules = rules or Rules()
    search_rows, fresh = split_dev(task, rules)
    seen = watch or (lambda part, trial: None)
    kinds = {row.id: "train" for row in task.train} | {row.id: "search" for row in search_rows}
    trials = Trials(start, task.train, search_rows, rankers, rules.metric, lambda trial: seen(kinds[trial.rows[0].id], trial))
    outcome = await _searched(optimizer, trials)
    if after_search:
        after_search()

    async def score(template: Template, rows: Sequence[Row], part: str) -> tuple[Measured, list[Ranked]]:
        ranked = await rankers(template).rank(rows)
        measured = measure(f"{template.name} {template.version}", rows, [one.ranking for one in ranked], rules.reported)
        seen(part, Trial(template, tuple(rows), tuple(ranked), measured))
        return measured, ranked

    finalists = outcome.finalists[: rules.finalists]
    before, *others = [await score(template, fresh, "fresh") for template in (start, *finalists)]
    confirmation = confirm(before[0], [m for m, _ in others], rules.metric, rules.alpha, rules.seed) if finalists else None
    best = _favourite(confirmation, [m for m, _ in others], rules.metric)
    favourite, after = (start, before) if best is None else (finalists[best], others[best])

    known = trials.known(favourite)
    chosen = [row.id for row in search_rows if row.id in known]
    by_search = Measured(favourite.name, tuple(chosen), {rules.metric: np.array([known[row] for row in chosen])})
    tested, shrunk = None, {"favourite, search to fresh": (by_search, after[0])} if favourite is not start and chosen else {}
    if test is not None:
        reason, journal = test
        rows = task.test.open(reason, journal, template=favourite.version)
        there = await score(start, rows, "test")
        here = there if favourite is start else await score(favourite, rows, "test")
        tested = _part(there, here, task.train, rows, rules)
        shrunk |= {"start, fresh to test": (before[0], there[0]), "favourite, fresh to test": (after[0], here[0])}
    return Report(
        start, favourite, confirmation is not None and confirmation.best is not None, outcome.claimed, outcome.note, outcome.stopped,
        len({trial.template.version for trial in trials.tried}), len(trials.rejected), _part(before, after, task.train, fresh, rules),
        confirmation, None if confirmation is None or best is None else confirmation.adjusted[best], _curse(trials, rules), tested,
        {name: shrinkage(*parts, rules.metric, rules.seed) for name, parts in shrunk.items()},
    )  # fmt: skip


def split_dev(task: RankingTask, rules: Rules) -> tuple[list[Row], list[Row]]:
    """Dev rows to search by and fresh ones, drawn by chance, rows of one user on one side. Raises DataError for fewer than 2 dev rows."""
    n = round(len(task.dev) * rules.search_share)
    sizes = (min(max(n, 1), len(task.dev) - 1), len(task.dev) - min(max(n, 1), len(task.dev) - 1))
    search, fresh = divide(task.dev, sizes, rules.seed) if len(task.dev) > 1 else ([], [])
    if not search or not fresh:
        raise DataError(f"task {task.name!r} has {len(task.dev)} dev rows; a search needs some to choose by and some to confirm on")
    return search, fresh


async def _searched(optimizer: Optimizer, trials: Trials) -> Outcome:
    """What the optimizer found; where the budget of the search ended it, the best of those tried on enough search rows.

    Enough is half of what any of them was tried on: a high mean over a few rows is mostly luck.
    """
    try:
        return await optimizer.search(trials)
    except BudgetExceeded as spent:
        tried = {trial.template.version: trial.template for trial in trials.tried if trial.template.version != trials.start.version}
        rows = {row.id for row in trials.search}
        values = {version: [v for row, v in trials.known(t).items() if row in rows] for version, t in tried.items()}
        enough = max(map(len, values.values()), default=0) / 2
        means = {version: sum(known) / len(known) for version, known in values.items() if known and len(known) >= enough}
        best = sorted(means, key=lambda version: -means[version])
        return Outcome(tuple(tried[version] for version in best), False, "the search ended with its budget", str(spent))


def _favourite(confirmation: Confirmation | None, measured: Sequence[Measured], metric: str) -> int | None:
    if confirmation is None:
        return None
    if confirmation.best is not None:
        return confirmation.best
    return max(range(len(measured)), key=lambda n: measured[n].mean(metric))


def _part(
    before: tuple[Measured, list[Ranked]], after: tuple[Measured, list[Ranked]], train: Sequence[Row], rows: Sequence[Row], rules: Rules
) -> Part:
    differences = {name: compare(after[0], before[0], name, rules.seed) for name in rules.reported}
    return Part(before[0], after[0], differences, measure_baselines(train, rows, rules.reported), (rates(before[1]), rates(after[1])))


def _curse(trials: Trials, rules: Rules) -> Curse | None:
    """Of the choice among all templates that were measured on every search row."""
    ids = [row.id for row in trials.search]
    measured = []
    for version, template in {trial.template.version: trial.template for trial in trials.tried}.items():
        known = trials.known(template)
        if all(row in known for row in ids):
            measured.append(Measured(version, tuple(ids), {rules.metric: np.array([known[row] for row in ids])}))
    return winners_curse(measured, rules.metric, rules.seed) if len(measured) > 1 else None
