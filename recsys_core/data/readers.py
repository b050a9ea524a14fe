"""Interaction logs out of files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_core.data.jagged import Floats, Ints
from recsys_core.data.tables import TableFile
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError

USUAL_NAMES = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "visitorid", "customer_id"),
    "item": ("item", "item_id", "itemid", "iid", "movie_id", "movieid", "asin", "product_id", "productid", "business_id", "book_id"),
    "timestamp": ("timestamp", "time", "ts", "unixreviewtime", "unix_timestamp", "unixtime"),
    "rating": ("rating", "ratings", "score", "stars", "overall"),
    "title": ("title", "movie_title", "name", "item_name"),
    "year": ("year", "release_year"),
    "tags": ("tags", "genres", "genre", "class", "categories", "category"),
}
"""Column names that are found without being asked for, compared without regard to case; the first one present wins."""

SEQUENCES = ".txt"
"""Ending of files of sequences, see `read_sequences`."""

LAST_SECOND = 253_402_300_799
"""Of the year 9999. Timestamps of this century in milliseconds lie behind it."""

_SECONDS = f"whole seconds since 1970, 0 to {LAST_SECOND} (the year 9999; milliseconds are divided by 1000)"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; a part left at None is found by its usual names.

    user, item, timestamp, rating: of the log; item and user also name the id columns of the item and user files where those have a column
    so called. title, year, tags: of the item file.
    """

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    title: str | None = None
    year: str | None = None
    tags: str | None = None


@dataclass(frozen=True, eq=False)
class Log:
    """Rows in file order.

    user, item: [T] int64 dense ids; timestamp: [T] int64; rating: [T] float32 or None; used: the columns they came from.
    """

    users: Vocabulary
    items: Vocabulary
    user: Ints
    item: Ints
    timestamp: Ints
    rating: Floats | None = None
    used: tuple[str, ...] = ()


def read_log(file: TableFile, columns: Columns) -> Log:
    """Reads an interaction log; a rating column is optional.

    Ids are non-empty text, timestamps whole seconds from 0 to LAST_SECOND, ratings finite. Anything else is a DataError that names file,
    line (row, in Parquet), column, value and what is expected, for the first line that breaks a rule; nothing partial is returned.
    """
    where = {part: file.find(getattr(columns, part), USUAL_NAMES[part]) for part in ("user", "item", "timestamp", "rating")}
    for part in ("user", "item", "timestamp"):
        if where[part] is None:
            raise DataError(f"{file.path} has no {part} column among {file.header}; name it {part!r} or pass Columns({part}=...)")
    names = {part: column for part, column in where.items() if column is not None}
    table = file.read(
        list(dict.fromkeys(names.values())), [names["user"], names["item"]], [names[p] for p in ("timestamp", "rating") if p in names]
    )
    if not table.num_rows:
        raise DataError(f"{file.path} has a header and no interactions")

    for part in ("user", "item"):
        if pa.types.is_nested(table[names[part]].type):
            refuse(file, names[part], 0, "a non-empty id")
    users, user = encode(table[names["user"]])
    items, item = encode(table[names["item"]])
    seconds = numbers(table[names["timestamp"]])
    with np.errstate(over="ignore"):
        rating = numbers(table[names["rating"]]).astype(np.float32) if "rating" in names else None
    broken = {
        "user": (user < 0, "a non-empty id"),
        "item": (item < 0, "a non-empty id"),
        "timestamp": (~((seconds >= 0) & (seconds <= LAST_SECOND) & (seconds == np.floor(seconds))), _SECONDS),
    } | ({} if rating is None else {"rating": (~np.isfinite(rating), "a finite number")})  # fmt: skip
    first = [(int(mask.argmax()), names[part], expected) for part, (mask, expected) in broken.items() if mask.any()]
    if first:
        row, column, expected = min(first)
        refuse(file, column, row, expected)
    return Log(users, items, user, item, seconds.astype(np.int64), rating, tuple(names.values()))


