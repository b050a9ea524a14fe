"""The one layer that turns ids and features into vectors, for inputs and for candidates alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.data.features import Category, Feature, Features, Number, Tags
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.vectors import Value

# A feature refines an id's vector; it should not drown it at the start.
_FEATURE_SCALE = 0.5

Schema = Mapping[str, Sequence[Mapping[str, Any]]]
"""What a model must remember of a dataset's features, by owner, ready for JSON (see `feature_schema`)."""


class ItemEmbedding(nn.Module):
    """What a network reads tokens by and is ranked by: vectors of `n_items` items, and of the start token, [*, dim]."""

    n_items: int
    dim: int

    @abstractmethod
    def items(self, rows: Tensor | None = None) -> Tensor:
        """Vectors [N, dim] of dense item ids [N], or of the catalogue."""

    @abstractmethod
    def forward(self, batch: SequenceBatch) -> Tensor:
        """Vectors [T, dim] of a batch's tokens."""


class FeatureTable(nn.Module):
    """Sum of the vectors of a fixed set of rows' features, as [N, dim]; a missing value adds 0.

    rows: how many rows there are; the values live in buffers, so a saved model needs no dataset.
    """

    def __init__(self, schema: Sequence[Mapping[str, Any]], rows: int, dim: int) -> None:
        super().__init__()
        self.schema = schema
        self.parts = nn.ModuleList(_part(spec, dim) for spec in schema)
        for n, spec in enumerate(schema):
            kind = torch.float32 if spec["kind"] == "number" else torch.int64
            shape = (rows, spec["width"]) if spec["kind"] == "tags" else (rows,)
            empty = torch.full(shape, torch.nan if kind == torch.float32 else -1, dtype=kind)
            self.register_buffer(f"values{n}", empty)

    def fill(self, features: Sequence[Feature]) -> None:
        """Takes over the values of a dataset's features, which the schema was made from."""
        for n, feature in enumerate(features):
            self.get_buffer(f"values{n}").copy_(torch.from_numpy(_values(feature)))

    def append(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Adds rows behind the others, given their values by feature name; a value absent or outside the vocabulary is missing."""
        schema = []
        for n, spec in enumerate(self.schema):
            old = self.get_buffer(f"values{n}")
            new = torch.from_numpy(_encoded(spec, [row.get(spec["name"]) for row in rows])).to(old.device)
            if spec["kind"] == "tags":
                width = max(old.shape[1], new.shape[1])
                old, new = (functional.pad(codes, (0, width - codes.shape[1]), value=-1) for codes in (old, new))
                spec = {**spec, "width": width}
            setattr(self, f"values{n}", torch.cat([old, new]))
            schema.append(spec)
        self.schema = schema

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Vectors [N, dim] of the given rows [N], or of all."""
        columns = [self.get_buffer(f"values{n}") for n in range(len(self.parts))]
        return self.of([column if rows is None else column[rows] for column in columns])

    def of(self, columns: Sequence[Tensor]) -> Tensor:
        """Vectors [N, dim] of values given one column a feature: [N] codes or numbers, or [N, width] codes of tags."""
        return torch.stack([part(column) for part, column in zip(self.parts, columns, strict=True)]).sum(0)


class _Codes(nn.Module):
    """The mean vector of the codes [N] or [N, width] that are not -1; 0 where all are."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, dim) * _FEATURE_SCALE * dim**-0.5)

    def forward(self, codes: Tensor) -> Tensor:
        bags = codes if codes.dim() == 2 else codes[:, None]
        present = (bags >= 0).to(self.weight.dtype)
        weights = present / present.sum(1, keepdim=True).clamp(min=1)
        return functional.embedding_bag(bags.clamp(min=0), self.weight, per_sample_weights=weights, mode="sum")


class _Value(nn.Module):
    """A direction times the standardized number [N]; 0 where it is NaN."""

    def __init__(self, mean: float, std: float, dim: int) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.weight = nn.Parameter(torch.randn(dim) * _FEATURE_SCALE * dim**-0.5)

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.std).nan_to_num(0.0)[:, None] * self.weight


def _part(spec: Mapping[str, Any], dim: int) -> nn.Module:
    return _Value(spec["mean"], spec["std"], dim) if spec["kind"] == "number" else _Codes(spec["size"], dim)


def _values(feature: Feature) -> np.ndarray:
    if isinstance(feature, Number):
        return feature.values
    if isinstance(feature, Category):
        return feature.codes
    return _padded(feature.codes)


def _padded(codes: Jagged) -> np.ndarray:
    """Rows of codes as [N, width], -1 behind each."""
    width = int(codes.lengths.max(initial=1))
    padded = np.full((len(codes), width), -1, np.int64)
    padded[codes.row_ids, np.arange(len(codes.values)) - np.repeat(codes.offsets[:-1], codes.lengths)] = codes.values
    return padded


def _encoded(spec: Mapping[str, Any], values: Sequence[Value]) -> np.ndarray:
    """Values as people write them, as a model's column: numbers float32, codes int64 [N], or [N, width] of tags."""
    if spec["kind"] == "number":
        return np.array([np.nan if v is None else v for v in values], np.float32)
    code = {external: n for n, external in enumerate(spec["vocabulary"])}
    if spec["kind"] == "category":
        return np.array([code.get(v, -1) for v in values], np.int64)
    bags = [[v] if isinstance(v, str) else list(v or ()) for v in values]  # type: ignore[arg-type]
    return _padded(Jagged.from_rows([[code[v] for v in bag if v in code] for bag in bags]))


def feature_schema(features: Features) -> dict[str, list[dict[str, Any]]]:
    """What a model must remember of a dataset's features, ready for JSON: name, kind, vocabulary, scale."""
    return {owner: [_spec(f) for f in getattr(features, owner)] for owner in ("user", "item", "interaction")}


def _spec(feature: Feature) -> dict[str, Any]:
    if isinstance(feature, Number):
        return {"name": feature.name, "kind": "number", "mean": feature.mean, "std": feature.std}
    facts = {"name": feature.name, "size": len(feature.vocabulary), "vocabulary": list(feature.vocabulary.ids)}
    if isinstance(feature, Tags):
        return {"kind": "tags", "width": int(feature.codes.lengths.max(initial=1)), **facts}
    return {"kind": "category", **facts}


class TokenEmbedding(ItemEmbedding):
    """Vectors of tokens, with their features, and of candidate items.

    An item's vector is its id's plus its features', as input and as output (tied). The start token's is learned, plus the user's features.
    Interaction features are added to the token of the interaction.
    """

    def __init__(self, n_items: int, n_users: int, dim: int, schema: Schema) -> None:
        super().__init__()
        self.n_items, self.n_users, self.dim, self.schema = n_items, n_users, dim, schema
        self.ids = nn.Embedding(n_items + 1, dim)
        nn.init.normal_(self.ids.weight, std=dim**-0.5)
        self.item_features = FeatureTable(schema["item"], n_items, dim) if schema["item"] else None
        self.user_features = FeatureTable(schema["user"], n_users, dim) if schema["user"] else None
        self.event_features = FeatureTable(schema["interaction"], 0, dim) if schema["interaction"] else None

    def fill(self, features: Features) -> None:
        """Takes over the values of a dataset's features."""
        if self.item_features is not None:
            self.item_features.fill(features.item)
        if self.user_features is not None:
            self.user_features.fill(features.user)

    def append(self, vectors: Tensor, features: Sequence[Mapping[str, Value]]) -> None:
        """Adds N items behind the others: vectors [N, dim] of their ids, and their features' values by name."""
        ids = self.ids.weight.detach()
        # The start token keeps its place behind the last item.
        grown = torch.cat([ids[: self.n_items], vectors, ids[self.n_items :]])
        self.ids = nn.Embedding(len(grown), grown.shape[1], _weight=grown)
        self.n_items += len(vectors)
        if self.item_features is not None:
            self.item_features.append(features)
            self.schema = {**self.schema, "item": self.item_features.schema}

    def items(self, rows: Tensor | None = None) -> Tensor:
        ids = self.ids.weight[: self.n_items] if rows is None else self.ids(rows)
        return ids if self.item_features is None else ids + self.item_features(rows)

    def forward(self, batch: SequenceBatch) -> Tensor:
        x: Tensor = self.ids(batch.tokens)
        start = (batch.tokens == self.n_items)[:, None]
        if self.item_features is not None:
            x = x + self.item_features(batch.tokens.clamp(max=self.n_items - 1)).masked_fill(start, 0.0)
        if self.user_features is not None:
            users = batch.users[batch.rows.clamp(max=batch.size - 1)]
            known = start & (users >= 0)[:, None]
            x = x + self.user_features(users.clamp(min=0)).masked_fill(~known, 0.0)
        if self.event_features is not None:
            x = x + self.event_features.of([self._column(spec, batch) for spec in self.schema["interaction"]])
        return x

    def _column(self, spec: Mapping[str, Any], batch: SequenceBatch) -> Tensor:
        name = spec["name"]
        if name in batch.features:
            return batch.features[name]
        if spec["kind"] == "tags":
            raise DataError(f"interaction feature {name!r} is of kind tags, which no sequence model reads; make it a category")
        filled = torch.nan if spec["kind"] == "number" else -1
        return torch.full_like(batch.tokens, filled, dtype=torch.float32 if spec["kind"] == "number" else torch.int64)
