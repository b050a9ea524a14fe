"""External ids on one side, dense ids on the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from recsys_core.data.jagged import Ints
from recsys_core.errors import DataError, refuse_text


class Vocabulary:
    """A bijection between external ids (strings) and dense ids `0 .. len - 1`.

    Raises DataError for an id that occurs twice and for one that is no text.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        if any(not issubclass(kind, str) for kind in set(map(type, self.ids))):
            wrong = next(i for i in self.ids if not isinstance(i, str))
            raise DataError(f"id {wrong} is of type {type(wrong).__name__}; external ids are text, give '{wrong}'")
        self._index = {external: dense for dense, external in enumerate(self.ids)}
        if len(self._index) != len(self.ids):
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(f"id {twice!r} occurs twice in a vocabulary; external ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, external: object) -> bool:
        return external in self._index

    @property
    def content_hash(self) -> str:
        """SHA-256 of the ids in their order."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def encode(self, external: Sequence[str]) -> Ints:
        """Dense ids [N] int64 of external ids; raises DataError that names the unknown ones, and for one text in place of a list."""
        refuse_text("external ids", external)
        unknown = [e for e in external if e not in self._index]
        if unknown:
            shown = ", ".join(repr(u) for u in unknown[:5])
            raise DataError(f"{len(unknown)} unknown id(s): {shown}; the vocabulary has {len(self)} ids, such as {self.ids[:3]}")
        return np.fromiter((self._index[e] for e in external), np.int64, len(external))

    def decode(self, dense: Iterable[int]) -> list[str]:
        """External ids of dense ids."""
        return [self.ids[int(d)] for d in dense]

    def take(self, dense: Iterable[int]) -> Vocabulary:
        """The vocabulary of some dense ids, in the given order."""
        return Vocabulary(self.decode(dense))
