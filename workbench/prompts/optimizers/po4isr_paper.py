"""PO4ISR's loop as its released code has it (llm4sr/PO4ISR); what is kept of it stands in the docstring of `po4isr.PO4ISR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from recsys_core.errors import DataError
from workbench.prompts.bandit import PublishedUcb
from workbench.prompts.optimizer import Outcome
from workbench.prompts.optimizers.po4isr_questions import better, other_words, problem, why
from workbench.prompts.proposing import Proposer, quoted, read_proposal, rules
from workbench.prompts.tasks import Ranking, Row
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

T = TypeVar("T")
_FAILED_FROM = 10
"""The place from which on a row is a failure."""
_REASONS = 2


@dataclass(frozen=True)
class Published:
    """The released code's settings.

    rounds: of proposing and choosing; batch: train rows a parent is tried on; paraphrases: of each revision; kept: candidates of a parent
    that go on; beam: survivors of these; pulls: of the bandit, `rows` train rows each; exploration: see PublishedUcb.
    """

    rounds: int = 2
    batch: int = 16
    paraphrases: int = 2
    kept: int = 8
    beam: int = 5
    pulls: int = 16
    rows: int = 32
    exploration: float = 2.0

    async def search(self, trials: Trials, proposer: Proposer, author: str, rng: np.random.Generator) -> Outcome:
        """The whole loop; `rng` is drawn from in a fixed order."""
        beam = [trials.start]
        for _ in range(self.rounds):
            for parent in tuple(beam):
                if offspring := await self._offspring(trials, proposer, author, parent, rng):
                    beam = await self._survivors(trials, offspring, rng)
        totals = [float((await trials.measure(template, trials.search)).values.sum()) for template in beam]
        best = [beam[n] for n in np.argsort(-np.array(totals), kind="stable")]
        found = tuple(template for template in best if template.version != trials.start.version)
        note = f"the best of the last {len(beam)}, {max(totals) / len(trials.search):.3f} on the search rows; the start was not compared"
        return Outcome(found, bool(found), note)

    async def _offspring(
        self, trials: Trials, proposer: Proposer, author: str, parent: Template, rng: np.random.Generator
    ) -> list[Template]:
        """A revision for each failure of a parent, and its paraphrases."""
        trial = await trials.measure(parent, drawn(rng, trials.train, self.batch))
        made: list[Template] = []

        def read(answer: str, template: Template) -> list[Template]:
            try:
                return [read_proposal(answer, template, author)]
            except DataError as refused:
                trials.reject(quoted(answer, 200), str(refused))
                return []

        for row, ranked in zip(trial.rows, trial.ranked, strict=True):
            if not failed(row, ranked.ranking):
                continue
            told = problem(parent, _unanswered(parent, row))
            reasons = await proposer.ask(why(told, _REASONS))
            for revised in read(await proposer.ask(f"{better(told, reasons)}\n\n{rules(parent)}"), parent):
                made.append(revised)
                for n in range(self.paraphrases):
                    made += read(await proposer.ask(other_words(revised), n), revised)
        return drawn(rng, made, self.kept)

    async def _survivors(self, trials: Trials, offspring: Sequence[Template], rng: np.random.Generator) -> list[Template]:
        bandit = PublishedUcb(len(offspring), self.exploration)
        for pull in range(self.pulls):
            arm = bandit.choose() if pull else int(rng.integers(len(offspring)))
            trial = await trials.measure(offspring[arm], drawn(rng, trials.train, self.rows))
            bandit.update(arm, trial.values.tolist())
        return [offspring[arm] for arm in bandit.best()[: self.beam]]


def failed(row: Row, ranking: Ranking) -> bool:
    """By the released code's rule. A target that is tied was not named: the answer was of no use or left it out."""
    before = 0
    for group in ranking:
        if row.positives & set(group):
            return len(group) > 1 or before + 1 >= _FAILED_FROM
        before += len(group)
    return True


def drawn(rng: np.random.Generator, items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, by chance and without repetition."""
    return [items[n] for n in rng.permutation(len(items))[:most]]


def _unanswered(template: Template, row: Row) -> str:
    """History and candidates as the prompt shows them, without its instructions; a title can open no section."""
    shown = replace(template, role="", task="", reasoning="", output="").render(row.history, row.candidates).text
    return "\n".join(quoted(line, len(line)) if line else "" for line in shown.splitlines())
