"""Personas from a training log alone: activity, conformity and diversity tiers, and tastes in words.

The three traits follow Agent4Rec (Zhang et al. 2024, arXiv 2310.10108, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.types import PageItem, Persona
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Floats, Ints

SMOOTHING = 5.0
"""Pseudo-interactions that pull a small count towards the population: an item or a genre seen five times is half believed."""


@dataclass(frozen=True, eq=False)
class LogProfile:
    """Population statistics of one training log, each computed once.

    Where a log has no ratings, every interaction counts as a rating of 1.
    """

    log: Dataset

    @cached_property
    def rating(self) -> Floats:
        """[T] float32."""
        return np.ones(len(self.log), np.float32) if self.log.rating is None else self.log.rating

    @cached_property
    def mean(self) -> float:
        """Mean rating of the log."""
        return float(self.rating.mean())

    @cached_property
    def item_mean(self) -> NDArray[np.float64]:
        """Mean rating an item [I], shrunk towards the log's mean."""
        total = np.bincount(self.log.item, self.rating - self.mean, len(self.log.items))
        return np.asarray(self.mean + total / (self.log.item_counts + SMOOTHING))

    @cached_property
    def user_counts(self) -> Ints:
        """Interactions a user [U]."""
        return np.diff(self.log.offsets)

    @cached_property
    def user_mean(self) -> NDArray[np.float64]:
        """Mean of (rating - item mean) a user [U], shrunk towards 0, plus the log's mean."""
        total = np.bincount(self.log.user, self.rating - self.item_mean[self.log.item], len(self.log.users))
        return np.asarray(self.mean + total / (self.user_counts + SMOOTHING))

    @cached_property
    def tag_names(self) -> tuple[str, ...]:
        """All tags, sorted."""
        return tuple(sorted({t for tags in self.log.tags for t in tags}))

    @cached_property
    def item_tags(self) -> Floats:
        """Multi-hot tags [I, G] float32; G is 0 where the log has none."""
        column = {t: g for g, t in enumerate(self.tag_names)}
        matrix = np.zeros((len(self.log.items), len(column)), np.float32)
        for item, tags in enumerate(self.log.tags):
            matrix[item, [column[t] for t in tags]] = 1
        return matrix

    @cached_property
    def user_tags(self) -> NDArray[np.float64]:
        """How often each user met each tag [U, G]."""
        return _sum_by(self.log.user, self.item_tags[self.log.item], len(self.log.users))

    @cached_property
    def affinity(self) -> NDArray[np.float64]:
        """Log ratio of a user's tag shares to the population's [U, G], smoothed: above 0 is more than others take."""
        if not self.tag_names:
            return np.zeros((len(self.log.users), 0))
        population = self.user_tags.sum(0) / max(self.user_tags.sum(), 1)
        shares = (self.user_tags + SMOOTHING * population) / (self.user_tags.sum(1, keepdims=True) + SMOOTHING)
        return np.asarray(np.log(np.maximum(shares, 1e-9) / np.maximum(population, 1e-9)))

    @cached_property
    def tiers(self) -> dict[str, Ints]:
        """Activity, conformity and diversity [U] in 1 .. 3, thirds of the population by rank."""
        deviation = np.bincount(self.log.user, (self.rating - self.item_mean[self.log.item]) ** 2, len(self.log.users))
        # With few ratings the mean squared deviation is noise, so it too is shrunk.
        prior = float(deviation.sum() / max(len(self.log), 1))
        conformity = -(deviation + SMOOTHING * prior) / (self.user_counts + SMOOTHING)
        diversity = (self.user_tags > 0).sum(1)
        return {"activity": _thirds(self.user_counts), "conformity": _thirds(conformity), "diversity": _thirds(diversity)}

    def page_items(self, items: Iterable[int]) -> tuple[PageItem, ...]:
        """The given items (dense ids) as slots of a page, numbered from 1."""
        log = self.log
        return tuple(
            PageItem(n, i, log.title(i), log.tags[i] if log.tags else (), float(self.item_mean[i]), int(log.item_counts[i]))
            for n, i in enumerate(map(int, items), 1)
        )


def build_personas(profile: LogProfile, users: Ints, favourites: int = 5, recent: int = 12) -> list[Persona]:
    """Personas of the given users [N] (dense ids), from the log behind `profile` and nothing else."""
    log = profile.log
    personas = []
    for u in (int(u) for u in users):
        rows = log.order[log.offsets[u] : log.offsets[u + 1]]
        rating, items = profile.rating[rows], log.item[rows]
        # Best rated first, the later of two equals first.
        best = np.lexsort((-np.arange(len(rows)), -rating))[:favourites]
        liked, disliked = _tastes(profile, u, items, rating)
        personas.append(
            Persona(
                user=u,
                activity=int(profile.tiers["activity"][u]),
                conformity=int(profile.tiers["conformity"][u]),
                diversity=int(profile.tiers["diversity"][u]),
                liked_tags=liked,
                disliked_tags=disliked,
                liked_titles=tuple(log.title(int(i)) for i in items[best]),
                recent_titles=tuple(log.title(int(i)) for i in items[-recent:]),
                mean_rating=round(float(rating.mean()) if len(rating) else profile.mean, 2),
                rating_std=round(float(rating.std()) if len(rating) else 0.0, 2),
            )
        )
    return personas


def _tastes(profile: LogProfile, user: int, items: Ints, rating: Floats) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Up to three tags the user takes more often or rates higher than the population does, and up to two at the other end."""
    if not profile.tag_names or not len(items):
        return (), ()
    tags = profile.item_tags[items]
    expected = tags.sum() * profile.user_tags.sum(0) / max(profile.user_tags.sum(), 1)
    excess = (tags.sum(0) - expected) / np.sqrt(expected + 1)
    residual = rating - profile.item_mean[items]
    rated = (residual[:, None] * tags).sum(0) / np.sqrt(tags.sum(0) + SMOOTHING)
    taste = excess + rated
    order = np.argsort(-taste, kind="stable")
    liked = [g for g in order[:3] if taste[g] > 0]
    disliked = [g for g in order[::-1][:2] if taste[g] < 0]
    return tuple(profile.tag_names[g] for g in liked), tuple(profile.tag_names[g] for g in disliked)


def _thirds(values: NDArray) -> Ints:
    """Tier 1 .. 3 by the middle of each value's rank, so equal values share a tier."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return (1 + np.minimum(middle[index] * 3 // max(len(values), 1), 2)).astype(np.int64)


def _sum_by(group: Ints, rows: NDArray, groups: int) -> NDArray[np.float64]:
    """Sums rows [T, G] into groups [groups, G]."""
    total = np.zeros((groups, rows.shape[1]))
    np.add.at(total, group, rows)
    return total
