"""A simulated model whose sensitivity to prompts and noise are known: how good each template really is, is a function of the test's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.seeding import stream
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.tasks import Item, Row, by_score
from workbench.prompts.templates import Template


def rows(part: str, n: int, candidates: int = 10) -> list[Row]:
    """Made-up rows with one positive each, at a place drawn for the row."""
    made = []
    for number in range(n):
        offered = tuple(Item(f"i{place}", f"Title {place} of {part} {number}") for place in range(candidates))
        positive = int(stream(0, "positive", part, number).integers(candidates))
        history = tuple(Item(f"h{place}", f"Taken {place} before {part} {number}") for place in range(3))
        made.append(Row(f"{part}-{number}", history, offered, {f"i{positive}": 1.0}))
    return made


@dataclass(frozen=True)
class Simulated:
    """Ranks as a model would whose prompt is worth `quality`.

    A candidate's utility is standard normal; the positive's is `quality` higher. shared: how much of that noise is the row's own, equal
    for all templates, from 0 to 1; the rest is drawn for row, template and repetition.
    """

    template: Template
    quality: float
    shared: float = 0.5
    seed: int = 0

    def calls(self, row: Row) -> int:
        return 1

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        return [self._rank(row, repeat) for row in rows]

    def _rank(self, row: Row, repeat: int) -> Ranked:
        mine = stream(self.seed, row.id, self.template.version, repeat).normal(size=len(row.candidates))
        ours = stream(self.seed, row.id, "shared").normal(size=len(row.candidates))
        utility = self.shared**0.5 * ours + (1 - self.shared) ** 0.5 * mine
        scores = {item.id: float(u) + self.quality * (item.id in row.positives) for item, u in zip(row.candidates, utility, strict=True)}
        ranking = by_score(row, scores)
        return Ranked(row.id, ranking, (Reply(tuple(item.id for item in row.candidates), ranking, "complete"),))


def rankers(quality: Callable[[Template], float], shared: float = 0.5, seed: int = 0) -> Callable[[Template], Simulated]:
    """Rankers of a landscape: `quality` of each template; a constant is a null landscape."""
    return lambda template: Simulated(template, quality(template), shared, seed)
