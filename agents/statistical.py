"""Agents without a language model: taste, ratings and feelings drawn from models of the training log, thousands of pages a second."""

from __future__ import annotations

import numpy as np

from agents.ratings import RatingModel, feeling_about, fit_ratings
from agents.seeding import stream
from agents.taste import TasteModel, fit_taste
from agents.types import Decision, PageContext, Watch
from recsys_core.data.dataset import Dataset


class StatisticalPolicy:
    """Takes each item with its fitted probability, rates what it took, feels as it rated.

    It never leaves by itself: the session model ends it.
    """

    name = "statistical"

    def __init__(self, taste: TasteModel, ratings: RatingModel) -> None:
        self.taste, self.ratings = taste, ratings

    @classmethod
    def fit(cls, log: Dataset, seed: int = 0, take_rate: float = 0.3) -> StatisticalPolicy:
        """Fits every part on one training log."""
        taste = fit_taste(log, seed, take_rate)
        return cls(taste, fit_ratings(taste.profile))

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        """Vectorized over all items of all pages; draws come from streams keyed by (seed, user, page)."""
        if not contexts:
            return []
        sizes = [len(c.items) for c in contexts]
        users = np.repeat([c.persona.user for c in contexts], sizes)
        items = np.array([i.item for c in contexts for i in c.items], np.int64)
        streams = [stream(c.seed, "statistical", c.persona.user, c.page) for c in contexts]
        uniform = np.concatenate([s.random(n) for s, n in zip(streams, sizes, strict=True)])
        normal = np.concatenate([s.standard_normal(n) for s, n in zip(streams, sizes, strict=True)])
        logits = self.taste.logits(users, items)
        taken = uniform < 1 / (1 + np.exp(-logits))
        ratings = self.ratings.draw(users, items, normal)
        decisions, start = [], 0
        for context, size in zip(contexts, sizes, strict=True):
            page = slice(start, start + size)
            start += size
            decisions.append(_decision(context, logits[page], taken[page], ratings[page]))
        return decisions


def _decision(context: PageContext, logits: np.ndarray, taken: np.ndarray, ratings: np.ndarray) -> Decision:
    """Numbers of the page's items back into one decision."""
    watched = tuple(
        Watch(item.number, float(rating), feeling_about(float(rating), context.persona))
        for item, took, rating in zip(context.items, taken, ratings, strict=True)
        if took
    )
    overall = feeling_about(float(np.mean([w.rating for w in watched])), context.persona) if watched else "bored"
    return Decision(watched, leave=False, feeling=overall, preference=tuple(float(x) for x in logits))
