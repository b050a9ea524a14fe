"""Searching through a template's components: how long the history is, how items are listed, which words and which worked examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agents.chat import BudgetExceeded
from agents.seeding import stream
from recsys_core.errors import DataError
from workbench.prompts.components.additive import Additive
from workbench.prompts.components.space import Choice, Space
from workbench.prompts.optimizer import Outcome
from workbench.prompts.racing import race
from workbench.prompts.tasks import Row
from workbench.prompts.trials import Trials

_DRAWS = 100
"""Draws in a row that give nothing new after which a search has settled."""


class Components:
    """Needs no proposer. Tries combinations of options (see `Space`) on a few rows each, drawn by Thompson sampling from an additive model.

    Single options of a prompt are mostly worth less than a race on a hundred rows can prove, and races one component at a time would spend
    all rows on a few of them. Here each trial speaks of all components at once, and the search moves on to what looks good (Scott 2010;
    an additive model of combinations as in Hill et al. 2017, KDD). The best then race against the start on rows held back until then; the
    race alone decides `claimed`. Finalists come in the order of what the model expects of them, after the race.

    evaluations: most rankings of a row, the race's included; block: rows a trial; held: share of the search rows for the race; finalists:
    most that race and are returned. Raises DataError for settings out of their bounds.
    """

    name = "components"

    def __init__(self, evaluations: int = 400, block: int = 5, held: float = 0.33, finalists: int = 3, seed: int = 0) -> None:
        if evaluations < 1 or block < 1 or not 0 <= held < 1 or finalists < 1:
            raise DataError(
                f"evaluations is {evaluations}, block {block}, held {held:g} and finalists {finalists}; "
                "give at least 1 of each, and a share of rows from 0 up to but not including 1"
            )
        self.evaluations, self.block, self.held, self.finalists, self.seed = evaluations, block, held, finalists, seed

    async def search(self, trials: Trials) -> Outcome:
        """See Optimizer. A budget that ends does not raise: the finalists are then what the model expects most of."""
        space = Space(trials.start, trials.search, trials.train, self.seed, self.name)
        if not space.components:
            return Outcome((), False, "no component can be written otherwise")
        split = max(round(len(trials.search) * (1 - self.held)), 1)
        rows, kept = trials.search[:split], trials.search[split:]
        model = Additive([len(component.options) for component in space.components])
        tried: dict[Choice, set[str]] = {}
        racing: list[Choice] = []
        winner, stopped = trials.start, ""
        try:
            await self._explore(trials, space, model, rows, tried)
            racing = self._best(model, space, [*tried, model.best()])
            winner = (await race(trials, trials.start, [space.template(choice) for choice in racing], rows=kept)).winner
        except BudgetExceeded as spent:
            stopped = str(spent)
            racing = racing or self._best(model, space, [*tried, model.best()])

        for choice in (space.unchanged, *racing):
            known = trials.known(space.template(choice))
            model.add(choice, [(row.id, known[row.id]) for row in kept if row.id in known])
        found = [space.template(choice) for choice in self._best(model, space, racing)]
        claimed = winner.version != trials.start.version
        if claimed:
            found = [winner, *(template for template in found if template.version != winner.version)]
        ranked = sum(map(len, tried.values()))
        note = f"{ranked} rankings of {len(rows)} rows by {len(tried)} templates, then a race on {len(kept)} others"
        return Outcome(tuple(found), claimed, note, stopped)

    async def _explore(self, trials: Trials, space: Space, model: Additive, rows: Sequence[Row], tried: dict[Choice, set[str]]) -> None:
        """Trials until all evaluations but the race's are spent or nothing new is drawn. tried: is told of choices and rows measured."""
        evaluations = self.evaluations - (1 + self.finalists) * (len(trials.search) - len(rows))
        rng = stream(self.seed, self.name)
        used: Counter[str] = Counter()
        choice, stale = space.unchanged, 0
        while used.total() < evaluations and stale < _DRAWS:
            new = [row for row in rows if row.id not in tried.get(choice, ())]
            part = sorted(new, key=lambda row: used[row.id])[: min(self.block, evaluations - used.total())]
            stale = 0 if part else stale + 1
            if part:
                trial = await trials.measure(space.template(choice), part)
                model.add(choice, [(row.id, float(value)) for row, value in zip(part, trial.values, strict=True)])
                tried.setdefault(choice, set()).update(row.id for row in part)
                used.update(row.id for row in part)
            choice = model.draw(rng)

    def _best(self, model: Additive, space: Space, choices: Sequence[Choice]) -> list[Choice]:
        """The best of the choices that are expected to be better than the start."""
        start = space.unchanged
        better = {choice for choice in choices if choice != start and model.value(choice) > model.value(start)}
        return sorted(better, key=lambda choice: (-model.value(choice), choice))[: self.finalists]
