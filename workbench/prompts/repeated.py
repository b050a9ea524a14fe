"""Order is a nuisance: each repetition shows the candidates in an order of its own, and the rankings are fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from agents.seeding import stream
from recsys_core.errors import DataError
from workbench.prompts.asking import together
from workbench.prompts.fusion import borda, reciprocal_rank
from workbench.prompts.ranked import Ranked, Ranker
from workbench.prompts.tasks import Ranking, Row
from workbench.prompts.templates import Template

Fusion = Literal["borda", "reciprocal_rank"]
FUSIONS: dict[Fusion, Callable[[Sequence[Ranking]], Ranking]] = {"borda": borda, "reciprocal_rank": reciprocal_rank}


class Repeated:
    """A ranker asked `times` times about each row. The order of a repetition is drawn from seed, row id and repetition alone.

    Even once it is of use: sources may list what was chosen at a telling position.
    """

    def __init__(self, ranker: Ranker, times: int = 1, seed: int = 0, fusion: Fusion = "borda") -> None:
        if times < 1:
            raise DataError(f"times is {times}; ask at least once")
        self.ranker, self.times, self.seed, self.fusion = ranker, times, seed, fusion

    @property
    def template(self) -> Template:
        return self.ranker.template

    def calls(self, row: Row) -> int:
        """See Ranker."""
        return self.times * self.ranker.calls(row)

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """See Ranker; a repetition of the whole takes `times` further orders."""
        numbers = range(repeat * self.times, (repeat + 1) * self.times)
        runs = await together(self.ranker.rank([shuffled(row, self.seed, n) for row in rows], n) for n in numbers)
        fuse = FUSIONS[self.fusion]
        return [
            Ranked(row.id, fuse([result.ranking for result in results]), tuple(reply for result in results for reply in result.replies))
            for row, *results in zip(rows, *runs, strict=True)
        ]


def shuffled(row: Row, seed: int, repetition: int) -> Row:
    """The row with its candidates in an order drawn from seed, row id and repetition; neither grades nor the source's order matter."""
    ordered = sorted(row.candidates, key=lambda item: item.id)
    order = stream(seed, "order", row.id, repetition).permutation(len(ordered))
    return replace(row, candidates=tuple(ordered[n] for n in order))
