"""Worked examples for a prompt: what somebody else took, what was on offer then, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agents.seeding import stream
from workbench.prompts.placeholders import literal
from workbench.prompts.scoring import NO, YES
from workbench.prompts.tasks import Item, Row
from workbench.prompts.templates import Template, label

_ITEMS = 4
"""Most items of an example's history, and most of its candidates: enough to show what is asked, short enough to be read on every call."""


def teachers(train: Sequence[Row], search: Sequence[Row], seed: int) -> list[Row]:
    """Train rows that can be shown, in random order: with a history and a positive, and of no user or row that is searched by."""
    users, ids = {row.user for row in search if row.user}, {row.id for row in search}
    asked = {_question(row) for row in search}
    fit = [
        row
        for row in train
        if row.history and row.positives and row.id not in ids and row.user not in users and _question(row) not in asked
    ]
    return [fit[n] for n in stream(seed, "examples").permutation(len(fit))]


def worked(template: Template, rows: Sequence[Row], seed: int) -> str:
    """The rows as a section of the template: written as it writes a row, answered as it wants answers, braces of titles guarded."""
    written = replace(template, role="", task="", reasoning="", output=template.output if template.kind == "pointwise" else "")
    return literal("\n\n".join(_example(written, row, stream(seed, "example", row.id)) for row in rows))


def _example(template: Template, row: Row, rng: np.random.Generator) -> str:
    """Positives stand at random places among the candidates and lead the answer; where the order behind them is asked for, it is random."""
    history = row.history[-_ITEMS:]
    chosen = [item for item in row.candidates if item.id in row.positives][: _ITEMS - 1]
    others = [item for item in row.candidates if item.id not in row.positives]
    others = [others[n] for n in rng.permutation(len(others))[: _ITEMS - len(chosen)]]
    if template.kind == "likelihood":
        return template.render(history, ()).text + template.continuation(chosen[0])
    if template.kind == "pointwise":
        asked = [(item, YES) for item in chosen[:1]] + [(item, NO) for item in others[:1]]
        return "\n\n".join(template.render(history, (item,)).text + word for item, word in asked)
    mixed = [*chosen, *others]
    offered = [mixed[n] for n in rng.permutation(len(mixed))]
    best = chosen[:1] if template.kind == "choice" else mixed
    return f"Another person, as an example:\n{template.render(history, offered).text}\nAnswer: {_ids(best, offered)}"


def _question(row: Row) -> tuple[tuple[str, ...], ...]:
    """A row by what is in it, for sources that have the same one under two names."""
    return tuple(tuple(item.title for item in items) for items in (row.history, row.candidates))


def _ids(items: Sequence[Item], offered: Sequence[Item]) -> str:
    return " > ".join(label(offered.index(item)) for item in items)