def read_sequences(path: Path) -> Log:
    """Reads lines of `user item item ...`, oldest item first; the timestamp of an item is its place in the line, from 0.

    Raises DataError that names a line without items and a user who has two lines.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error.object[error.start : error.end]!r} at byte {error.start} is not UTF-8 text") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if len(line) == 1:
            raise DataError(f"{path}, line {number}: user {line[0]!r} has no items; a line is 'user item item ...'")
        if line and seen.setdefault(line[0], number) != number:
            raise DataError(f"{path}, line {number}: user {line[0]!r} was in line {seen[line[0]]} already; give a user one line")
    rows = [line for line in lines if line]
    if not rows:
        raise DataError(f"{path} has no lines of 'user item item ...'")
    lengths = np.array([len(row) - 1 for row in rows], np.int64)
    users, user = encode(pa.chunked_array([[row[0] for row in rows]]))
    items, item = encode(pa.chunked_array([list(chain.from_iterable(row[1:] for row in rows))]))
    starts = np.cumsum(lengths) - lengths
    return Log(users, items, np.repeat(user, lengths), item, np.arange(len(item)) - np.repeat(starts, lengths))


def refuse(file: TableFile, column: str, row: int, expected: str) -> None:
    """Raises the DataError for one value, quoted as it stands in the file."""
    raise DataError(f"{file.place(row)}, column {column!r}: {file.read([column])[column][row].as_py()!r} is not {expected}")


def encode(external: pa.ChunkedArray) -> tuple[Vocabulary, Ints]:
    """The sorted vocabulary of a column and its dense ids [T] int64, -1 where it is blank or missing.

    Sorted by number if all are digits, else as text, so that dense ids do not depend on the order of rows.
    """
    external = plain_ids(external)
    encoded = external if pa.types.is_dictionary(external.type) else pc.dictionary_encode(external)
    whole = encoded.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], encoded.type)
    found: list[str] = pc.fill_null(pc.cast(whole.dictionary, pa.string()), "").to_pylist()
    # A file's dictionary may hold values that no row uses, or one value twice.
    codes = np.asarray(pc.fill_null(pc.cast(whole.indices, pa.int64()), -1))
    used = np.bincount(codes[codes >= 0], minlength=len(found)) > 0
    unique = {text for text, present in zip(found, used.tolist(), strict=True) if present and text.strip()}
    if all(text.isascii() and text.isdigit() for text in unique):
        # By value, however long, and '7' before '007'.
        ordered = sorted(unique, key=lambda e: (len(e.lstrip("0")), e.lstrip("0"), len(e)))
    else:
        ordered = sorted(unique)
    dense = {text: number for number, text in enumerate(ordered)}
    translate = np.array([*(dense.get(text, -1) for text in found), -1], np.int64)
    return Vocabulary(ordered), translate[codes]


def plain_ids(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids that a file holds as floats, as other files write them: 1e13 is 10000000000000, and NaN is missing. Others as they are."""
    if not pa.types.is_floating(values.type):
        return values
    found = np.asarray(values.drop_null(), np.float64)
    found = found[~np.isnan(found)]
    known = pc.if_else(pc.is_nan(values), None, values)
    whole = (found == np.floor(found)) & (np.abs(found) < 2**53)
    return pc.cast(known, pa.int64()) if whole.all() else known


def numbers(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Values [T] as float64, NaN for what is not a number; a timestamp becomes seconds since 1970."""
    kind, unit = values.type, 1
    if pa.types.is_timestamp(kind):
        values, unit = pc.cast(values, pa.int64()), _UNITS[kind.unit]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = pc.if_else(pc.match_substring_regex(values, _NUMBER), values, None)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        values = pa.nulls(len(values), pa.float64())
    parsed: NDArray[np.float64] = np.asarray(pc.fill_null(pc.cast(values, pa.float64(), safe=False), np.nan), np.float64)
    return parsed / unit
