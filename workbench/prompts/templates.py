"""A ranking prompt in named sections, with the item fields it shows declared and locked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

from recsys_core.errors import DataError
from workbench.prompts.placeholders import fill, forbidden, shown, slots
from workbench.prompts.tasks import Item

Kind = Literal["listwise", "choice", "pointwise", "likelihood"]
"""What is asked: an order of all candidates, the best of a few, yes or no for one, or how likely a title is as the text's next words."""
SECTIONS = ("role", "task", "history", "history_item", "candidates", "candidate_item", "reasoning", "output")
_LONGEST = 20_000
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("id", "title", "number", "count", "history", "candidates")


def label(place: int) -> str:
    """The id under which a prompt shows its candidate at a place, from 0."""
    return f"C{place + 1}"


@dataclass(frozen=True)
class Prompt:
    """A filled template: what the system turn says and what the user turn says."""

    system: str
    text: str

    @property
    def document(self) -> str:
        """Both as one text, for a model that continues it."""
        return "\n\n".join(part for part in (self.system, self.text) if part)


@dataclass(frozen=True)
class Template:
    """A prompt to fill. Immutable: `revise` makes the next version.

    role: the system turn. task, history, candidates, reasoning, output: the user turn, in this order, blank lines between; an empty one is
    left out. history_item and candidate_item: how one item is written. Placeholders (see `placeholders.fill`): `{history}` in history,
    `{candidates}` in candidates, `{count}` (of candidates) in role, task, candidates, reasoning and output; `{title}` and any declared
    field in the two item formats, `{number}` in the history's, `{id}` in a listwise or choice candidate's.

    fields: the item fields shown beside the title, each used by at least one item format.
    history_length: latest items shown, 0 for none; newest_first: their order; join: what stands between items;
    nothing: stands for an empty history; text_limit: characters of a title or field after which it is cut.
    parents: versions this one was made from; author: `human` or the optimizer's name.

    A likelihood template has no candidates section: its candidate_item is what continues the prompt, and begins with a space.
    Raises DataError for a template that breaks these rules.
    """

    name: str
    kind: Kind
    role: str = ""
    task: str = ""
    history: str = "{history}"
    history_item: str = "- {title}"
    candidates: str = "{candidates}"
    candidate_item: str = "{id}. {title}"
    reasoning: str = ""
    output: str = ""
    fields: tuple[str, ...] = ()
    history_length: int = 20
    newest_first: bool = False
    join: str = "\n"
    nothing: str = "(nothing yet)"
    text_limit: int = 160
    parents: tuple[str, ...] = ()
    author: str = "human"

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise DataError(f"template {self.name!r}: {problem}")

    @cached_property
    def version(self) -> str:
        """Content hash: 12 hex digits over everything that can change a prompt. Name, parents and author cannot."""
        body = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("name", "parents", "author")}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def features(self) -> frozenset[tuple[str, str]]:
        """What a model learns of items: (place, field) pairs such as ("candidates", "category"); the title is one of the fields."""
        known = {"title", *self.fields}
        formats = (("history", self.history_item if self.history_length else ""), ("candidates", self.candidate_item))
        return frozenset((place, name) for place, text in formats for name in slots(text, known))

    def revise(self, author: str, *others: Template, **changes: Any) -> Self:
        """The next version, made from this one (and others). Raises as creation does, and for changed features, which are locked."""
        revised = replace(self, author=author, parents=(self.version, *(t.version for t in others)), **changes)
        same_features(self, revised)
        return revised

    def render(self, history: Sequence[Item], candidates: Sequence[Item]) -> Prompt:
        """The prompt for a history, oldest first, and candidates, which are shown in the given order as C1, C2, .."""
        latest = history[-self.history_length :] if self.history_length else ()
        ordered = reversed(latest) if self.newest_first else latest
        taken = [self._item(self.history_item, item, number=str(n)) for n, item in enumerate(ordered, 1)]
        offered = [self._item(self.candidate_item, item, id=label(n)) for n, item in enumerate(candidates)]
        count = {"count": str(len(candidates))}
        parts = (
            fill(self.task, count),
            fill(self.history, {"history": self.join.join(taken) or self.nothing}) if self.history_length else "",
            fill(self.candidates, count | {"candidates": self.join.join(offered)}),
            fill(self.reasoning, count),
            fill(self.output, count),
        )
        return Prompt(fill(self.role, count), "\n\n".join(part for part in parts if part))

    def as_shown(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """The items with the titles that a prompt has: what an answer can be about."""
        return tuple(replace(item, title=shown(item.title, self.text_limit)) for item in items)

    def continuation(self, candidate: Item) -> str:
        """A candidate as the words that follow a likelihood prompt."""
        return self._item(self.candidate_item, candidate)

    def _item(self, form: str, item: Item, **numbers: str) -> str:
        texts = {"title": item.title} | {name: item.fields.get(name, "") for name in self.fields}
        return fill(form, numbers | {name: shown(text, self.text_limit) for name, text in texts.items()})

    def _problems(self) -> Iterator[str]:
        """Every broken rule, as the end of a sentence that names value, bound and fix."""
        if self.kind not in get_args(Kind):
            yield f"kind {self.kind!r} is unknown; use {', '.join(get_args(Kind))}"
        for name in (*SECTIONS, "join", "nothing", "name", "author"):
            text = getattr(self, name)
            if len(text) > _LONGEST:
                yield f"{name} has {len(text)} characters; keep it to {_LONGEST}"
            if bad := forbidden(text):
                yield f"{name} holds the character {bad!r}; use plain text, newlines and tabs"
        if self.history_length < 0 or self.text_limit < 1:
            yield f"history_length is {self.history_length} and text_limit {self.text_limit}; give at least 0 and 1"
        for name in self.fields:
            if not _FIELD.fullmatch(name) or name in _RESERVED:
                yield f"field {name!r} cannot be a placeholder; name it in a-z, 0-9 and _, but not {', '.join(_RESERVED)}"
        shows = {name for _, name in self.features}
        for name in self.fields:
            if name not in shows:
                yield f"field {name!r} is declared but shown nowhere; put {{{name}}} into history_item or candidate_item"
        yield from self._unfilled()

    def _unfilled(self) -> Iterator[str]:
        needed = [("candidate_item", "title")]
        if self.history_length:
            needed.append(("history", "history"))
        if self.kind != "likelihood":
            needed.append(("candidates", "candidates"))
        if self.kind in ("listwise", "choice"):
            needed.append(("candidate_item", "id"))
        for section, name in needed:
            times = len(slots(getattr(self, section), (name,)))
            if times != 1:
                yield f"{section} holds {{{name}}} {times} times; it must stand there exactly once"
        if self.history_length and not any(place == "history" for place, _ in self.features):
            yield "history_item shows nothing of an item; put {title} into it, or set history_length to 0"
        if self.kind == "likelihood" and self.candidates:
            yield "a likelihood template has a candidates section; empty it, since candidates are what follows the prompt"
        if self.kind == "likelihood" and any(slots(text, ("count",)) for text in (self.role, self.task, self.reasoning, self.output)):
            yield "a likelihood prompt shows no candidates to count; take {count} out"
        if self.kind == "likelihood" and not self.candidate_item.startswith(" "):
            yield f"candidate_item {self.candidate_item!r} continues the prompt; begin it with a space, so that words stay whole"


def same_features(a: Template, b: Template) -> None:
    """Raises DataError, naming the fields, unless two templates show the same of every item.

    A prompt that shows more has more to go by, so a difference between the two would say nothing about their wording.
    """
    if a.features == b.features:
        return
    only = [
        f"{', '.join(f'{name} of {place}' for place, name in sorted(mine - other))} only in {template.name!r} ({template.version})"
        for template, mine, other in ((a, a.features, b.features), (b, b.features, a.features))
        if mine - other
    ]
    raise DataError(f"templates show different features: {'; '.join(only)}; compare prompts that show the same fields")


def of_kind(template: Template, kind: Kind) -> Template:
    """The template itself; raises DataError where it is of another kind."""
    if template.kind != kind:
        raise DataError(f"template {template.name!r} is {template.kind}; this ranker needs a {kind} one")
    return template
