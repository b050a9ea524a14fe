"""An LLM ranker as a recommender: it puts the best of a first recommender in order, and leaves the rest below."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agents.chat import MemoryCache, ResponseCache, connect
from recsys_core.data.dataset import Dataset
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError
from recsys_core.models import create
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender
from workbench.prompts.rankers import default_template, ranker_for
from workbench.prompts.tasks import Item, Ranking, Row
from workbench.prompts.versions import from_toml

_TIMEOUT = 600.0
"""Seconds a question may take; the embedded model answers those in flight one after another."""


class LLMRankerConfig(ModelConfig):
    """Settings of LLMRanker."""

    model: str = "embedded"
    """Chat model, as `agents.chat.connect` takes it."""
    template: str = ""
    """A template as TOML; empty for the default of the model. Item fields are `tags` and those it names."""
    first_stage: str = "itemknn"
    """Recommender, with its own defaults, whose best are put in order."""
    candidates: int = Field(20, ge=1)
    """How many of its best."""
    repetitions: int = Field(1, ge=1)
    """Orders of the candidates that a model which reads their order is shown."""
    seed: int = 0
    """Of these orders."""


class LLMRanker(Recommender):
    """Ranks `config.candidates` items of a first recommender by a language model, among the items that a history lacks.

    Scores: 1, 2, .. upwards for the candidates, tied ones in the first recommender's order, which is thus what an unusable answer leaves;
    0 and below for all other items, in that order too. Answers are cached in memory, or in `cache` where that is set. Needs item titles.
    """

    name = "llm"
    Config = LLMRankerConfig
    config: LLMRankerConfig
    first: Recommender
    titles: tuple[str, ...]
    tags: tuple[str, ...]

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__(config)
        self.cache: ResponseCache = MemoryCache()

    @property
    def training(self) -> str:
        return f"none; re-ranks {self.config.candidates} of {self.config.first_stage}"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        if not dataset.titles or not any(dataset.titles):
            raise DataError(f"dataset {dataset.name!r} has no item titles, which {self.name} reads; give its items titles")
        if self.config.first_stage == self.name:
            raise DataError(f"first_stage is {self.name!r} itself; name another recommender")
        self.titles = dataset.titles
        self.tags = tuple(", ".join(tags) for tags in dataset.tags or ((),) * len(self.titles))
        self.first = create(self.config.first_stage).fit(dataset, progress, options)

    def _score(self, histories: Histories) -> NDArray:
        first = self.first.score(histories)
        listed = np.isfinite(first)
        top = np.max(first, axis=1, keepdims=True, where=listed, initial=-np.inf)
        scores: NDArray = np.where(listed, first - np.where(np.isfinite(top), top, 0.0), -np.inf)
        taken = histories.items
        open_scores = first.copy()
        open_scores[taken.row_ids, taken.values] = -np.inf
        best = np.argsort(-open_scores, axis=1, kind="stable")[:, : self.config.candidates]
        rows, of = [], []
        for user, offered in enumerate(best):
            places = [int(i) for i in offered if open_scores[user, i] > -np.inf]
            if places:
                history = tuple(self._item(int(i)) for i in taken[user])
                of.append(user)
                # A user's place in the batch says nothing of them, so the history names the row.
                rows.append(Row("-".join(h.id for h in history), history, tuple(map(self._item, places)), {}))
        for user, row, ranking in zip(of, rows, self._ranked(rows), strict=True):
            before = {item.id: place for place, item in enumerate(row.candidates)}
            order = [int(name) for group in ranking for name in sorted(group, key=before.__getitem__)]
            scores[user, order] = np.arange(len(order), 0, -1)
        return scores

    def _ranked(self, rows: list[Row]) -> list[Ranking]:
        """In a thread with an event loop of its own, for the caller may be inside one; a chat client belongs to one loop."""

        async def rank() -> list[Ranking]:
            client = connect(self.config.model, cache=self.cache, timeout=_TIMEOUT)
            template = from_toml(self.config.template) if self.config.template else default_template(client)
            ranker = ranker_for(client, template, repetitions=self.config.repetitions, seed=self.config.seed)
            return [result.ranking for result in await ranker.rank(rows)]

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, rank()).result()

    def _item(self, item: int) -> Item:
        return Item(str(item), self.titles[item], {"tags": self.tags[item]})

    def _state(self) -> dict[str, NDArray]:
        return self.first._state()

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.first._load_state(state)

    def _meta(self) -> dict[str, Any]:
        return {"titles": list(self.titles), "tags": list(self.tags), "first": self.first._meta()}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self.titles, self.tags = tuple(meta["titles"]), tuple(meta["tags"])
        self.first = create(self.config.first_stage)
        self.first.items, self.first.n_users = Vocabulary(meta["items"]), meta["n_users"]
        self.first._load_meta(meta["first"])
