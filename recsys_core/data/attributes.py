"""Features and item texts out of the columns of a log, an item file and a user file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_core.data.features import Category, Feature, Number, Tags
from recsys_core.data.jagged import Ints, Jagged
from recsys_core.data.readers import USUAL_NAMES, Columns, encode, numbers, plain_ids, refuse
from recsys_core.data.tables import ATOMIC, TableFile
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError

Kind = Literal["category", "tags", "number"]

_ATOMIC_KINDS: dict[str, Kind] = {"token": "category", "token_seq": "tags", "float": "number"}


@dataclass(frozen=True)
class FeatureColumns:
    """Which columns are features, by owner, as {column: kind}; a feature is named as its column.

    `category` is one value, `tags` are several (a list, or text separated by '|', by spaces in RecBole's files), `number` is a number.
    A blank value is missing. Interactions have no tags: each has one value of a feature.
    """

    user: Mapping[str, Kind] = field(default_factory=dict)
    item: Mapping[str, Kind] = field(default_factory=dict)
    interaction: Mapping[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for owner, kinds in (("user", self.user), ("item", self.item), ("interaction", self.interaction)):
            allowed = ("category", "number") if owner == "interaction" else ("category", "tags", "number")
            for column, kind in kinds.items():
                if kind not in allowed:
                    raise DataError(f"{owner} feature {column!r} is of kind {kind!r}; one of {', '.join(allowed)} is expected")


@dataclass(frozen=True, eq=False)
class Table:
    """A file of users or items, opened.

    rows: [N] int64, the row of each id of a vocabulary: the first where there are several, -1 where there is none.
    """

    file: TableFile
    id_column: str
    rows: Ints

    @classmethod
    def open(cls, file: TableFile, owner: Literal["user", "item"], asked: str | None, ids: Vocabulary) -> Table:
        """Finds the id column, by the name asked for where the file has it, else by its usual names.

        Raises DataError for a file without such a column, or without any of the ids.
        """
        column = file.find(asked if asked in file.plain else None, USUAL_NAMES[owner])
        if column is None:
            raise DataError(f"{file.path} has no {owner} id column among {file.header}; name it {owner!r}")
        known = pc.cast(plain_ids(file.read([column])[column]), pa.string()).combine_chunks()
        found = pc.index_in(pa.array(ids.ids, pa.string()), value_set=known)
        rows = np.asarray(pc.fill_null(found, -1)).astype(np.int64)
        if (rows < 0).all():
            examples = f"{known[:3].to_pylist()}, and the log's are such as {list(ids.ids[:3])}"
            raise DataError(f"{file.path}, column {column!r}: no {owner} of the log is here; ids are {examples}; write them alike in both")
        return cls(file, column, rows)

    def declared(self, without: tuple[str | None, ...] = ()) -> dict[str, Kind]:
        """The features that a RecBole file declares by its types, but for some columns; none for other formats."""
        return declared_kinds(self.file, (self.id_column, *without))

    def features(self, kinds: Mapping[str, Kind]) -> tuple[Feature, ...]:
        """One feature a column, aligned with the vocabulary."""
        return read_features(self.file, kinds, self.rows)

    def texts(self, columns: Columns, items: Vocabulary) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], str | None]:
        """Titles and tags of items, nothing where the file has no such column, and the column the titles are in.

        A year column, where there is one, ends the title as in 'Toy Story (1995)'; an item without a title is called by its external id.
        """
        title, year, tags = (self.file.find(getattr(columns, part), USUAL_NAMES[part]) for part in ("title", "year", "tags"))
        table = self.file.read(list(dict.fromkeys(column for column in (title, year, tags) if column is not None)))
        titles: tuple[str, ...] = ()
        if title is not None:
            lines = [" ".join(text.split()) for text in _texts(table[title], self.rows)]
            years = [""] * len(lines) if year is None else _texts(table[year], self.rows)
            titles = tuple(
                f"{line} ({when})" if line and when else line or name for line, when, name in zip(lines, years, items.ids, strict=True)
            )
        if tags is None:
            return titles, (), title
        lists = _lists(self.file, _rows(table[tags], self.rows)).to_pylist()
        return titles, tuple(tuple(tag for tag in found or () if tag) for found in lists), title


def declared_kinds(file: TableFile, without: tuple[str | None, ...], tags: bool = True) -> dict[str, Kind]:
    """What a RecBole file's header says of its columns, but for some; empty for other formats.

    Without tags, columns of several values are passed over; with them, one of several numbers is a DataError.
    """
    if file.path.suffix.lower() not in ATOMIC:
        return {}
    kinds: dict[str, Kind] = {}
    for name, column in file.plain.items():
        kind = column.partition(":")[2] or "token"
        if column in without or (kind.endswith("_seq") and not tags):
            continue
        if kind not in _ATOMIC_KINDS:
            raise DataError(
                f"{file.path}: column {column!r} is of type {kind!r}, which no feature can be; pass FeatureColumns(...) with those to use"
            )
        kinds[name] = _ATOMIC_KINDS[kind]
    return kinds


def read_features(file: TableFile, kinds: Mapping[str, Kind], rows: Ints | None = None) -> tuple[Feature, ...]:
    """One feature a column of a file: of the given rows (-1 has the value missing), or of all in file order."""
    if not kinds:
        return ()
    where = {name: file.find(name, ()) or name for name in kinds}
    table = file.read(list(where.values()))
    return tuple(_feature(file, name, where[name], kind, table[where[name]], rows) for name, kind in kinds.items())


def _feature(file: TableFile, name: str, column: str, kind: Kind, values: pa.ChunkedArray, rows: Ints | None) -> Feature:
    chosen = np.arange(len(values)) if rows is None else rows
    picked = values if rows is None else _rows(values, rows)
    if kind == "number":
        parsed = numbers(picked)
        # Judged as the float32 that is kept: 1e39 is finite only in float64.
        with np.errstate(over="ignore"):
            kept = parsed.astype(np.float32)
        wrong = ~np.isfinite(kept) & ~np.asarray(_blank(picked))
        if wrong.any():
            refuse(file, column, int(chosen[wrong.argmax()]), "a finite number")
        return Number(name, kept)
    if kind == "category":
        if pa.types.is_nested(picked.type):
            raise DataError(f"{file.path}, column {column!r}: a category is one value a row, the column holds lists; make it tags")
        return Category(name, *encode(picked))
    lists = _lists(file, picked)
    vocabulary, codes = encode(pc.list_flatten(lists))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)[codes >= 0]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(lengths)))]).astype(np.int64)
    return Tags(name, vocabulary, Jagged(codes[codes >= 0], offsets))


def _lists(file: TableFile, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as lists of text: lists as they are, text cut at the format's separator."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return pc.cast(values, pa.list_(pa.string()))
    separator = " " if file.path.suffix.lower() in ATOMIC else "|"
    return pc.split_pattern(pc.cast(values, pa.string()), separator)


def _blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_nested(values.type):
        return pc.is_null(values)
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(pc.cast(values, pa.string()), "")), "")


def _texts(values: pa.ChunkedArray, rows: Ints) -> list[str]:
    """The given rows as text, empty for row -1."""
    found: list[str] = pc.fill_null(pc.cast(_rows(values, rows), pa.string()), "").to_pylist()
    return found


def _rows(values: pa.ChunkedArray, rows: Ints) -> pa.ChunkedArray:
    """The given rows, null for row -1."""
    return values.take(pa.array(rows, mask=rows < 0))
