"""When a session ends: a discrete-time hazard over items taken, fitted on the gaps of a training log, and boredom on empty pages.

The log shows what was taken, not what was shown, so fatigue after items is learned and fatigue after a page without any is a setting.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError


class SessionModel(BaseModel):
    """Exit hazard `logit h(k) = intercept + slope * log(k)` after the k-th item of a session, k from 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intercept: float = 0.0
    """Hazard after the first item, as log odds."""
    slope: float = 0.0
    """Change of the log odds for each e-fold of items; negative where long sessions tend to go on."""
    boredom: float = Field(default=0.2, ge=0, le=1)
    """Probability of leaving after a page on which nothing was taken."""

    def hazard(self, taken: NDArray | int) -> NDArray:
        """Probability of stopping right after the k-th item."""
        return np.asarray(1 / (1 + np.exp(-(self.intercept + self.slope * np.log(np.maximum(taken, 1))))))

    def exit_probability(self, before: int, taken: int, mood: float = 0.0) -> float:
        """Probability of leaving after a page: `taken` items on it, `before` of them earlier in the session.

        mood (-1 .. 1) shifts the log odds by its negative, so a delighted agent is e times less likely to go than an indifferent one.
        """
        stay = 1 - self.boredom if not taken else float(np.prod(1 - self.hazard(np.arange(before + 1, before + taken + 1))))
        stay = min(max(stay, 1e-9), 1 - 1e-9)
        return float(1 / (1 + stay / (1 - stay) * np.exp(mood)))


def session_lengths(log: Dataset, gap: int = 3600) -> Ints:
    """Items in each session [S]; a pause of more than `gap` seconds starts a new one."""
    if gap < 1:
        raise DataError(f"gap is {gap} seconds; a session gap must be at least 1")
    time, user = log.timestamp[log.order], log.user[log.order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(time) > gap) | (np.diff(user) != 0)]))
    return np.diff(np.append(starts, len(time))).astype(np.int64)


def fit_session(log: Dataset, gap: int = 3600, boredom: float = 0.2) -> SessionModel:
    """Maximum likelihood fit of the hazard to a log's sessions (Newton steps on the two coefficients, tiny ridge)."""
    lengths = session_lengths(log, gap)
    k = np.arange(1, lengths.max() + 1)
    ended = np.bincount(lengths, minlength=len(k) + 1)[1:].astype(float)
    at_risk = ended[::-1].cumsum()[::-1]
    features = np.stack([np.ones(len(k)), np.log(k)], 1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (ended - at_risk * p) - 1e-6 * weights
        hessian = (features * (at_risk * p * (1 - p))[:, None]).T @ features + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return SessionModel(intercept=float(weights[0]), slope=float(weights[1]), boredom=boredom)
