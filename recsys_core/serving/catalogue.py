"""What can be recommended: external ids, titles, features and tags, of items that training met and of later ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from recsys_core.data.dataset import Dataset, item_text
from recsys_core.data.features import Category, Feature, Number, Tags
from recsys_core.data.jagged import Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, refuse_text, unknown_name
from recsys_core.files import atomic_file
from recsys_core.vectors import Value

TAG = "tag"
"""The name under which an item's tags are read."""
_KINDS: dict[type[Feature], str] = {Category: "category", Tags: "tags", Number: "number"}


@dataclass(frozen=True)
class NewItem:
    """An item that came after training. features: values by the names of the dataset's item features; one left out is missing."""

    id: str
    title: str = ""
    tags: Sequence[str] = ()
    features: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """I items by dense id.

    titles: [I] one line of text each; features: [I] rows each, tags among them under the name `tag`; counts: [I] int64 interactions in
    the log that the service was made from; trained: the first so many items were there in training.
    """

    ids: Vocabulary
    titles: tuple[str, ...]
    features: tuple[Feature, ...]
    counts: Ints
    trained: int

    @classmethod
    def of(cls, dataset: Dataset) -> Catalogue:
        """The items of a dataset."""
        tags = () if not dataset.tags or _named(dataset.features.item, TAG) else (_feature("tags", TAG, dataset.tags),)
        titles = dataset.titles or dataset.items.ids
        return cls(dataset.items, titles, (*tags, *dataset.features.item), dataset.item_counts, len(dataset.items))

    def __len__(self) -> int:
        return len(self.ids)

    def feature(self, name: str) -> Feature:
        """A feature by name; raises UnknownNameError with the nearest and all names."""
        found = _named(self.features, name)
        if found is None:
            raise unknown_name("item feature", name, [f.name for f in self.features])
        return found

    def texts(self, rows: Iterable[int]) -> list[str]:
        """What a text encoder reads of each item; see `item_text`."""
        tags = _named(self.features, TAG)
        words = _values(tags) if tags else [()] * len(self)
        return [item_text(self.titles[r], words[r]) for r in rows]  # type: ignore[arg-type]

    def extended(self, items: Sequence[NewItem]) -> Catalogue:
        """The catalogue with further items behind the present ones; tags and categories never met before join their feature.

        Raises DataError for an id twice and for a value of the wrong kind, UnknownNameError for a feature that the catalogue lacks.
        """
        for item in items:
            refuse_text(f"tags of new item {item.id!r}", item.tags)
        given: list[dict[str, Value]] = [{**({TAG: tuple(i.tags)} if i.tags else {}), **i.features} for i in items]
        for name in {name for values in given for name in values}:
            self.feature(name)
        features = tuple(_feature(_kind(f), f.name, [*_values(f), *(values.get(f.name) for values in given)]) for f in self.features)
        return replace(
            self, ids=Vocabulary([*self.ids.ids, *(i.id for i in items)]), titles=(*self.titles, *(i.title or i.id for i in items)),
            features=features, counts=np.append(self.counts, np.zeros(len(items), np.int64)),
        )  # fmt: skip

    def save(self, file: Path) -> None:
        """Writes one JSON document."""
        features = [{"name": f.name, "kind": _kind(f), "values": _values(f)} for f in self.features]
        facts = {"ids": self.ids.ids, "titles": self.titles, "features": features, "counts": self.counts.tolist(), "trained": self.trained}
        with atomic_file(file) as out:
            out.write(json.dumps(facts).encode())

    @classmethod
    def load(cls, file: Path) -> Catalogue:
        """Reads what `save` wrote."""
        facts = json.loads(file.read_text())
        features = tuple(_feature(f["kind"], f["name"], f["values"]) for f in facts["features"])
        counts = np.array(facts["counts"], np.int64)
        return cls(Vocabulary(facts["ids"]), tuple(facts["titles"]), features, counts, facts["trained"])


def _named(features: Iterable[Feature], name: str) -> Feature | None:
    return next((f for f in features if f.name == name), None)


def _kind(feature: Feature) -> str:
    return _KINDS[type(feature)]


def _values(feature: Feature) -> list[Value]:
    """A feature's rows as people write them."""
    if isinstance(feature, Number):
        return [None if np.isnan(v) else float(v) for v in feature.values]
    words = feature.vocabulary.ids
    if isinstance(feature, Category):
        return [None if c < 0 else words[c] for c in feature.codes]
    return [tuple(words[c] for c in feature.codes[r]) for r in range(len(feature))]


def _feature(kind: Literal["category", "tags", "number"] | str, name: str, values: Sequence[Value]) -> Feature:
    """A feature from rows as people write them; raises DataError that names a value of another kind."""
    allowed = {"number": (int, float), "category": (str,), "tags": (list, tuple)}[kind]
    for value in values:
        if value is not None and not isinstance(value, allowed):
            raise DataError(f"item feature {name!r} is of kind {kind} and cannot be {value!r}; give a {_EXAMPLES[kind]}")
    if kind == "number":
        return Number(name, np.array([np.nan if v is None else v for v in values], np.float32))
    bags = [() if v is None else (v,) if isinstance(v, str) else v for v in values]
    vocabulary = Vocabulary(dict.fromkeys(word for bag in bags for word in bag))  # type: ignore[union-attr]
    if kind == "tags":
        return Tags(name, vocabulary, Jagged.from_rows([vocabulary.encode(bag) for bag in bags]))  # type: ignore[arg-type]
    return Category(name, vocabulary, np.array([vocabulary.encode(b)[0] if b else -1 for b in bags], np.int64))  # type: ignore[arg-type]


_EXAMPLES = {"number": "number such as 1.5", "category": "text such as 'blue'", "tags": "list such as ['red', 'blue']"}
