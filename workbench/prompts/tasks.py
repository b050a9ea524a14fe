"""A ranking task: what somebody took before, what is on offer now, and what was chosen of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recsys_core.errors import DataError
from workbench.prompts.sealed import SealedTest

Ranking = tuple[tuple[str, ...], ...]
"""Candidate ids in groups, best group first; those of one group are tied. Every candidate of a row stands in exactly one group."""
SIMULATED = "simulated/"
"""How the ids of rows begin that no person decided."""
TEST, DEV, TRAIN = 400, 200, 50
"""Usual sizes of parts that are drawn."""


@dataclass(frozen=True)
class Item:
    """Something to take. id: never changes and is unique in a row; fields: further text by name, such as `category`. All text is data."""

    id: str
    title: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One question: history, oldest first; candidates in the order of their source; grades: relevance by candidate id, 0 if missing.

    prior: scores by candidate id of the recommender that offered them, higher is better, or None where nobody did.
    missed: grades of what was chosen and not offered; no ranking of the candidates can reach them, and metrics count them as lost.
    user: who was asked, so that a random split can keep a user's rows together; empty where nobody knows.
    Raises DataError for a row without candidates, candidates with one id, a prior that leaves one out, grades of ids that are no
    candidates, and grades that are no numbers from 0 to 100.
    """

    id: str
    history: tuple[Item, ...]
    candidates: tuple[Item, ...]
    grades: Mapping[str, float]
    prior: Mapping[str, float] | None = None
    missed: tuple[float, ...] = ()
    user: str = ""

    def __post_init__(self) -> None:
        ids = [item.id for item in self.candidates]
        if not ids:
            raise DataError(f"row {self.id!r} has no candidates; offer at least one or leave the row out")
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise DataError(f"row {self.id!r} offers {twice!r} twice; give every candidate an id of its own")
        if strange := set(self.grades) - set(ids):
            raise DataError(f"row {self.id!r} grades {min(strange)!r}, which is no candidate; drop the grade or offer the item")
        if bad := [g for g in (*self.grades.values(), *self.missed) if not 0 <= g <= 100]:
            raise DataError(f"row {self.id!r} has a grade of {bad[0]}; a grade is a number from 0 to 100")
        if self.prior is not None and (unscored := set(ids) - {i for i, score in self.prior.items() if not math.isnan(score)}):
            raise DataError(f"row {self.id!r} has a prior without a score for {min(unscored)!r}; score all candidates or none")

    @property
    def positives(self) -> frozenset[str]:
        """Ids of candidates with a grade above 0."""
        return frozenset(i for i, grade in self.grades.items() if grade > 0)


class RankingTask:
    """Rows to learn from (`train`), to choose by (`dev`), and to report on once (`test`, sealed).

    source: what it was read from and how, in words; fields: names of the item fields that any row has, beside the title.
    content_hash: SHA-256 over all rows of the three parts, which is everything that can change a number.
    """

    def __init__(self, name: str, source: str, train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row]) -> None:
        """Raises DataError for a row id that is given twice, a task without dev or test rows, and simulated test rows."""
        if invented := [row.id for row in test if row.id.startswith(SIMULATED)]:
            raise DataError(f"task {name!r} would be tested on row {invented[0]!r}; test on what people chose, simulated rows are for dev")
        if not dev or not test:
            raise DataError(f"task {name!r} has {len(dev)} dev and {len(test)} test rows; it needs at least one of each")
        rows = [*train, *dev, *test]
        ids = [row.id for row in rows]
        if len(set(ids)) < len(ids):
            raise DataError(f"task {name!r} has row {_first_twice(ids)!r} twice; a row belongs to one part and is counted once")
        self.name, self.source = name, source
        self.train, self.dev = tuple(train), tuple(dev)
        self.fields = tuple(sorted({name for row in rows for item in (*row.history, *row.candidates) for name in item.fields}))
        parts = [hash_rows(part) for part in (train, dev, test)]
        self.content_hash = hashlib.sha256("".join(parts).encode()).hexdigest()
        self.test = SealedTest(test, name, self.content_hash, parts[-1])

    def __repr__(self) -> str:
        sizes = f"train={len(self.train)}, dev={len(self.dev)}, test={len(self.test)} sealed"
        return f"RankingTask({self.name!r}, {sizes}, hash={self.content_hash[:12]})"


