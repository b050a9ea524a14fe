"""One table, four forms: for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["rich", "markdown", "csv", "latex"]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Figure:
    """A mean with its 95% interval. best: the best of its column; different: it differs from the base beyond chance."""

    mean: float
    low: float
    high: float
    best: bool = False
    different: bool = False

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.mean:.4f}{interval}{'*' if self.different else ''}"


Cell = str | Figure


@dataclass(frozen=True)
class Table:
    """Cells by row, under `columns`; a cell's text may hold anything, and stays in its cell. note: what the figures mean."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def render(table: Table, form: Literal["markdown", "csv", "latex"]) -> str:
    """The table as text, ending in one newline. CSV has three columns a figure (mean, low, high) and neither title nor note."""
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[form](table)


def score_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str], title: str, note: str, base: str | None = None) -> Table:
    """Rows of models as a table: `workbench.grid.grid_rows`, or what has their `model`, `training`, `seeds`, `seconds` and `metrics`.

    Dataset and split are columns where rows have them. A model without figures is shown as failed. With a base, a star marks what differs
    from it after Holm's correction.
    """
    wide = "dataset" in rows[0]
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        figures = [_figure(row["metrics"].get(metric)) for metric in metrics]
        where = (row["dataset"], row["split_hash"][:12]) if wide else ()
        cells.append(
            (row["model"], row["training"], str(row["seeds"]), *where, *figures, "-" if row["seconds"] is None else f"{row['seconds']:.1f}")
        )
    columns = ("model", "loss, negatives, time", "seeds", *(("dataset", "split") if wide else ()), *metrics, "fit s")
    if base:
        note += f" *: differs from {base}, paired sign-flip test, p < {SIGNIFICANT} after Holm's correction over a dataset's comparisons."
    return Table(title, columns, tuple(cells), note)


def _figure(found: dict[str, Any] | None) -> Cell:
    if found is None:
        return "failed"
    return Figure(found["mean"], found["low"], found["high"], found.get("best", False), found.get("holm_p", 1.0) < SIGNIFICANT)


def _markdown(table: Table) -> str:
    def cell(value: Cell) -> str:
        if isinstance(value, Figure) and value.best:
            return f"**{_markdown_text(str(value))}**"
        return _markdown_text(str(value))

    lines = [[_markdown_text(c) for c in table.columns], ["---"] * len(table.columns), *([cell(c) for c in row] for row in table.rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    note = f"\n{_markdown_text(table.note)}\n" if table.note else ""
    return f"**{_markdown_text(table.title)}**\n\n{body}\n{note}"


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~$&#])", r"\\\1", _one_line(text))


def _csv(table: Table) -> str:
    figures = [any(isinstance(row[n], Figure) for row in table.rows) for n in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [[c, f"{c} low", f"{c} high"] if wide else [c] for c, wide in zip(table.columns, figures, strict=True)]
    writer.writerow([_one_line(name) for names in head for name in names])
    for row in table.rows:
        line: list[str] = []
        for value, wide in zip(row, figures, strict=True):
            if isinstance(value, Figure):
                line += [f"{value.mean:.6g}", f"{value.low:.6g}", f"{value.high:.6g}"]
            else:
                line += [_one_line(value), "", ""] if wide else [_one_line(value)]
        writer.writerow(line)
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": r"\textsuperscript{*}", '"': r"\textquotedbl{}",
}  # fmt: skip


def _latex(table: Table) -> str:
    def cell(value: Cell) -> str:
        text = _latex_text(str(value))
        return rf"\textbf{{{text}}}" if isinstance(value, Figure) and value.best else text

    lines = [" & ".join(map(_latex_text, table.columns)), *(" & ".join(map(cell, row)) for row in table.rows)]
    head, *rows = (line + r" \\" for line in lines)
    figures = [any(isinstance(row[n], Figure) for row in table.rows) for n in range(len(table.columns))]
    align = "".join("r" if figure else "l" for figure in figures)
    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{_latex_text(table.title)}. {_latex_text(table.note)}}}",
            rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]
    )  # fmt: skip


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    """Text without line breaks and control characters, which no form can hold in a cell."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
