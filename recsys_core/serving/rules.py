"""What may be recommended: rules over the catalogue, and caps over a list."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from recsys_core.data.features import Category, Number, Tags
from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError, refuse_text
from recsys_core.serving.catalogue import TAG, Catalogue

Mask = NDArray[np.bool_]


class Rule(ABC):
    """Says of each item whether it may be recommended. Rules compose: `a & b`, `a | b`, `~a`."""

    @abstractmethod
    def mask(self, catalogue: Catalogue) -> Mask:
        """Which items pass, [I] bool; raises DataError for ids, names and values that the catalogue lacks."""

    def __and__(self, other: Rule) -> Rule:
        return _Both(self, other)

    def __or__(self, other: Rule) -> Rule:
        return ~(~self & ~other)

    def __invert__(self) -> Rule:
        return _Not(self)


@dataclass(frozen=True)
class _Both(Rule):
    first: Rule
    second: Rule

    def mask(self, catalogue: Catalogue) -> Mask:
        return self.first.mask(catalogue) & self.second.mask(catalogue)


@dataclass(frozen=True)
class _Not(Rule):
    rule: Rule

    def mask(self, catalogue: Catalogue) -> Mask:
        return ~self.rule.mask(catalogue)


@dataclass(frozen=True)
class Only(Rule):
    """The items of these external ids; `~Only(ids)` bans them."""

    ids: Sequence[str]

    def mask(self, catalogue: Catalogue) -> Mask:
        passed = np.zeros(len(catalogue), bool)
        passed[catalogue.ids.encode(self.ids)] = True
        return passed


@dataclass(frozen=True)
class Has(Rule):
    """Items that have at least one of these values in a category or tags feature; `tag` is the catalogue's tags.

    All of several: `Has("tag", ["War"]) & Has("tag", ["Drama"])`; none of them: `~Has("tag", ["War", "Drama"])`.
    """

    feature: str
    values: Sequence[str]

    def mask(self, catalogue: Catalogue) -> Mask:
        refuse_text(f"values of {self.feature!r}", self.values)
        feature = catalogue.feature(self.feature)
        if isinstance(feature, Number):
            raise DataError(f"item feature {self.feature!r} is a number; ask for a range such as Between({self.feature!r}, 0, 1)")
        if unknown := [v for v in self.values if v not in feature.vocabulary]:
            near = get_close_matches(unknown[0], feature.vocabulary.ids, n=3, cutoff=0.0)
            raise DataError(
                f"no item has {self.feature} {unknown[0]!r}; the nearest of its {len(feature.vocabulary)} values: {', '.join(near)}"
            )
        wanted = feature.vocabulary.encode(self.values)
        if isinstance(feature, Category):
            return np.isin(feature.codes, wanted)
        passed = np.zeros(len(catalogue), bool)
        passed[feature.codes.row_ids[np.isin(feature.codes.values, wanted)]] = True
        return passed


@dataclass(frozen=True)
class Between(Rule):
    """Items with low <= number <= high; one whose number is missing does not pass."""

    feature: str
    low: float = -np.inf
    high: float = np.inf

    def mask(self, catalogue: Catalogue) -> Mask:
        feature = catalogue.feature(self.feature)
        if not isinstance(feature, Number):
            raise DataError(f"item feature {self.feature!r} is no number; ask for values, such as Has({self.feature!r}, ['...'])")
        return (feature.values >= self.low) & (feature.values <= self.high)


@dataclass(frozen=True)
class Titled(Rule):
    """Items whose title holds a text, capitals or not."""

    text: str

    def mask(self, catalogue: Catalogue) -> Mask:
        wanted = self.text.casefold()
        return np.fromiter((wanted in title.casefold() for title in catalogue.titles), bool, len(catalogue))


@dataclass(frozen=True)
class AtMost:
    """At most `count` items of a list share a value of a feature, so a list is diverse; items without values are free.

    The list is read from its top, and an item that would be one too many is passed over.
    """

    count: int
    feature: str = TAG

    def __post_init__(self) -> None:
        if self.count < 1:
            raise DataError(f"AtMost({self.count}, {self.feature!r}) leaves nothing; the count must be at least 1")

    def codes(self, catalogue: Catalogue) -> list[Ints]:
        """The values [*] of each item as codes; raises DataError for a number."""
        feature = catalogue.feature(self.feature)
        if isinstance(feature, Number):
            raise DataError(f"item feature {self.feature!r} is a number, which has no values to count; cap a category or tags")
        if isinstance(feature, Tags):
            return [feature.codes[row] for row in range(len(feature))]
        return list(np.split(feature.codes[feature.codes >= 0], np.cumsum(feature.codes >= 0)[:-1]))


def capped(ranked: Iterable[int], caps: Sequence[tuple[int, list[Ints]]], k: int) -> list[int]:
    """The first k items of a ranking that keep every cap, given as a count and the values of each item."""
    taken: list[int] = []
    seen: list[Counter[int]] = [Counter() for _ in caps]
    for item in ranked:
        if len(taken) == k:
            break
        if all(seen[n][int(code)] < count for n, (count, codes) in enumerate(caps) for code in codes[item]):
            taken.append(item)
            for n, (_, codes) in enumerate(caps):
                seen[n].update(map(int, codes[item]))
    return taken


_RULE = re.compile(r"\s*([^=!~]+?)\s*(=|!=|~)\s*(.+?)\s*")
_RANGE = re.compile(r"(-?[\d.]*)\.\.(-?[\d.]*)")


def parse_rule(text: str) -> Rule:
    """A rule as a person types it.

    `tag=Comedy,Drama`: one of them; `tag!=War`: none of them; `year=1990..1995`, `year=1990..`: a range; `title~star wars`: in the title.
    Raises DataError for other forms.
    """
    found = _RULE.fullmatch(text)
    if not found or (found[2] == "~" and found[1] != "title"):
        raise DataError(f"rule {text!r} is not of the form tag=Comedy,Drama, tag!=War, year=1990..1995 or title~star")
    name, sign, value = found.groups()
    if sign == "~":
        return Titled(value)
    rule: Rule
    if bounds := _RANGE.fullmatch(value):
        try:
            rule = Between(name, float(bounds[1] or "-inf"), float(bounds[2] or "inf"))
        except ValueError:
            raise DataError(f"rule {text!r} has bounds that are no numbers; write a range as 1990..1995") from None
    else:
        rule = Has(name, [part.strip() for part in value.split(",")])
    return rule if sign == "=" else ~rule