def divide(rows: Sequence[Row], sizes: Sequence[int], seed: int) -> list[list[Row]]:
    """Draws parts of at most the given sizes by chance, without overlap; rows of one user stay together, so they may leave a part short.

    Users come in the order of a hash of seed and name, and the first part is filled first: neither the order of the source nor the size
    of a later part changes which rows are drawn for an earlier one. Rows that no part has room for are left out. Raises DataError for
    fewer rows than asked for.
    """
    if sum(sizes) > len(rows):
        raise DataError(f"{sum(sizes)} rows are asked for ({' + '.join(map(str, sizes))}), the source has {len(rows)}; ask for fewer")
    owners: dict[str, list[Row]] = {}
    for row in rows:
        owners.setdefault(f"user {row.user}" if row.user else f"row {row.id}", []).append(row)
    parts: list[list[Row]] = [[] for _ in sizes]
    for name in sorted(owners, key=lambda name: lot(seed, name)):
        room = (part for part, size in zip(parts, sizes, strict=True) if len(part) + len(owners[name]) <= size)
        next(room, []).extend(owners[name])
    return parts


def sizes(rows: int, asked: Sequence[int | None], usual: Sequence[int]) -> list[int]:
    """Rows of each part of a source with so many: as asked for; one left open gets the usual size, or its part of what there is."""
    left = max(rows - sum(size or 0 for size in asked), 0)
    wanted = sum(some for size, some in zip(asked, usual, strict=True) if size is None)
    return [some * min(left, wanted) // wanted if size is None else size for size, some in zip(asked, usual, strict=True)]


def lot(seed: int, name: str) -> str:
    """What a random order sorts names by: it depends on the seed and the name alone."""
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass")).hexdigest()


def tied(row: Row, head: Sequence[str] = ()) -> Ranking:
    """The ranking of a partial answer: the ids of `head`, best first, and all other candidates tied behind them.

    Without a head everything is tied, which is what an unusable answer says. Raises DataError for a head with an id that is no candidate
    or stands there twice.
    """
    rest = {item.id: None for item in row.candidates}
    for place, name in enumerate(head, 1):
        if name not in rest:
            why = "twice" if name in head[: place - 1] else "but it is no candidate"
            raise DataError(f"row {row.id!r} ranks {name!r} {why}; rank each candidate at most once")
        del rest[name]
    return (*((name,) for name in head), *((tuple(rest),) if rest else ()))


def by_score(row: Row, scores: Mapping[str, float]) -> Ranking:
    """The ranking by scores of all candidates, higher is better, equal scores tied. Raises DataError for a missing score and for NaN."""
    groups: dict[float, list[str]] = {}
    for item in row.candidates:
        score = scores.get(item.id, math.nan)
        if math.isnan(score):
            raise DataError(f"row {row.id!r} has no score for candidate {item.id!r}; score every candidate by a number")
        groups.setdefault(score, []).append(item.id)
    return tuple(tuple(groups[score]) for score in sorted(groups, reverse=True))


def hash_rows(rows: Sequence[Row]) -> str:
    """SHA-256 over rows in their order: ids, users, item text, order of candidates, grades, priors."""
    digest = hashlib.sha256()
    known: dict[int, str] = {}  # by identity: readers share items between rows, and hashing their text again would take most of the time

    def of_item(item: Item) -> str:
        if id(item) not in known:
            known[id(item)] = hashlib.sha256(_json([item.id, item.title, dict(item.fields)])).hexdigest()
        return known[id(item)]

    for row in rows:
        prior = None if row.prior is None else _floats(row.prior)
        items = [of_item(item) for item in row.history], [of_item(item) for item in row.candidates]
        digest.update(_json([row.id, row.user, *items, _floats(row.grades), prior, [float(g) for g in row.missed]]) + b"\n")
    return digest.hexdigest()


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _json(value: object) -> bytes:
    """ASCII, with sorted keys: the same bytes for the same content, whatever the text holds."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _first_twice(ids: Sequence[str]) -> str:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return ""
