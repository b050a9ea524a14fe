"""Racing: challengers meet an incumbent on ever more rows, and those that fall behind take no further calls (Maron and Moore 1993).

Judged by the wealth of a gambler (Waudby-Smith and Ramdas 2024, arXiv 2010.09686). Who bets on a difference in [-1, 1] and is offered fair
odds if its mean is m, can multiply the stake by 1 + b (d - m) / (1 + m), 0 < b < 1, at each row. If the mean is m or less, wealth is a
nonnegative supermartingale, so it ever reaches 1 / alpha with chance at most alpha (Ville 1939), however often one looks and whenever
one stops. The stake is divided equally over a grid of bets b, so nothing is tuned and the order of the rows looked at is of no matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys_core.errors import DataError
from workbench.prompts.asking import together
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

Status = Literal["better", "worse", "open"]
_BETS = (np.arange(5) + 0.5) / 5
_STEPS = 30
"""Halvings of [-1, 1] in the search for a bound."""


@dataclass(frozen=True)
class Verdict:
    """What a race found of a challenger. difference: mean of challenger - incumbent over the rows that both were measured on.

    low, high: bounds of the true mean difference; status: `better` for low > 0 at some time of the race, `worse` for high < 0, else `open`.
    rows: fewer than the race had where it ended early or the challenger was dropped.
    """

    template: Template
    rows: int
    difference: float
    low: float
    high: float
    status: Status


@dataclass(frozen=True)
class Race:
    """winner: the challenger that was shown better, of several the one with the highest mean; the incumbent if there is none.

    standing: all challengers, best first: better ones, open ones, worse ones; among these who stood longest, then by difference.
    """

    winner: Template
    standing: tuple[Verdict, ...]


async def race(
    trials: Trials,
    incumbent: Template,
    challengers: Sequence[Template],
    *,
    rows: Sequence[Row] | None = None,
    alpha: float = 0.05,
    block: int = 8,
    repeat: int = 0,
    futility: float = 0.2,
) -> Race:
    """Measures who still stands on the next `block` rows and judges, until nobody is left, or one that is better, or rows end.

    rows: in random order, by default the search rows; the bounds hold for challengers that were made without a look at them.
    alpha: the chance that any challenger which is no better is called better, over all of them and all looks (Bonferroni); the same for
    those called worse.
    futility: who falls behind the incumbent, or whoever leads, is dropped before it is shown worse, a challenger as good as a rival for
    that one's sake with at most this chance; 0 for never. What is dropped is not accepted, so this cannot add false acceptances.
    Raises as `Trials.measure` does, and DataError for settings out of their bounds.
    """
    if not 0 < alpha < 1 or not 0 <= futility <= 1 or block < 1:
        raise DataError(f"alpha is {alpha:g}, futility {futility:g} and block {block}; give 0 < alpha < 1, 0 to 1, and at least 1 row")
    rows = trials.search if rows is None else rows
    templates = {t.version: t for t in (incumbent, *challengers)}
    base, *contenders = dict.fromkeys((incumbent.version, *templates))
    shown = math.log(max(len(contenders), 1) / alpha)
    enough = min(shown, -math.log(futility) if futility else math.inf)
    values = {name: np.empty(0) for name in templates}
    better: set[str] = set()
    standing = contenders

    def gap(a: str, b: str) -> NDArray[np.float64]:
        n = min(len(values[a]), len(values[b]))
        return values[a][:n] - values[b][:n]

    for start in range(0, len(rows), block):
        if not standing or (len(standing) == 1 and standing[0] in better):
            break
        racing, part = (base, *standing), rows[start : start + block]
        measured = await together(trials.measure(templates[name], part, repeat) for name in racing)
        for name, trial in zip(racing, measured, strict=True):
            values[name] = np.append(values[name], trial.values)
        better |= {name for name in standing if evidence(gap(name, base)) >= shown}
        leader = max(standing, key=lambda name: values[name].mean())
        standing = [name for name in standing if max(evidence(gap(rival, name)) for rival in (base, leader)) < enough]

    verdicts = [_verdict(templates[name], gap(name, base), alpha / len(contenders), name in better) for name in contenders]
    order = ("better", "open", "worse")
    verdicts.sort(key=lambda v: (order.index(v.status), -v.rows, -v.difference))
    winner = max((v for v in verdicts if v.status == "better"), key=lambda v: v.difference, default=None)
    return Race(winner.template if winner else incumbent, tuple(verdicts))


def evidence(differences: NDArray[np.float64], mean: float = 0.0) -> float:
    """That the mean of differences [n] in [-1, 1] is above `mean`: the log of the wealth won by betting on it, log(1) at the start."""
    stakes = np.outer(_BETS, (differences - mean) / (1 + mean))
    return float(np.logaddexp.reduce(np.log1p(stakes).sum(1)) - math.log(len(_BETS)))


def lower_bound(differences: NDArray[np.float64], alpha: float) -> float:
    """Below the mean of differences [n] in [-1, 1], at all n together with chance at least 1 - alpha; -1 where nothing is known."""
    low, high = -1.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        # Evidence falls as the mean in question rises, so what can be excluded is all on one side.
        if evidence(differences, middle) >= -math.log(alpha):
            low = middle
        else:
            high = middle
    return low


def _verdict(template: Template, differences: NDArray[np.float64], alpha: float, better: bool) -> Verdict:
    low, high = lower_bound(differences, alpha), -lower_bound(-differences, alpha)
    # What was once excluded stays excluded, though later rows may have weakened the evidence.
    low = max(low, 0.0) if better else low
    status: Status = "better" if better else "worse" if high < 0 else "open"
    return Verdict(template, len(differences), float(differences.mean()) if len(differences) else 0.0, low, high, status)
