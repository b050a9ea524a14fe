"""An LLM ranker as a recommender: it puts the best of a first recommender in order, and leaves the rest below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from agents.chat import ChatClient, connect
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.models import create
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommendations, Recommender
from workbench.config import ModelSettings
from workbench.prompts.channel import Channel, open_channel
from workbench.prompts.ranked import Ranked, Ranker
from workbench.prompts.rankers import default_template, ranker_for
from workbench.prompts.starting import STARTING
from workbench.prompts.tasks import Item, Row
from workbench.prompts.templates import Template
from workbench.prompts.versions import from_toml, resolve, to_toml
from workbench.recommenders import folder_of, hash_of, ready

if TYPE_CHECKING:
    from workbench.store import Store

_FIELDS = {"tags"}
"""What a dataset knows of an item beside its title."""


class LLMRankerConfig(ModelConfig):
    """Settings of LLMRanker."""

    model: str = "embedded"
    """Chat model, as `agents.chat.connect` takes it."""
    template: str = ""
    """A template as `template_of` finds it, kept as TOML; empty for the default of the model. The one item field there is is `tags`."""
    first_stage: str = "itemknn"
    """Recommender whose best are put in order, by name, or the folder of one that was trained on the same log."""
    first_config: dict[str, Any] = Field(default_factory=dict)
    """Its own settings."""
    first_sha256: str = Field("", validate_default=True)
    """Of a trained first stage, filled in by itself; where it is given, the folder must hold this very model."""
    candidates: int = Field(20, ge=1)
    """How many of its best."""
    repetitions: int = Field(1, ge=1)
    """Orders of the candidates that a model which reads their order is shown."""
    seed: int = 0
    """Of these orders."""

    @field_validator("first_sha256")
    @classmethod
    def _unchanged(cls, expected: str, known: ValidationInfo) -> str:
        """The hash of what the folder holds: a stored configuration must say all, so that a run that goes on refuses another model."""
        folder = folder_of(ModelSettings(name=known.data.get("first_stage", "itemknn")))
        return "" if folder is None else hash_of(folder, expected)

    @field_validator("template")
    @classmethod
    def _whole(cls, template: str) -> str:
        """The template itself, not its name: a stored configuration must say all, whatever becomes of files and names."""
        channel = open_channel()
        return template and to_toml(template_of(template, channel.store if channel else None))


class LLMRanker(Recommender):
    """Ranks `config.candidates` items of a first recommender by a language model, among the items that a history lacks.

    Scores: 1, 2, .. upwards for the candidates, tied ones in the first recommender's order, which is thus what an unusable answer leaves;
    0 and below for all other items, in that order too. Questions go through the open channel (see `channel.ranking_through`), or through
    one of the ranker's own with answers in memory. Needs item titles.
    """

    name = "llm"
    Config = LLMRankerConfig
    config: LLMRankerConfig
    first: Recommender
    titles: tuple[str, ...]
    tags: tuple[str, ...]

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__(config)
        self._channel = Channel()

    @property
    def training(self) -> str:
        template = self._template()
        by = f" by {template.name} {template.version}" if template else ""
        return f"none; re-ranks {self.config.candidates} of {self.config.first_stage}{by}"

    def recommend(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        """As every recommender's, where what is excluded takes no candidate's place: the best of what is left are ranked."""
        depth = self._depth(k)
        lists = self.first.recommend(histories, depth, exclude)
        rows = self._rows(histories.items, lists.items)
        return _put_first(lists, _orders(rows, self._ranked(rows)), k)

    async def recommend_async(self, histories: Histories, k: int, exclude: Jagged | None = None) -> Recommendations:
        """As `recommend`; the questions are asked in the caller's event loop, and end with who is cancelled."""
        depth = self._depth(k)
        lists = await self.first.recommend_async(histories, depth, exclude)
        rows = self._rows(histories.items, lists.items)
        channel = open_channel() or self._channel
        ranked = await channel.rank_async(self._connected, self._ranker, list(rows.values())) if rows else []
        return _put_first(lists, _orders(rows, ranked), k)

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        if not dataset.titles or not any(dataset.titles):
            raise DataError(f"dataset {dataset.name!r} has no item titles, which {self.name} reads; give its items titles")
        if self.config.first_stage == self.name:
            raise DataError(f"first_stage is {self.name!r} itself; name another recommender")
        template = self._template()
        if template and (unknown := sorted(set(template.fields) - _FIELDS)):
            raise DataError(f"template {template.name!r} shows the field {unknown[0]!r}; items of a dataset have tags only, show these")
        self.titles = dataset.titles
        self.tags = tuple(", ".join(tags) for tags in dataset.tags or ((),) * len(self.titles))
        stage = ModelSettings(name=self.config.first_stage, config=self.config.first_config)
        self.first = ready(stage, dataset, progress, options)
        if self.first.trained_on["log"] != dataset.content_hash:
            raise DataError(
                f"first_stage {self.config.first_stage} was trained on another log than the one that {self.name} is used on, and may have "
                "seen what is held out; train it on the training part, or name a recommender"
            )

    def _score(self, histories: Histories) -> NDArray:
        scores = _from_zero_down(self.first.score(histories))
        rows = self._rows(histories.items, self.first.recommend(histories, self.config.candidates).items)
        for user, order in _orders(rows, self._ranked(rows)).items():
            scores[user, order] = np.arange(len(order), 0, -1)
        return scores

    def _depth(self, k: int) -> int:
        """How many items of the first recommender k of ours take."""
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 item")
        self._catalogue()
        return max(k, self.config.candidates)

    def _rows(self, histories: Jagged, best: Ints) -> dict[int, Row]:
        """What is to be ranked, by user, of the first recommender's lists [B, k], -1 where they end; users with none are left out."""
        offers = {user: [int(i) for i in items if i >= 0] for user, items in enumerate(best[:, : self.config.candidates])}
        return {user: self._row([int(i) for i in histories[user]], offered) for user, offered in offers.items() if offered}

    def _ranked(self, rows: Mapping[int, Row]) -> list[Ranked]:
        channel = open_channel() or self._channel
        return channel.rank(self._connected, self._ranker, list(rows.values())) if rows else []

    def _connected(self, **settings: Any) -> ChatClient:
        return connect(self.config.model, **settings)

    def _row(self, history: list[int], offered: list[int]) -> Row:
        # A user's place in the batch says nothing of them, so the history names the row.
        return Row("-".join(map(str, history)), tuple(map(self._item, history)), tuple(map(self._item, offered)), {})

    def _item(self, item: int) -> Item:
        return Item(str(item), self.titles[item], {"tags": self.tags[item]})

    def _ranker(self, client: ChatClient) -> Ranker:
        template = self._template() or default_template(client)
        return ranker_for(client, template, repetitions=self.config.repetitions, seed=self.config.seed)

    def _template(self) -> Template | None:
        return from_toml(self.config.template) if self.config.template else None

    def _state(self) -> dict[str, NDArray]:
        return self.first._state()

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.first._load_state(state)

    def _meta(self) -> dict[str, Any]:
        first = {"name": self.first.name, "config": self.first.config.model_dump(mode="json"), "meta": self.first._meta()}
        return {"titles": list(self.titles), "tags": list(self.tags), "first": first}

    def _load_meta(self, meta: dict[str, Any]) -> None:
        self.titles, self.tags = tuple(meta["titles"]), tuple(meta["tags"])
        self.first = create(meta["first"]["name"], **meta["first"]["config"])
        self.first.items, self.first.n_users = Vocabulary(meta["items"]), meta["n_users"]
        self.first._load_meta(meta["first"]["meta"])


