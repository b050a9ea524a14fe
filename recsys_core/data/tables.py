"""Columns of a CSV, TSV, Parquet, JSON Lines or RecBole atomic file, and the line to name when one of their values is wrong.

Values are parsed a column at a time; only after a failure does a slower pass go line by line to find where it was.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pa_parquet

from recsys_core.errors import DataError

ATOMIC = (".inter", ".item", ".user")
"""RecBole's: tab-separated, the header reads `name:type`."""
_SEPARATORS = {".csv": ",", ".tsv": "\t"} | dict.fromkeys(ATOMIC, "\t")
FORMATS = (".csv", ".tsv", ".parquet", ".jsonl", *ATOMIC)
"""By file name ending. Quotes have a meaning in .csv alone."""

_IDS = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class TableFile(ABC):
    """A file of rows. names: its columns, for a delimited file without a header line."""

    path: Path
    names: tuple[str, ...] | None = None

    @classmethod
    def open(cls, path: Path, names: tuple[str, ...] | None = None) -> TableFile:
        """The file as its ending says; raises DataError for a missing or an unknown one."""
        ending = path.suffix.lower()
        if ending not in FORMATS:
            raise DataError(f"{path} ends in {ending!r}; known formats: {', '.join(FORMATS)}")
        if not path.is_file():
            raise DataError(f"no file {path}")
        kind = {".parquet": ParquetFile, ".jsonl": JsonLinesFile}.get(ending, DelimitedFile)
        return kind(path, names)

    @cached_property
    def header(self) -> list[str]:
        """Column names; raises DataError for an empty file or a name that occurs twice."""
        header = self._header()
        if not header:
            raise DataError(f"{self.path} is empty; it names no columns")
        if len(set(header)) < len(header):
            raise DataError(f"{self.path}: a column name occurs twice in {header}")
        return header

    @cached_property
    def plain(self) -> dict[str, str]:
        """The columns by the names that people use; RecBole's `:type` is not part of them."""
        atomic = self.path.suffix.lower() in ATOMIC
        return {column.partition(":")[0] if atomic else column: column for column in self.header}

    def find(self, asked: str | None, usual: Sequence[str]) -> str | None:
        """The column asked for, or the first that has a usual name (in lower case)."""
        if asked is not None and asked not in self.plain:
            raise DataError(f"{self.path} has no column {asked!r}; it has {', '.join(self.plain)}")
        lower = {name.strip().lower(): column for name, column in self.plain.items()}
        return self.plain[asked] if asked is not None else next((lower[name] for name in usual if name in lower), None)

    @abstractmethod
    def read(self, columns: Sequence[str], ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pa.Table:
        """The given columns, as text or as the file types them; DataError names a line of another width or encoding.

        ids and numbers name those among them that may come dictionary-encoded and as float64, where that is quicker.
        """

    @abstractmethod
    def place(self, row: int) -> str:
        """File and line (or row, in Parquet; both 1-based) of the data row with this 0-based index."""

    @abstractmethod
    def _header(self) -> list[str]: ...


class DelimitedFile(TableFile):
    """CSV, TSV and RecBole's atomic files: all values are text."""

    @property
    def _separator(self) -> str:
        return _SEPARATORS[self.path.suffix.lower()]

    @property
    def _quoted(self) -> bool:
        return self._separator == ","

    def _header(self) -> list[str]:
        if self.names is not None:
            return list(self.names)
        header = next((row for _, row in self._lines()), [])
        if len(header) == 1 and (other := [mark for mark in "\t;,|" if mark in header[0]]):
            fix = f"columns of a {self.path.suffix} file are separated by {self._separator!r}; write it so"
            raise DataError(f"{self.path} has one column, {header[0]!r:.80}, with {other[0]!r} in its name; {fix}")
        return header

    def read(self, columns: Sequence[str], ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pa.Table:
        """See TableFile. A number that Arrow cannot parse makes all columns text, for the caller to judge."""
        types = dict.fromkeys(columns, pa.string()) | dict.fromkeys(ids, _IDS)
        try:
            return self._parse(types | dict.fromkeys(numbers, pa.float64()))
        except pa.ArrowInvalid:
            try:
                return self._parse(types)
            except pa.ArrowInvalid as error:
                self._explain()
                raise DataError(f"{self.path} cannot be parsed: {_one_line(error)}") from error

    def _parse(self, types: dict[str, pa.DataType]) -> pa.Table:
        return pa_csv.read_csv(
            self.path,
            pa_csv.ReadOptions(column_names=self.names, block_size=1 << 24),
            pa_csv.ParseOptions(delimiter=self._separator, quote_char='"' if self._quoted else False, newlines_in_values=self._quoted),
            pa_csv.ConvertOptions(include_columns=list(types), column_types=types),
        )

    def place(self, row: int) -> str:
        """See TableFile."""
        index = row + (self.names is None)
        return f"{self.path}, line {next(line for number, (line, _) in enumerate(self._lines()) if number == index)}"

    def _explain(self) -> None:
        width = len(self.header)
        for line, row in self._lines():
            if len(row) != width:
                raise DataError(f"{self.path}, line {line}: {len(row)} fields, expected {width} ({', '.join(self.header)}): {row!r:.80}")
            for column, value in zip(self.header, row, strict=True):
                if "\ufffd" in value:
                    raise DataError(f"{self.path}, line {line}, column {column!r}: {value!r} is not UTF-8 text")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Rows with the 1-based line each starts on, blank ones skipped; bytes that are not UTF-8 become U+FFFD."""
        with self.path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader, line = csv.reader(file, delimiter=self._separator, quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE), 1
            try:
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{self.path}, line {line}: {error}") from error


class ParquetFile(TableFile):
    """Parquet: columns have types of their own."""

    def _header(self) -> list[str]:
        try:
            return list(pa_parquet.read_schema(self.path).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.path} is not a Parquet file: {_one_line(error)}") from error

    def read(self, columns: Sequence[str], ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pa.Table:
        """See TableFile."""
        try:
            return pa_parquet.read_table(self.path, columns=list(columns))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read: {_one_line(error)}") from error

    def place(self, row: int) -> str:
        """See TableFile."""
        return f"{self.path}, row {row + 1}"


class JsonLinesFile(TableFile):
    """One JSON object a line. A key that a line lacks is missing there; the values of one key must be of one type throughout."""

    def _header(self) -> list[str]:
        return list(self._table.column_names)

    def read(self, columns: Sequence[str], ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> pa.Table:
        """See TableFile. Text that Arrow took for a date is text again."""
        table = self._table.select(list(columns))
        dates = [field.name for field in table.schema if pa.types.is_timestamp(field.type) and field.name not in numbers]
        return self._parse({name: pa.string() for name in dates}).select(list(columns)) if dates else table

    @cached_property
    def _table(self) -> pa.Table:
        return self._parse({})

    def _parse(self, types: dict[str, pa.DataType]) -> pa.Table:
        try:
            return pa_json.read_json(
                self.path,
                pa_json.ReadOptions(block_size=1 << 24),
                pa_json.ParseOptions(explicit_schema=pa.schema(types.items()) if types else None),
            )
        except pa.ArrowInvalid as error:
            if next(self._lines(), None) is None:
                return pa.table({})
            self._explain()
            raise DataError(f"{self.path} cannot be parsed: {_one_line(error)}") from error

    def place(self, row: int) -> str:
        """See TableFile."""
        return f"{self.path}, line {next(line for number, (line, _) in enumerate(self._lines()) if number == row)}"

    def _explain(self) -> None:
        seen: dict[str, tuple[str, int]] = {}
        for line, text in self._lines():
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"{self.path}, line {line}: {text!r:.80} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{self.path}, line {line}: {text!r:.80} is not a JSON object; one object a line is expected")
            for key, value in row.items():
                kind = _kind(value)
                expected, first = seen.setdefault(key, (kind, line)) if kind else (kind, line)
                if kind != expected:
                    raise DataError(f"{self.path}, line {line}, key {key!r}: {value!r:.80} is a {kind}, but a {expected} in line {first}")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Lines that are not blank, 1-based; bytes that are not UTF-8 become U+FFFD."""
        with self.path.open(encoding="utf-8-sig", errors="replace") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, text.strip()


def _kind(value: Any) -> str:
    """A JSON value's type in words; empty for null, which every type allows."""
    kinds = {bool: "truth value", int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds.get(type(value), "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
