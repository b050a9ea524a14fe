"""What commands print: progress and tables for people on a terminal, one JSON document for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from recsys_core.progress import Progress
from workbench.store import Store

StoreOption = Annotated[str, typer.Option("--store", envvar="WORKBENCH_STORE", help="SQLite file or postgresql+psycopg:// URL.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
DataOption = Annotated[str, typer.Option("--data", help="A registered dataset, or a CSV, TSV, Parquet or RecBole .inter file.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Drives every random draw.")]
DEFAULT_STORE = "workbench.sqlite"
_FIGURES = set("0123456789+-.")

progress_console = Console(stderr=True, highlight=False)
# Piped output has no width of its own; 170 columns keep every table's rows on one line.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)


def print_json(value: Any) -> None:
    """One JSON document; NaN is not JSON, so it is refused rather than written."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def step(title: str) -> Iterator[Progress]:
    """Shows one piece of work on stderr: a bar while it runs, a line with its seconds when it is done."""
    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Bar(*columns, console=progress_console, transient=True, disable=not progress_console.is_terminal) as bar:
        task = bar.add_task(escape(title), total=1.0, text="")
        yield lambda share, text: bar.update(task, completed=share, text=escape(text))
    progress_console.print(f"[green]done[/] {escape(title)} [dim]{time.perf_counter() - start:.1f} s[/]")


@contextmanager
def opened(store: str, create: bool = True) -> Iterator[Store]:
    """A store for the length of a command."""
    with Store.open(store, create) as handle:
        yield handle


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """A table on stdout, columns of figures right-aligned. Cells are data, not markup."""
    view = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        figures = all(row[number][:1] in _FIGURES for row in rows if row[number])
        view.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        view.add_row(*(escape(cell) for cell in row))
    console.print(view)
    if note:
        console.print(f"[dim]{escape(note)}[/]")
    console.print()


def interval(value: float, low: float, high: float, signed: bool = False) -> str:
    """`0.123 [0.110, 0.136]`."""
    sign = "+" if signed else ""
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def plain(value: Any) -> str:
    """A value as a cell: mappings as `name 3, other 4`, floats to three decimals."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(v)}" for name, v in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)