def template_of(key: str, store: Store | None = None) -> Template:
    """The template that a person means: TOML itself, or what `versions.resolve` finds; without a store, a file or a starting template.

    Raises DataError for what is no template, and UnknownNameError for a name that nobody knows.
    """
    if "=" in key:
        return from_toml(key)
    if store is None and key not in STARTING and not key.endswith(".toml"):
        raise UnknownNameError(f"template {key!r} is not built in, and no store is open to look it up; built in are {', '.join(STARTING)}")
    return resolve(store, key)  # type: ignore[arg-type]  # files and starting templates need no store


def _orders(rows: Mapping[int, Row], ranked: Sequence[Ranked]) -> dict[int, list[int]]:
    """Candidates by user, best first; tied ones in the order of their row."""
    orders = {}
    for (user, row), result in zip(rows.items(), ranked, strict=True):
        place = {item.id: n for n, item in enumerate(row.candidates)}
        orders[user] = [int(name) for group in result.ranking for name in sorted(group, key=place.__getitem__)]
    return orders


def _put_first(lists: Recommendations, orders: Mapping[int, list[int]], k: int) -> Recommendations:
    """The k best of lists that begin with the same items in another order."""
    items, scores = lists.items.copy(), _from_zero_down(lists.scores)
    for user, order in orders.items():
        items[user, : len(order)] = order
        scores[user, : len(order)] = np.arange(len(order), 0, -1)
    return Recommendations(items[:, :k], scores[:, :k])


def _from_zero_down(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores [B, k] less each row's best finite one; what is not listed, at -inf, stays there."""
    listed = np.isfinite(scores)
    top = np.max(scores, axis=1, keepdims=True, where=listed, initial=-np.inf)
    moved: NDArray[np.float32] = np.where(listed, scores - np.where(np.isfinite(top), top, 0.0), -np.inf)
    return moved
