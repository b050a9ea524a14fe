"""Interaction logs and item texts out of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys_core.data.jagged import Floats, Ints
from recsys_core.data.tables import TableFile
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

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

ItemTexts = dict[str, tuple[str, tuple[str, ...]]]
"""Title and tags by external item id."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what; a part left at None is found by its usual names."""

    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None


@dataclass(frozen=True, eq=False)
class Log:
    """Raw rows in file order: user, item [T] external ids as text; timestamp [T] int64 seconds; rating [T] float32 or None."""

    user: pa.Array
    item: pa.Array
    timestamp: Ints
    rating: Floats | None


def read_log(path: Path, columns: Columns | None = None, names: tuple[str, ...] | None = None) -> Log:
    """Reads an interaction log; `names` are the columns of a file without a header line, and a rating column is optional.

    Ids are non-empty text, timestamps whole seconds from 0, ratings finite. Anything else is a DataError that names file, line (row, in
    Parquet), column, value and what is expected, for the first line that breaks a rule; nothing partial is returned.
    """
    file, asked = TableFile(path, names), columns or Columns()
    where = {part: file.find(getattr(asked, part), USUAL_NAMES[part]) for part in ("user", "item", "timestamp", "rating")}
    for part in ("user", "item", "timestamp"):
        if where[part] is None:
            raise DataError(f"{path} has no {part} column among {file.header}; name it {part!r} or pass Columns({part}=...)")
    columns_read = {part: column for part, column in where.items() if column is not None}
    table = file.read(list(columns_read.values()))
    if not table.num_rows:
        raise DataError(f"{path} has a header and no interactions")

    seconds = _numbers(table[columns_read["timestamp"]])
    rating = _numbers(table[columns_read["rating"]]).astype(np.float32) if "rating" in columns_read else None
    broken = {
        "user": (_is_blank(table[columns_read["user"]]), "a non-empty id"),
        "item": (_is_blank(table[columns_read["item"]]), "a non-empty id"),
        # Past 2**53 neighbouring whole numbers can no longer be told apart in float64.
        "timestamp": (~((seconds >= 0) & (seconds < 2**53) & (seconds == np.floor(seconds))), "whole seconds since 1970, 0 or more"),
    } | ({} if rating is None else {"rating": (~np.isfinite(rating), "a finite number")})  # fmt: skip
    first = [(int(mask.argmax()), columns_read[part], expected) for part, (mask, expected) in broken.items() if mask.any()]
    if first:
        row, column, expected = min(first)
        raise DataError(f"{file.place(row)}, column {column!r}: {table[column][row].as_py()!r} is not {expected}")
    return Log(_text(table[columns_read["user"]]), _text(table[columns_read["item"]]), seconds.astype(np.int64), rating)


def read_items(path: Path) -> ItemTexts:
    """Reads titles and tags; tags are separated by '|', or by spaces in RecBole's `.item`.

    A year column, where there is one, ends the title as in 'Toy Story (1995)'. Raises DataError without an item id and a title column.
    """
    file = TableFile(path)
    where = {part: file.find(None, USUAL_NAMES[part]) for part in ("item", "title", "year", "tags")}
    if where["item"] is None or where["title"] is None:
        raise DataError(f"{path} has no item id or no title column among {file.header}; name them 'item' and 'title'")
    table = file.read([column for column in where.values() if column is not None])
    blank = [""] * table.num_rows
    columns = [blank if column is None else pc.fill_null(_text(table[column]), "").to_pylist() for column in where.values()]
    separator = " " if file.format == ".item" else "|"
    texts: ItemTexts = {}
    for item, title, year, tags in zip(*columns, strict=True):
        line = " ".join(title.split())
        texts[item] = (f"{line} ({year})" if year else line, tuple(tag for tag in tags.split(separator) if tag))
    return texts


def _text(values: pa.ChunkedArray) -> pa.Array:
    return pc.cast(values, pa.string()).combine_chunks()


def _is_blank(ids: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(pc.utf8_trim_whitespace(pc.fill_null(pc.cast(ids, pa.string()), "")), ""))


def _numbers(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """Values [T] as float64, NaN for what is not a number; a Parquet timestamp becomes seconds since 1970."""
    kind, unit = values.type, 1
    if pa.types.is_timestamp(kind):
        values, unit = pc.cast(values, pa.int64()), _UNITS[kind.unit]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = pc.if_else(pc.match_substring_regex(values, _NUMBER), values, None)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        values = pa.nulls(len(values), pa.float64())
    numbers: NDArray[np.float64] = np.asarray(pc.fill_null(pc.cast(values, pa.float64(), safe=False), np.nan), np.float64)
    return numbers / unit
