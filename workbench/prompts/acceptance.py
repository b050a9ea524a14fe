"""Whether what a search found is better: a paired test on rows that no search has seen, and what choosing the best flatters by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_core.errors import DataError
from recsys_core.evaluation.compare import Comparison, holm
from workbench.prompts.metrics import Measured, compare

_RESAMPLES = 2000


@dataclass(frozen=True)
class Confirmation:
    """best: place of the accepted finalist with the highest mean, None if none is accepted.

    comparisons: finalist minus start, one a finalist; adjusted: their two-sided p-values, adjusted for their number.
    """

    best: int | None
    comparisons: tuple[Comparison, ...]
    adjusted: tuple[float, ...]


def confirm(start: Measured, finalists: Sequence[Measured], metric: str, alpha: float = 0.05, seed: int = 0) -> Confirmation:
    """Accepts finalists that are above the start by the paired sign-flip test, adjusted over all of them (Holm 1979), at level alpha.

    The test has two sides of which one counts, so finalists as good as the start, whose differences are as likely as their negatives, are
    accepted with a chance of about alpha / 2. Where only the mean is 0 it is an approximation: a small gain on most rows that pays for a
    large loss on one of ten was accepted in 19% of simulations with 20 rows, 13% with 40 and 5 to 7% with 80 and 160. Rows must be fresh.
    Raises DataError where the rows differ, and for an alpha that is no chance.
    """
    if not 0 < alpha < 1:
        raise DataError(f"alpha is {alpha:g}; give a chance of a false acceptance between 0 and 1, such as 0.05")
    comparisons = tuple(compare(finalist, start, metric, seed) for finalist in finalists)
    adjusted = tuple(holm([c.p_value for c in comparisons]))
    accepted = [n for n, (c, p) in enumerate(zip(comparisons, adjusted, strict=True)) if c.difference > 0 and p <= alpha]
    return Confirmation(max(accepted, key=lambda n: comparisons[n].mean_a, default=None), comparisons, adjusted)


@dataclass(frozen=True)
class Curse:
    """What choosing the best on the rows it is measured on flatters by.

    apparent: mean of the best on all rows; corrected: what the best of such a choice comes to on other rows, 95% interval `low .. high`.
    """

    apparent: float
    corrected: float
    low: float
    high: float


def winners_curse(measured: Sequence[Measured], metric: str, seed: int = 0) -> Curse:
    """The best of several by mean, corrected for the choice by the bootstrap (BBC-CV, Tsamardinos et al. 2018, algorithm 5).

    In each resample the best on the rows drawn is scored on the rows left out. A resample holds 63% of the rows and chooses a little worse
    than all would, so the correction errs on the low side; the interval is that of scores on the rows left out, and so rather wide.
    Raises DataError for nothing to choose from, different rows, and fewer than 2 of them.
    """
    if not measured or any(m.rows != measured[0].rows for m in measured) or len(measured[0].rows) < 2:
        sizes = ", ".join(f"{m.name} on {len(m.rows)}" for m in measured[:5]) or "none"
        raise DataError(f"the best is chosen on the same rows, at least 2 of them, got {sizes}; measure all on one part")
    values = np.stack([m[metric] for m in measured])
    n = values.shape[1]
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    left = drawn == 0
    drawn, left = drawn[left.any(1)], left[left.any(1)]
    best = (drawn @ values.T).argmax(1)
    scores = (left * values[best]).sum(1) / left.sum(1)
    low, high = np.quantile(scores, (0.025, 0.975))
    return Curse(float(values.mean(1).max()), float(scores.mean()), float(low), float(high))
