"""Whether a model ranks by what it is shown or by where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.prompts.tasks import Ranking


@dataclass(frozen=True)
class PositionCurve:
    """How often the candidate shown at each position, from the first, was ranked first.

    hits: share of the rankings whose list reaches the position, ties in equal parts; uniform: the share if position did not matter;
    counts: rankings whose list reaches the position.
    """

    hits: tuple[float, ...]
    uniform: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def excess(self) -> float:
        """Half the sum of |hits - uniform| weighted by counts: the share of first places that position moved; 0 for no rankings."""
        moved = sum(abs(h - u) * n for h, u, n in zip(self.hits, self.uniform, self.counts, strict=True))
        return moved / (2 * self.counts[0]) if self.counts else 0.0


def position_curve(answers: Iterable[tuple[Sequence[str], Ranking]]) -> PositionCurve:
    """The curve of answers, each the candidate ids in the order shown and the ranking that came back.

    Leave out unusable answers: all tied, they would look fair. With shuffled candidates, any excess beyond chance is the model's.
    """
    hits: list[float] = []
    uniform: list[float] = []
    counts: list[int] = []
    for shown, ranking in answers:
        more = len(shown) - len(counts)
        hits, uniform, counts = hits + [0.0] * more, uniform + [0.0] * more, counts + [0] * more
        first = ranking[0] if ranking else ()
        for place, name in enumerate(shown):
            hits[place] += (name in first) / max(len(first), 1)
            uniform[place] += 1 / len(shown)
            counts[place] += 1
    return PositionCurve(
        tuple(h / n for h, n in zip(hits, counts, strict=True)), tuple(u / n for u, n in zip(uniform, counts, strict=True)), tuple(counts)
    )
