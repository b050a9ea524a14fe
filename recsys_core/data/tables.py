"""Columns of a CSV, TSV, Parquet or RecBole atomic file, and the line to name when one of their values is wrong.

Values are parsed a column at a time; only after a failure does a slower pass go line by line to find where it was.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from recsys_core.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t", ".parquet": ""}
"""By file name ending. Quotes have a meaning in .csv alone; .inter and .item are RecBole's, whose header reads `name:type`."""


@dataclass(frozen=True)
class TableFile:
    """A file of rows. names: its columns, for a file without a header line."""

    path: Path
    names: tuple[str, ...] | None = None

    @property
    def format(self) -> str:
        """The file name's ending, in lower case."""
        return self.path.suffix.lower()

    @cached_property
    def header(self) -> list[str]:
        """Column names; raises DataError for a missing, empty or unknown file."""
        if self.format not in SEPARATORS:
            raise DataError(f"{self.path} ends in {self.format!r}; known formats: {', '.join(SEPARATORS)}")
        if not self.path.is_file():
            raise DataError(f"no file {self.path}")
        if self.names is not None:
            return list(self.names)
        if self.format == ".parquet":
            try:
                header = list(pa_parquet.read_schema(self.path).names)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(f"{self.path} is not a Parquet file: {_one_line(error)}") from error
        else:
            header = next((row for _, row in self._lines()), [])
        if not header:
            raise DataError(f"{self.path} is empty; its first line must name the columns")
        if len(set(header)) < len(header):
            raise DataError(f"{self.path}: a column name occurs twice in {header}")
        return header

    def find(self, asked: str | None, usual: Sequence[str]) -> str | None:
        """The column asked for, or the first that has a usual name (in lower case); RecBole's `:type` is not part of a name."""
        atomic = self.format in (".inter", ".item")
        plain = {column.partition(":")[0] if atomic else column: column for column in self.header}
        if asked is not None and asked not in plain:
            raise DataError(f"{self.path} has no column {asked!r}; it has {', '.join(plain)}")
        lower = {name.strip().lower(): column for name, column in plain.items()}
        return plain[asked] if asked is not None else next((lower[name] for name in usual if name in lower), None)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """The given columns, as text or as a Parquet file types them; DataError names a line of another width or encoding."""
        if self.format == ".parquet":
            try:
                return pa_parquet.read_table(self.path, columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.path} cannot be read: {_one_line(error)}") from error
        quoted = self.format == ".csv"
        parse = {"delimiter": SEPARATORS[self.format], "quote_char": '"' if quoted else False, "newlines_in_values": quoted}
        text = dict.fromkeys(columns, pa.string())
        try:
            return pa_csv.read_csv(
                self.path,
                pa_csv.ReadOptions(column_names=self.names),
                pa_csv.ParseOptions(**parse),
                pa_csv.ConvertOptions(include_columns=list(columns), column_types=text),
            )
        except pa.ArrowInvalid as error:
            self._explain()
            raise DataError(f"{self.path} cannot be parsed: {_one_line(error)}") from error

    def place(self, row: int) -> str:
        """File and line (or row, in Parquet; both 1-based) of the data row with this 0-based index."""
        if self.format == ".parquet":
            return f"{self.path}, row {row + 1}"
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
            reader, line = (
                csv.reader(file, delimiter=SEPARATORS[self.format], quoting=csv.QUOTE_MINIMAL if self.format == ".csv" else csv.QUOTE_NONE),
                1,
            )
            try:
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
            except csv.Error as error:
                raise DataError(f"{self.path}, line {line}: {error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
