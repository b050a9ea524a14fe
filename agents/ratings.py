"""Ratings whose distribution is that of the training log: user and item effects plus the log's own noise, mapped by quantiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.persona import LogProfile
from agents.types import Feeling, Persona
from recsys_core.data.jagged import Ints


@dataclass(frozen=True, eq=False)
class RatingModel:
    """levels: the rating values of the log [L], ascending; edges: [L - 1] cuts of the latent score between them; noise: latent std."""

    profile: LogProfile
    levels: NDArray[np.float64]
    edges: NDArray[np.float64]
    noise: float

    def draw(self, users: Ints, items: Ints, noise: NDArray) -> NDArray[np.float64]:
        """Ratings [N] of (user, item) pairs given standard normal `noise` [N]."""
        latent = _expected(self.profile, users, items) + self.noise * noise
        return self.levels[np.searchsorted(self.edges, latent)]


def fit_ratings(profile: LogProfile) -> RatingModel:
    """Cuts the latent score so that the log's own pairs get the log's own histogram.

    The cuts are placed with a fixed low-discrepancy set of normal draws, so the fit is not random.
    """
    log = profile.log
    expected = _expected(profile, log.user, log.item)
    noise_std = float((profile.rating - expected).std())
    latent = np.sort(expected + noise_std * _normal_grid(len(log)))
    levels, counts = np.unique(profile.rating, return_counts=True)
    cuts = np.cumsum(counts)[:-1]
    return RatingModel(profile, levels.astype(float), latent[np.minimum(cuts, len(latent) - 1)], noise_std)


def feeling_about(rating: float, persona: Persona) -> Feeling:
    """A rating in words, relative to what this person usually gives."""
    z = (rating - persona.mean_rating) / max(persona.rating_std, 0.5)
    if z > 1:
        return "delighted"
    if z > -0.25:
        return "satisfied"
    if z > -1:
        return "indifferent"
    return "bored" if z > -1.75 else "annoyed"


def _expected(profile: LogProfile, users: Ints, items: Ints) -> NDArray[np.float64]:
    """Item mean plus the user's shrunk deviation from it."""
    return np.asarray(profile.item_mean[items] + profile.user_mean[users] - profile.mean)


def _normal_grid(size: int) -> NDArray[np.float64]:
    """`size` standard normal quantiles in a fixed scrambled order (golden-ratio sequence), by Box-Muller on two such sequences."""
    index = np.arange(1, size + 1)
    u, v = (index * 0.6180339887498949) % 1, (index * 0.7548776662466927) % 1
    return np.asarray(np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v))
