"""A recommender as a place to be in: pages of fresh items, refreshed after every page by what was taken, never showing an item twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.persona import LogProfile
from agents.types import PageItem
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.recommender import Histories, Recommender
from simulators.events import Exposure, PageRecord


@dataclass(frozen=True)
class Page:
    """What one user is shown: slots in display order and the exposure of each, with score and propensity."""

    user: int
    number: int
    items: tuple[PageItem, ...]
    exposures: tuple[Exposure, ...]


class RecommenderEnvironment:
    """Serves pages of one recommender to a group of users, as one batch a step.

    `reset` starts the sessions, from stored pages where there are any; `step` takes the items each user took and gives the next pages.
    A user's list is a function of their training history, what they took and what they were shown: no clock, no shared state.
    turn: shared by all environments of a recommender, which is asked for one batch at a time, while the event loop goes on.
    """

    def __init__(self, profile: LogProfile, recommender: Recommender, page_size: int, turn: asyncio.Lock) -> None:
        if page_size < 1:
            raise DataError(f"page_size is {page_size}; a page needs at least 1 item")
        self.profile, self.recommender, self.page_size, self._turn = profile, recommender, page_size, turn
        self._sequences = profile.log.sequences()
        self._history: dict[int, list[int]] = {}
        self._shown: dict[int, list[int]] = {}
        self._pages: dict[int, int] = {}

    async def reset(self, users: Sequence[int], stored: Mapping[int, Sequence[PageRecord]]) -> list[Page]:
        """Begins or resumes the sessions of `users` and returns their next pages, in order.

        A page without items means that the catalogue ran out.
        """
        for user in users:
            pages = stored.get(user, ())
            self._history[user] = [*map(int, self._sequences[user]), *(a.item for p in pages for a in p.actions)]
            self._shown[user] = [e.item for p in pages for e in p.exposures]
            self._pages[user] = len(pages)
        return await self._serve(users)

    async def step(self, pages: Sequence[Page], taken: Sequence[Sequence[int]]) -> list[Page]:
        """Advances the users of `pages` (those that go on), given the dense ids each took, and returns their next pages."""
        for page, items in zip(pages, taken, strict=True):
            self._history[page.user] += items
            self._shown[page.user] += [e.item for e in page.exposures]
            self._pages[page.user] = page.number + 1
        return await self._serve([p.user for p in pages])

    def history(self, user: int) -> tuple[int, ...]:
        """Dense item ids: the training history, then what was taken in this session."""
        return tuple(self._history[user])

    async def _serve(self, users: Sequence[int]) -> list[Page]:
        if not users:
            return []
        histories = Histories.of([self._history[u] for u in users], np.array(users, np.int64))
        banned = Jagged.from_rows([np.unique([*self._history[u], *self._shown[u]]) for u in users])
        async with self._turn:
            lists = await self.recommender.recommend_async(histories, self.page_size, banned)
        return [self._page(u, items, scores) for u, items, scores in zip(users, lists.items, lists.scores, strict=True)]

    def _page(self, user: int, items: np.ndarray, scores: np.ndarray) -> Page:
        found = items >= 0
        shown = self.profile.page_items(items[found])
        exposures = tuple(
            Exposure(n, slot.item, float(score), 1.0) for n, (slot, score) in enumerate(zip(shown, scores[found], strict=True))
        )
        return Page(user, self._pages[user], shown, exposures)
