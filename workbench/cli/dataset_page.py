"""A dataset on one page of a terminal: sizes, distributions, ties, features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

WIDTH = 100
_BAR = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MANY = 0.05
"""Share of users from which a tie at the end is worth a colour."""


def page(facts: dict[str, Any]) -> RenderableType:
    """The page for the facts of `describe`, with `description` and `licence` where they are known; at most WIDTH columns wide."""
    histories = _distribution("Interactions a user", facts["history_length"], facts["history_length_histogram"])
    popularity = _distribution("Interactions an item", facts["item_popularity"], facts["item_popularity_histogram"])
    pair = Table.grid()
    for _ in range(2):
        pair.add_column(width=WIDTH // 2)
    pair.add_row(histories, popularity)
    parts: list[RenderableType] = [_head(facts), _sizes(facts), Text(), pair]
    if facts["ratings"]:
        parts += [Text(), _bars("Ratings", [(rating, count) for rating, count in facts["ratings"].items()])]
    parts += [Text(), _lines(_popularity(facts) | _order(facts) | _text(facts))]
    if facts["features"]:
        parts += [Text(), _features(facts["features"])]
    parts += [Text(), _lines(_origin(facts)), Text()]
    return Group(*parts)


def _head(facts: dict[str, Any]) -> RenderableType:
    lines = [Text(facts["name"], style="bold")] + [Text(facts[key]) for key in ("description",) if key in facts]
    return Panel(Group(*lines), box=ROUNDED, width=WIDTH, border_style="cyan")


def _sizes(facts: dict[str, Any]) -> RenderableType:
    """The four sizes in large type, as large as a terminal has it."""
    cells = {name: f"{facts[name]:,}" for name in ("users", "items", "interactions")} | {"density": f"{facts['density']:.3%}"}
    table = Table.grid(expand=False, padding=(0, 0))
    for _ in cells:
        table.add_column(justify="center", width=WIDTH // len(cells))
    table.add_row(*(f"[bold cyan]{value}[/]" for value in cells.values()))
    table.add_row(*(f"[dim]{name}[/]" for name in cells))
    return table


def _distribution(title: str, quantiles: dict[str, float], bins: Sequence[dict[str, int]]) -> RenderableType:
    labels = [f"{b['low']:,}" if b["low"] == b["high"] else f"{b['low']:,} – {b['high']:,}" for b in bins]
    shown = "  ".join(f"[dim]{name}[/] {_figure(quantiles[name])}" for name in ("min", "median", "mean", "p95", "max"))
    return Group(_bars(title, list(zip(labels, (b["count"] for b in bins), strict=True))), shown)


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> RenderableType:
    """A title and a bar a row."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=13)
    table.add_column(width=_BAR)
    table.add_column(justify="right")
    most = max((count for _, count in rows), default=1) or 1
    for label, count in rows:
        table.add_row(escape(label), f"[cyan]{_bar(count / most)}[/]", f"{count:,}")
    return Group(f"[bold]{title}[/]", table)


def _bar(share: float) -> str:
    """A bar of _BAR cells at most, in eighths of a cell; what is not nothing shows."""
    eighths = max(round(share * _BAR * 8), int(share > 0))
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _popularity(facts: dict[str, Any]) -> dict[str, str]:
    shares = ", ".join(f"{escape(name)} of items {share:.1%}" for name, share in facts["popularity_share"].items())
    return {"popularity": f"{shares} of interactions, Gini {facts['popularity_gini']:.3f}"}


def _text(facts: dict[str, Any]) -> dict[str, str]:
    titles, tags = facts["text"]["titles"], facts["text"]["tags"]
    return {"item text": (f"titles, tags for {tags:.1%} of items" if tags else "titles, no tags") if titles else "none"}


def _order(facts: dict[str, Any]) -> dict[str, str]:
    tied, time = facts["ties"], facts["time"]
    ties = {"ties": "none: no user has two interactions in a row at one time"}
    if tied["interactions"]:
        decides = f"{tied['last']:.1%} of users end in a tie: for them the tie rule decides what leave-one-out holds out"
        ties = {
            "ties": f"{tied['interactions']:.1%} of interactions share the time of the user's one before",
            "": f"[yellow]{decides}[/]" if tied["last"] >= _MANY else decides,
        }
    if not facts["timed"]:
        span = "[yellow]none: no more than the order of a user's interactions, as far as the source tells[/]"
    else:
        span = f"{time['first'][:10]} to {time['last'][:10]}, {time['days']:,.0f} days" if time else "no interactions"
    return {"time": span} | ties | {"tie rule": facts["tie_rule"]}


def _features(features: Sequence[dict[str, Any]]) -> RenderableType:
    table = Table(title="Features", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("of", "name", "kind"):
        table.add_column(column)
    table.add_column("coverage", justify="right")
    table.add_column("values", overflow="ellipsis", no_wrap=True, max_width=52)
    for feature in features:
        values = feature["values"]
        if feature["kind"] == "number":
            text = " · ".join(f"{name} {_figure(value)}" for name, value in values.items())
        else:
            text = f"{values['distinct']:,}: {', '.join(values['most common'])}" + (", …" if values["distinct"] > 3 else "")
        table.add_row(feature["owner"], escape(feature["name"]), feature["kind"], f"{feature['coverage']:.1%}", escape(text))
    return table


def _origin(facts: dict[str, Any]) -> dict[str, str]:
    lines = {"licence": facts.get("licence", ""), "from": facts["provenance"], "hash": facts["hash"]}
    return {name: escape(text) for name, text in lines.items() if text}


def _lines(rows: dict[str, str]) -> RenderableType:
    """Names and texts, the texts aligned; texts may hold markup."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=10)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _figure(value: float) -> str:
    """A figure with one decimal at most, none from 100 on; a year gets no comma."""
    if abs(value) >= 100:
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    return f"{value:.1f}".removesuffix(".0")
