"""What commands print: progress and tables for people on a terminal, one JSON document for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table as View

from recsys_core.errors import DataError
from recsys_core.progress import Progress
from recsys_core.recommender import Recommender
from workbench.config import LLMSettings
from workbench.loop import BASE
from workbench.prompts.channel import ranking_through
from workbench.prompts.recommender import LLMRanker
from workbench.store import DEFAULT_STORE as DEFAULT_STORE  # of every command
from workbench.store import Store, StoreReader
from workbench.tables import Figure, Table, render

StoreOption = Annotated[str, typer.Option("--store", envvar="WORKBENCH_STORE", help="SQLite file or postgresql+psycopg:// URL.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
DataOption = Annotated[str, typer.Option("--data", help="A registered dataset, or a CSV, TSV, Parquet or RecBole .inter file.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Drives every random draw.")]
_FIGURES = set("0123456789+-.")

progress_console = Console(stderr=True, highlight=False)
# Piped output has no width of its own; 240 columns keep every table's rows on one line.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)


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


@contextmanager
def reading(store: str, create: bool = False) -> Iterator[StoreReader]:
    """A store for the length of a command that only looks; one that cannot be written will do."""
    with StoreReader.open(store, create) as handle:
        yield handle


@contextmanager
def answers_kept(model: type[Recommender], store: str) -> Iterator[None]:
    """For a model that asks a language model, the store open for its answers and templates; no other model needs one."""
    if not issubclass(model, LLMRanker):
        yield
        return
    with opened(store) as handle, ranking_through(handle):
        yield


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "", bold: Collection[tuple[int, int]] = ()
) -> None:
    """A table on stdout, columns of figures right-aligned, the (row, column) places in `bold` in bold. No text of it is markup."""
    view = View(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    cells = [[row[n] for row in rows] for n in range(len(columns))]
    figures = {n for n, column in enumerate(cells) if all(text[:1] in _FIGURES for text in column if text)}
    ids = {n for n, column in enumerate(cells) if not any(" " in text for text in column)}
    # Figures, and names too, stay on one line where that leaves the rest some room to wrap in; else they wrap, rather than be cut.
    whole = next((some for some in (figures | ids, figures) if _width(some, columns, cells) <= 0.8 * console.width), set())
    for n, column in enumerate(columns):
        view.add_column(escape(column), justify="right" if n in figures else "left", overflow="fold", no_wrap=n in whole)
    for r, row in enumerate(rows):
        view.add_row(*(f"[bold]{escape(cell)}[/]" if (r, c) in bold else escape(cell) for c, cell in enumerate(row)))
    console.print(view)
    if note:
        console.print(f"[dim]{escape(note)}[/]")
    console.print()


def _width(some: Collection[int], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Characters that the columns numbered in `some` need for their longest text, and that stand between all of them."""
    return sum(max(map(len, (columns[n], *cells[n]))) for n in some) + 2 * len(columns)


def show(facts: dict[str, Any], result: Table, form: str, out: Path | None, as_json: bool) -> None:
    """A result as JSON, or as a table in one of `workbench.tables.Format`, on stdout or in a file; a file and JSON can be had together."""
    if out is not None:
        text = render(result, "markdown" if form == "rich" else form)  # type: ignore[arg-type]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text)
        except OSError as error:
            raise DataError(f"{out} cannot be written ({error.strerror}); name another --out") from error
    if as_json:
        return print_json(facts)
    if out is not None:
        return console.print(f"wrote {escape(str(out))}", soft_wrap=True)
    if form != "rich":
        sys.stdout.write(render(result, form))  # type: ignore[arg-type]
        return None
    return table(result.title, result.columns, [[str(cell) for cell in row] for row in result.rows], result.note, best_cells(result))


def best_cells(result: Table) -> set[tuple[int, int]]:
    """Row and column of the figures that are the best of their column."""
    return {(r, c) for r, row in enumerate(result.rows) for c, cell in enumerate(row) if isinstance(cell, Figure) and cell.best}


def before_and_after(comparisons: Sequence[dict[str, Any]], scores: Sequence[dict[str, Any]], note: str) -> None:
    """The rows of `workbench.report.comparison_rows`, with the intervals of `score_rows`, as a table."""
    figures = {(r["model"], r["arm"]): r["metrics"] for r in scores}
    cells = [
        [
            r["model"], r["metric"], r["arm"], *(interval(*figures[r["model"], arm][r["metric"]]) for arm in (BASE, r["arm"])),
            interval(r["difference"], r["low"], r["high"], signed=True), f"{r['p']:.3f}",
        ]
        for r in comparisons
    ]  # fmt: skip
    seeds = ", ".join(f"{name} {count}" for name, count in {r["model"]: r["seeds"] for r in scores}.items())
    note += f"; averaged over training seeds ({seeds}); p not corrected for the number of rows"
    table("Before and after", ["model", "metric", "added to training", "before", "after", "difference", "p"], cells, note)


def interval(value: float, low: float, high: float, signed: bool = False) -> str:
    """`0.123 [0.110, 0.136]`."""
    sign = "+" if signed else ""
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def refuse_beside(context: typer.Context, option: str, *known: str) -> None:
    """Raises DataError for anything given on the command line that an option leaves without effect. known: parameters that go with it."""
    for given in context.command.params:
        source = context.get_parameter_source(given.name or "")
        if source is not None and source.name == "COMMANDLINE" and given.name not in known:
            name = given.opts[0] if given.opts[0].startswith("-") else str(given.name)
            raise DataError(f"{name} does not go with {option}: a run goes on as it began; leave it out, or start a new run")


def taken_up(began: LLMSettings, spec: str | None, bounds: dict[str, Any]) -> LLMSettings:
    """The model of a resumed run: as it began, but for another spec and bounds that are given, which are of the whole run."""
    return began.model_copy(update={"spec": spec or began.spec} | given(bounds))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that somebody gave."""
    return {name: value for name, value in options.items() if value is not None}


def times(count: int) -> str:
    """How often, as words: `once` or `3 times`."""
    return "once" if count == 1 else f"{count} times"


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names, blank ones left out."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def plain(value: Any) -> str:
    """A value as a cell: mappings as `name 3, other 4`, floats to three decimals."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(v)}" for name, v in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)
