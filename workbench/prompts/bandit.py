"""Which of several arms is best, found by pulling the promising ones more often: with true means, and as PO4ISR's released code has it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from recsys_core.errors import DataError


class Ucb:
    """Upper confidence bounds (Auer, Cesa-Bianchi and Fischer 2002) over numbered arms; a pull gives one or more values.

    An arm's index is mean + exploration * s * sqrt(2 ln t / n), with n values of the arm, t of all arms, and s the standard deviation
    within arms, pooled: the bound of s-sub-Gaussian values (Lattimore and Szepesvári 2020, chapter 7). So choices depend neither on the
    scale of the values nor on a number added to all of them. Raises DataError for a negative exploration.
    """

    def __init__(self, exploration: float = 1.0) -> None:
        if not exploration >= 0:
            raise DataError(f"exploration is {exploration}; give a number >= 0, such as 1")
        self.exploration = exploration
        self._values: dict[int, list[float]] = {}

    def count(self, arm: int) -> int:
        """How many values an arm has given, 0 for one that was never pulled."""
        return len(self._values.get(arm, ()))

    def mean(self, arm: int) -> float:
        """The mean of all values that an arm has given; it was pulled before."""
        return fmean(self._values[arm])

    def update(self, arm: int, values: Sequence[float]) -> None:
        """Adds what a pull of an arm gave."""
        if values:
            self._values.setdefault(arm, []).extend(values)

    def choose(self, arms: Collection[int]) -> int:
        """Which of these arms to pull next: the first that was never pulled, else that with the highest index, the first of equals."""
        if fresh := [arm for arm in arms if arm not in self._values]:
            return min(fresh)
        bonus = self.exploration * self._spread() * math.sqrt(2 * math.log(sum(map(len, self._values.values()))))
        return max(sorted(arms), key=lambda arm: self.mean(arm) + bonus / math.sqrt(self.count(arm)))

    def best(self) -> list[int]:
        """The arms that were pulled, highest mean first, of equals the first."""
        return sorted(self._values, key=lambda arm: (-self.mean(arm), arm))

    def _spread(self) -> float:
        means = {arm: fmean(values) for arm, values in self._values.items()}
        freedom = sum(len(values) - 1 for values in self._values.values())
        squares = math.fsum((value - means[arm]) ** 2 for arm, values in self._values.items() for value in values)
        return math.sqrt(squares / freedom) if freedom else 0.0


class PublishedUcb:
    """The bandit of PO4ISR's released code. Its scores are no means, so the arm that it pulls most is the one it finds best.

    A pull of rows whose values sum to R adds R / N to an arm's score, N counting all rows of the arm, these included: k pulls of mean m
    score m (1 + 1/2 + .. + 1/k), which grows with every pull. The index is score + exploration * sqrt(ln t / (N + 1)) at pull t.
    """

    def __init__(self, arms: int, exploration: float = 2.0) -> None:
        self.exploration = exploration
        self.scores, self.rows = [0.0] * arms, [0] * arms
        self._pulls = 1

    def update(self, arm: int, values: Sequence[float]) -> None:
        """Adds what a pull of an arm gave."""
        self.rows[arm] += len(values)
        self.scores[arm] += math.fsum(values) / self.rows[arm]
        self._pulls += 1

    def choose(self) -> int:
        """The arm to pull next, the first of equals. The first pull of all is the caller's to draw."""
        bonus = self.exploration * math.sqrt(math.log(self._pulls))
        index = [score + bonus / math.sqrt(rows + 1) for score, rows in zip(self.scores, self.rows, strict=True)]
        return index.index(max(index))

    def best(self) -> list[int]:
        """All arms, highest score first, never pulled ones last."""
        return sorted(range(len(self.scores)), key=lambda arm: -self.scores[arm])
