"""How much a user wants an item, as a probability fitted to a training log.

A logistic model over four views of (user, item): popularity, quality, genre affinity and collaborative similarity. It is fitted on each
user's latest interactions against negatives, with every view computed from the earlier ones, so no view has seen what it predicts.
Collaborative similarity is a truncated SVD, a different family from the recommenders usually put in front of these users: a user
whose taste is the recommender under test would agree with it by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.persona import LogProfile
from agents.seeding import stream
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError

VIEWS = ("popularity", "quality", "genre", "collaborative", "popularity x conformity", "genre x diversity")


@dataclass(frozen=True, eq=False)
class TasteModel:
    """Fitted choice model. weights: [6] log odds a standard deviation of each view in `VIEWS`; bias: log odds at the mean page."""

    profile: LogProfile
    user_factors: NDArray[np.float64]
    item_factors: NDArray[np.float64]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(VIEWS)))
    bias: float = 0.0

    def logits(self, users: Ints, items: Ints) -> NDArray[np.float64]:
        """Log odds of taking `items` [N] by `users` [N]."""
        return self.bias + self._views(users, items) @ self.weights

    def _views(self, users: Ints, items: Ints) -> NDArray[np.float64]:
        profile = self.profile
        base = np.stack(
            [
                np.log1p(profile.log.item_counts[items]),
                profile.item_mean[items],
                _genre_match(profile, users, items),
                (self.user_factors[users] * self.item_factors[items]).sum(1),
            ],
            axis=1,
        )
        base = (base - self.center) / self.scale
        conformity, diversity = (profile.tiers[t][users] - 2 for t in ("conformity", "diversity"))
        return np.concatenate([base, (base[:, 0] * conformity)[:, None], (base[:, 2] * diversity)[:, None]], 1)


def fit_taste(log: Dataset, seed: int = 0, take_rate: float = 0.3, rank: int = 32, held_share: float = 0.2) -> TasteModel:
    """Fits on the last `held_share` of each user's log against as many negatives, half uniform and half drawn by popularity.

    take_rate: the share of a page's items taken on average, where half of a page is what the user would take anyway and half is
    popular. A log without exposures cannot tell it, so it is a setting (Agent4Rec's shipped log shows .50 of items viewed).
    """
    if not 0 < take_rate < 1:
        raise DataError(f"take_rate is {take_rate}; it must lie strictly between 0 and 1")
    rng = stream(seed, "taste")
    position = np.arange(len(log)) - log.offsets[log.user[log.order]]
    late = position >= np.ceil((1 - held_share) * np.diff(log.offsets)[log.user[log.order]])
    if not late.any():
        raise DataError(
            f"no user of {log.name!r} has enough interactions to hold out {held_share:.0%}; the log is too sparse to fit a taste"
        )
    earlier, held = log.rows(log.order[~late]), log.order[late]
    model = _views_of(LogProfile(earlier), rank, rng)
    users, positives = log.user[held], log.item[held]
    popularity = earlier.item_counts + 1.0
    drawn = np.where(
        rng.random(len(held)) < 0.5,
        rng.integers(0, len(log.items), len(held)),
        rng.choice(len(log.items), len(held), p=popularity / popularity.sum()),
    )
    fresh = ~np.isin(users * len(log.items) + drawn, log.user * len(log.items) + log.item)
    features = np.concatenate([model._views(users, positives), model._views(users[fresh], drawn[fresh])])
    weights = _logistic(features, np.arange(len(features)) < len(held))
    bias = _solve_bias(features @ weights[:-1], take_rate)
    final = _views_of(LogProfile(log), rank, rng)
    return TasteModel(final.profile, final.user_factors, final.item_factors, final.center, final.scale, weights[:-1], bias)


def _views_of(profile: LogProfile, rank: int, rng: np.random.Generator) -> TasteModel:
    """The unweighted model of one log: factors, and the centre and scale of each view over random pairs."""
    users, items = _factors(profile.log, rank, rng)
    raw = TasteModel(profile, users, items, np.zeros(4), np.ones(4))
    sample = rng.integers(0, len(users), 20_000), rng.choice(profile.log.item, 20_000)
    views = raw._views(*sample)[:, :4]
    return TasteModel(profile, users, items, views.mean(0), np.maximum(views.std(0), 1e-6))


def _factors(log: Dataset, rank: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Truncated SVD of the degree-normalized interaction matrix by randomized subspace iteration (Halko et al. 2011, alg. 4.4)."""
    rank = min(rank, len(log.users), len(log.items))
    matrix = np.zeros((len(log.users), len(log.items)))
    matrix[log.user, log.item] = 1
    matrix /= np.sqrt(np.maximum(matrix.sum(1, keepdims=True), 1)) * np.sqrt(np.maximum(matrix.sum(0, keepdims=True), 1))
    basis = np.linalg.qr(matrix @ rng.standard_normal((matrix.shape[1], rank + 8)))[0]
    for _ in range(3):
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]
    left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left[:, :rank]) * values[:rank], right[:rank].T


def _genre_match(profile: LogProfile, users: Ints, items: Ints) -> NDArray[np.float64]:
    """Mean affinity of the user for the item's tags; 0 for an item without tags."""
    tags = profile.item_tags[items]
    return np.asarray((profile.affinity[users] * tags).sum(1) / np.maximum(tags.sum(1), 1))


def _logistic(features: NDArray, labels: NDArray, ridge: float = 1.0) -> NDArray[np.float64]:
    """Ridge logistic regression by Newton's method; the last weight is the intercept."""
    x = np.concatenate([features, np.ones((len(features), 1))], 1)
    weights = np.zeros(x.shape[1])
    penalty = ridge * np.eye(x.shape[1])
    penalty[-1, -1] = 0
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalty, x.T @ (labels - p) - penalty @ weights)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _solve_bias(logits: NDArray, rate: float) -> float:
    """The bias at which the mean probability is `rate` (bisection; the mean rises with the bias)."""
    low, high = -50.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-(logits + middle)))).mean() < rate else (low, middle)
    return (low + high) / 2
