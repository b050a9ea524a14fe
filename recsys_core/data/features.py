"""What a log says about users, items and interactions beside who took what and when; declared once, read by any model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.jagged import Ints, Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError


class Hash(Protocol):
    """A running digest, as hashlib makes them."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes."""


OWNERS = ("user", "item", "interaction")


@dataclass(frozen=True, eq=False)
class Category:
    """One of a vocabulary's values a row (a sparse feature), such as a brand. codes: [N] int64, -1 where it is missing."""

    name: str
    vocabulary: Vocabulary
    codes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Ints) -> Category:
        """The given rows; row -1 has the value missing."""
        return replace(self, codes=np.append(self.codes, -1)[rows])


@dataclass(frozen=True, eq=False)
class Tags:
    """Any number of a vocabulary's values a row, in order (a multi-valued or sequence feature), such as genres. codes: N rows."""

    name: str
    vocabulary: Vocabulary
    codes: Jagged

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Ints) -> Tags:
        """The given rows; row -1 has no tags."""
        return replace(self, codes=Jagged(self.codes.values, np.append(self.codes.offsets, len(self.codes.values))).take(rows))


@dataclass(frozen=True, eq=False)
class Number:
    """A number a row, such as a price. values: [N] float32, NaN where it is missing; models see it standardized by `mean` and `std`."""

    name: str
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Ints) -> Number:
        """The given rows; row -1 has the value missing."""
        return replace(self, values=np.append(self.values, np.float32(np.nan))[rows])

    @cached_property
    def mean(self) -> float:
        """Mean of the values present; 0 where there are none."""
        present = self.values[~np.isnan(self.values)]
        return float(present.mean()) if len(present) else 0.0

    @cached_property
    def std(self) -> float:
        """Standard deviation of the values present; 1 where it would be 0."""
        present = self.values[~np.isnan(self.values)]
        return (float(present.std()) if len(present) else 0.0) or 1.0


Feature = Category | Tags | Number


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a dataset. user: [U] rows each; item: [I] rows each; interaction: [T] rows each, in the log's file order."""

    user: tuple[Feature, ...] = ()
    item: tuple[Feature, ...] = ()
    interaction: tuple[Feature, ...] = ()

    def check(self, users: int, items: int, interactions: int) -> None:
        """Raises DataError for a name used twice by one owner, a feature of another length, or a code outside its vocabulary."""
        for owner, features, rows in (
            ("user", self.user, users),
            ("item", self.item, items),
            ("interaction", self.interaction, interactions),
        ):
            names = [f.name for f in features]
            if len(set(names)) < len(names):
                raise DataError(f"{owner} features {names} use a name twice; names must be unique")
            for feature in features:
                if len(feature) != rows:
                    raise DataError(f"{owner} feature {feature.name!r} has {len(feature)} rows, expected {rows}")
                if isinstance(feature, Number):
                    continue
                codes, lowest = (feature.codes, -1) if isinstance(feature, Category) else (feature.codes.values, 0)
                if len(codes) and not (codes.min() >= lowest and codes.max() < len(feature.vocabulary)):
                    raise DataError(
                        f"{owner} feature {feature.name!r} holds codes {codes.min()} .. {codes.max()}, "
                        f"its vocabulary allows {lowest} .. {len(feature.vocabulary) - 1}"
                    )

    def of_interactions(self, rows: Ints) -> Features:
        """The same users and items with other interactions: the given rows [*] of the present ones, -1 for a new one."""
        return replace(self, interaction=tuple(f.take(rows) for f in self.interaction))

    def of_owners(self, users: Ints, items: Ints) -> Features:
        """The same interactions with other users and items: the given rows of the present ones."""
        return replace(self, user=tuple(f.take(users) for f in self.user), item=tuple(f.take(items) for f in self.item))

    def update(self, digest: Hash) -> None:
        """Adds names, kinds, vocabularies and values to a hash; adds nothing where there are no features."""
        for owner in OWNERS:
            for feature in getattr(self, owner):
                vocabulary = () if isinstance(feature, Number) else feature.vocabulary.ids
                digest.update(json.dumps([owner, type(feature).__name__, feature.name, vocabulary]).encode())
                if isinstance(feature, Number):
                    digest.update(feature.values.tobytes())
                elif isinstance(feature, Category):
                    digest.update(feature.codes.tobytes())
                else:
                    digest.update(feature.codes.values.tobytes() + feature.codes.offsets.tobytes())


def plain_values(feature: Feature) -> NDArray:
    """One value an interaction [T]: codes int64 or numbers float32; raises DataError for tags, of which there may be many."""
    if isinstance(feature, Tags):
        raise DataError(f"interaction feature {feature.name!r} is of kind tags; an interaction has one value of each, make it a category")
    return feature.codes if isinstance(feature, Category) else feature.values


def missing(column: NDArray) -> float:
    """What stands for a missing value in a column of `plain_values`."""
    return -1 if column.dtype == np.int64 else float("nan")
