"""Recommenders whose score is an inner product: what an index, an export and new items need of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError
from recsys_core.recommender import Histories, Recommender

Value = str | float | Sequence[str] | None
"""A feature's value as people write it: a category, a number, tags, or None where it is missing."""


class VectorRecommender(Recommender):
    """Base of recommenders with score = <query vector, item vector>. A subclass gives both, and says how an item is added."""

    reads_text: ClassVar[bool] = False
    """Whether an item's vector is made of its text, so that `text_vectors` knows that of any text."""

    @abstractmethod
    def query_vectors(self, histories: Histories) -> Tensor:
        """What is asked for, [B, D] float32 on the model's device."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """What is there, [I, D] float32 on the model's device."""

    @abstractmethod
    def id_vectors(self) -> Tensor:
        """What training learned of each item beside its features, [I, E] float32; `add_items` takes such vectors."""

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """What `add_items` takes for items with such texts (see `recsys_core.data.dataset.item_text`), [N, E] float32."""
        raise DataError(f"{self.name} reads no text; a text map learns to guess its item vectors from text")

    @property
    def item_features(self) -> tuple[str, ...]:
        """Names of the item features that the model reads."""
        return ()

    @torch.inference_mode()
    def _score(self, histories: Histories) -> Tensor:
        return self.query_vectors(histories) @ self.item_vectors().T

    def add_items(self, ids: Sequence[str], vectors: Tensor, features: Sequence[Mapping[str, Value]]) -> None:
        """Appends N items that training never met; dense ids of the others stay.

        ids: their external ids, new ones; vectors: [N, E] as `id_vectors` has them; features: each item's values by name. A value that is
        absent, or that training never saw, is missing; a name that the model does not read is passed over. Raises DataError for an id
        twice.
        """
        items = Vocabulary([*self._catalogue().ids, *ids])
        self._append(vectors.to(self.id_vectors()), features)
        self.items = items

    @abstractmethod
    def _append(self, vectors: Tensor, features: Sequence[Mapping[str, Value]]) -> None: ...
