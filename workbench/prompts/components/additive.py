"""What many small trials say together: a row's difficulty, plus an effect of each option, plus the template's own, plus noise.

One template on a few rows says little. As every option is part of many templates, all trials speak of each option, which is what makes
factorial designs cheaper than changing one thing at a time (Box, Hunter and Hunter 2005, chapter 5).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.prompts.components.space import Choice

_BASE, _OPTION, _ROW, _TEMPLATE = range(4)
_VARIANCES = (1.0, 0.001, 0.05, 0.0003)
_NOISE = 0.05
"""Variances to start from, of the size that MRR has; all but the base's are then estimated."""
_LEAST = 1e-5
"""No variance falls below it: trials without any noise would leave nothing to divide by."""
_STEPS = 2


class Additive:
    """A linear model with normal effects of options, rows and templates, whose variances are estimated (empirical Bayes).

    So effects are shrunken by as much as the trials cannot tell them from noise, and what was best of many is not believed for its luck.
    The first option of a component is one like the others. sizes: options of each component. Values are between 0 and 1.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._ends = np.cumsum([1, *sizes])
        # Columns of the design: the base, all options, then rows and templates as they come. Of the design X and the values y only X'X,
        # X'y and y'y are kept.
        self._groups = np.array([_BASE] + [_OPTION] * sum(sizes))
        self._column: dict[Hashable, int] = {}
        self._square, self._product = np.zeros((len(self._groups),) * 2), np.zeros(len(self._groups))
        self._total, self._count = 0.0, 0
        self._variances, self._noise = np.array(_VARIANCES), _NOISE
        self._estimate()

    def add(self, choice: Choice, values: Sequence[tuple[str, float]]) -> None:
        """Values of a template, each with its row's id, and a new estimate of everything."""
        for row, value in values:
            at = [*self._options(choice), self._of(_TEMPLATE, choice), self._of(_ROW, row)]
            self._square[np.ix_(at, at)] += 1
            self._product[at] += value
            self._total += value * value
            self._count += 1
        self._estimate()

    def value(self, choice: Choice) -> float:
        """Expected value of a template over rows like those seen."""
        own = self._column.get((_TEMPLATE, choice))
        return float(self._mean[self._options(choice)].sum() + (0.0 if own is None else self._mean[own]))

    def best(self) -> Choice:
        """The best option of each component."""
        return self._argmax(self._mean)

    def draw(self, rng: np.random.Generator) -> Choice:
        """The best options if effects were as drawn from what is believed of them (Thompson sampling).

        Options that may be the best are tried as often as they may be, the others ever less.
        """
        return self._argmax(self._mean + self._spread @ rng.standard_normal(len(self._mean)))

    def _argmax(self, effects: NDArray[np.float64]) -> Choice:
        return tuple(int(effects[a:b].argmax()) for a, b in zip(self._ends[:-1], self._ends[1:], strict=True))

    def _options(self, choice: Choice) -> list[int]:
        """Columns of the base and of the chosen options."""
        return [0, *(int(first) + n for first, n in zip(self._ends[:-1], choice, strict=True))]

    def _of(self, group: int, what: Hashable) -> int:
        """Column of a row or template, a new one where it has none."""
        if (group, what) not in self._column:
            self._column[group, what] = len(self._groups)
            self._groups = np.append(self._groups, group)
            self._square, self._product = np.pad(self._square, (0, 1)), np.pad(self._product, (0, 1))
        return self._column[group, what]

    def _estimate(self) -> None:
        """All effects, and steps of expectation-maximization for the variances from where they stand (Laird and Ware 1982)."""
        for _ in range(_STEPS):
            covariance = np.linalg.inv(self._square / self._noise + np.diag(1 / self._variances[self._groups]))
            self._mean = covariance @ self._product / self._noise
            own = np.diag(covariance)
            if self._count:
                error = self._total - 2 * self._mean @ self._product + self._mean @ self._square @ self._mean
                known = len(own) - (own / self._variances[self._groups]).sum()
                self._noise = max(float((error + self._noise * known) / self._count), _LEAST)
                moments = np.bincount(self._groups, self._mean**2 + own) / np.bincount(self._groups)
                self._variances[1:] = np.maximum(moments[1:], _LEAST)
        self._spread = np.linalg.cholesky(covariance)
