"""When a session ends: a discrete-time hazard over items taken, fitted on the gaps of a training log, and boredom on empty pages.

The log shows what was taken, not what was shown, so fatigue after items is learned and fatigue after a page without any is a setting.

A simulated user has a history, so the hazard is that of returning sessions: a user's first is another thing (in MovieLens the rating of
dozens of films on the day of joining). It follows what the user's record says of the next session: how many items there were, and how many
a session. What these are worth on users not fitted on: `python -m benchmarks.sessions`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError

RIDGE = 1e-3
_MOST_ITEMS = 2_000_000
"""Items of sessions to fit on; of a log with more, every n-th session is used."""


class SessionModel(BaseModel):
    """Exit hazard `logit h(k) = intercept + slope * log(k) + habit` after the k-th item of a session, k from 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    intercept: float = 0.0
    """Hazard of an average user after the first item, as log odds."""
    slope: float = 0.0
    """Change of the log odds for each e-fold of items; negative where long sessions tend to go on."""
    volume: float = 0.0
    """Change for each e-fold of items that the user took in all sessions before."""
    pace: float = 0.0
    """Change for each e-fold of items that the user took in a session on average before."""
    habits: NDArray[np.float64] = Field(default_factory=lambda: np.zeros(0))
    """What volume and pace add for each user [U] of the log; 0 for a user without a record."""
    boredom: float = Field(default=0.2, ge=0, le=1)
    """Probability of leaving after a page on which nothing was taken."""

    def habit(self, user: int) -> float:
        """What a user's record adds to the log odds of leaving."""
        return float(self.habits[user]) if 0 <= user < len(self.habits) else 0.0

    def hazard(self, taken: NDArray | int, habit: float | NDArray = 0.0) -> NDArray:
        """Probability of stopping right after the k-th item."""
        return np.asarray(1 / (1 + np.exp(-(self.intercept + self.slope * np.log(np.maximum(taken, 1)) + habit))))

    def exit_probability(self, before: int, taken: int, mood: float = 0.0, habit: float = 0.0) -> float:
        """Probability of leaving after a page: `taken` items on it, `before` of them earlier in the session.

        mood (-1 .. 1) shifts the log odds by its negative, so a delighted agent is e times less likely to go than an indifferent one.
        """
        stay = 1 - self.boredom if not taken else float(np.prod(1 - self.hazard(np.arange(before + 1, before + taken + 1), habit)))
        stay = min(max(stay, 1e-9), 1 - 1e-9)
        return float(1 / (1 + stay / (1 - stay) * np.exp(mood)))


def session_lengths(log: Dataset, gap: int = 3600) -> Ints:
    """Items in each session [S], by user and time; a pause of more than `gap` seconds starts a new one."""
    return sessions(log, gap)[1]


def fit_session(log: Dataset, gap: int = 3600, boredom: float = 0.2) -> SessionModel:
    """Maximum likelihood fit of the hazard to a log's returning sessions (Newton steps, a small ridge).

    A log in which nobody returns is fitted on the sessions that there are, without habits.
    """
    owner, lengths = sessions(log, gap)
    records = records_before(owner, lengths)
    returning = np.isfinite(records).all(1)
    use = np.flatnonzero(returning if returning.any() else np.ones(len(lengths), bool))
    use = use[:: max(1, int(np.ceil(lengths[use].sum() / _MOST_ITEMS)))]
    center = records[use].mean(0) if returning.any() else np.zeros(2)
    weights = fit_hazard(lengths[use], records[use] - center if returning.any() else np.zeros((len(use), 0)))
    if not returning.any():
        return SessionModel(intercept=float(weights[0]), slope=float(weights[1]), boredom=boredom)
    counts, items = np.bincount(owner, minlength=len(log.users)), np.diff(log.offsets)
    known = np.maximum(counts, 1), np.maximum(items, 1)
    habits = np.where(counts > 0, (np.log(np.stack([known[1], known[1] / known[0]], 1)) - center) @ weights[2:], 0.0)
    intercept, slope, volume, pace = map(float, weights)
    return SessionModel(intercept=intercept, slope=slope, volume=volume, pace=pace, habits=habits, boredom=boredom)


def records_before(owner: Ints, lengths: Ints) -> NDArray[np.float64]:
    """What is known when each session begins [S, 2]: logarithms of the items that its user took, and took a session; -inf and NaN if none.

    owner: the users of the sessions [S], each one's together, in time order; lengths: their items [S].
    """
    starts = np.flatnonzero(np.concatenate([[True], np.diff(owner) != 0]))
    first = np.repeat(starts, np.diff(np.append(starts, len(owner))))
    total = np.concatenate([[0], np.cumsum(lengths)])
    items, sessions = (total[:-1] - total[first]).astype(float), (np.arange(len(owner)) - first).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(np.stack([items, items / sessions], 1)))


def fit_hazard(lengths: Ints, covariates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [2 + C] of 1, log(k) and the covariates [S, C] of sessions of the given lengths [S]: each item is a chance to stop."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    k = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    ended = (k == lengths[rows]).astype(float)
    features = np.column_stack([np.ones(len(k)), np.log(k), covariates[rows]])
    weights = np.zeros(features.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (ended - p) - RIDGE * weights
        hessian = (features * (p * (1 - p))[:, None]).T @ features + RIDGE * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return weights


def sessions(log: Dataset, gap: int) -> tuple[Ints, Ints]:
    """Users and items of the sessions [S], by user and time."""
    if gap < 1:
        raise DataError(f"gap is {gap} seconds; a session gap must be at least 1")
    time, user = log.timestamp[log.order], log.user[log.order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(time) > gap) | (np.diff(user) != 0)]))
    return user[starts], np.diff(np.append(starts, len(time))).astype(np.int64)
