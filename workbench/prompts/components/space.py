"""All the templates that differ from a given one in how its components are written: one of several options for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recsys_core.errors import DataError
from workbench.prompts.components import wording
from workbench.prompts.components.examples import teachers, worked
from workbench.prompts.placeholders import fill, slots
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template

Choice = tuple[int, ...]
"""For each component the place of its option; 0 leaves it as the first template has it."""
_LENGTHS = (1, 2, 3, 5, 10, 20, 50)
_EXAMPLES = (1, 1, 2, 3)
"""Rows of each option for worked examples; no row serves two options."""
_KEPT = ("role", "task", "history_item", "join", "candidates", "candidate_item", "reasoning", "output", "history_length", "newest_first")
_SLOT = "{history}"


@dataclass(frozen=True)
class Option:
    """One way to write a component.

    parts: what it sets, by name: fields of a template; or `lead` and `opening` before the history, `bridge` behind it, or `closing` where
    there is no bridge; `ending` of a scored title; `null`, the item of an empty history; `examples`, a list of rows.
    """

    name: str
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Component:
    """Options of which a template has one; no two components set the same part, so that all can be combined."""

    name: str
    options: tuple[Option, ...]


class Space:
    """Components of a template with the options that make a difference on the given rows, and the templates they make.

    Which item fields are shown never changes. Where the order of the history does, `oldest first` and `newest first` change places in role,
    task and history; a start that tells the order in other words keeps them. train: where worked examples come from; see `teachers`.
    """

    def __init__(self, start: Template, rows: Sequence[Row], train: Sequence[Row], seed: int = 0, author: str = "components") -> None:
        self.start, self._author, self._seed = start, author, seed
        before, _, after = start.history.partition(_SLOT)
        self._plain = start.history.count(_SLOT) == 1
        self._own: dict[str, Any] = {name: getattr(start, name) for name in _KEPT}
        self._own |= {"lead": before, "opening": "", "closing": "", "bridge": after, "ending": "", "null": None, "examples": ()}
        self.components = tuple(self._effective(rows, self._offered(rows, train)))

    @property
    def unchanged(self) -> Choice:
        """The choice that is the first template."""
        return (0,) * len(self.components)

    def template(self, choice: Choice) -> Template:
        """The template with these options; the first one itself where nothing differs. Raises DataError for one that breaks its rules."""
        picked = [(c, c.options[n]) for c, n in zip(self.components, choice, strict=True) if n]
        if not picked:
            return self.start
        parts = dict(self._own)
        for _, option in picked:
            parts |= option.parts
        return self._made(parts, ", ".join(f"{component.name} {option.name}" for component, option in picked))

    def _made(self, parts: Mapping[str, Any], what: str) -> Template:
        start = self.start
        fields = {name: parts[name] for name in _KEPT}
        fields["candidate_item"] += parts["ending"]
        if self._plain:
            fields["history"] = parts["lead"] + parts["opening"] + _SLOT + (parts["bridge"] or parts["closing"])
        else:
            fields["history"] = start.history
        if parts["null"] is not None:
            fields["nothing"] = fill(parts["history_item"], dict.fromkeys(("title", *start.fields), parts["null"]) | {"number": "1"})
        if parts["newest_first"] != start.newest_first:
            for name in ("role", "task", "history"):
                fields[name] = _turned(fields[name])
        made = start.revise(self._author, name=f"{start.name}: {what}", **fields)
        if not parts["examples"]:
            return made
        shown = worked(made, parts["examples"], self._seed)
        return replace(made, task="\n\n".join(text for text in (made.task, shown) if text))

    def _offered(self, rows: Sequence[Row], train: Sequence[Row]) -> Iterator[tuple[str, list[Option]]]:
        """Every component with all its options, whether they make a difference or not."""
        start, scored = self.start, self.start.kind == "likelihood"
        if start.history_length:
            lengths = sorted({*_LENGTHS} - {start.history_length})
            yield "history length", [Option(str(n), {"history_length": n}) for n in lengths]
            order = "oldest first" if start.newest_first else "newest first"
            yield "order", [Option(order, {"newest_first": not start.newest_first})]
            items = wording.SCORED_ITEMS if scored else wording.ITEMS
            yield "items", [Option(name, self._items(parts)) for name, parts in items.items() if self._plain or not scored]
            if self._plain:
                leads = wording.SCORED_LEADS if scored else wording.LEADS
                yield "lead-in", [Option(name, {"lead": text}) for name, text in leads.items()]
        yield "task", _options("task", wording.TASKS[start.kind])
        if scored:
            yield "ending", _options("ending", wording.SCORED_ENDS)
            if start.history_length:
                yield "empty history", _options("null", wording.NOTHINGS)
                if self._plain:
                    yield "bridge", _options("bridge", wording.BRIDGES)
        else:
            yield "role", _options("role", wording.ROLES)
            if start.kind != "pointwise":
                yield "candidates", [Option(n, self._items({"candidate_item": text})) for n, text in wording.CANDIDATES.items()]
            yield "answer", [Option(name, parts) for name, parts in wording.ANSWERS[start.kind].items()]
        if start.history_length:
            known = teachers(train, rows, self._seed)
            drawn = [known[sum(_EXAMPLES[:n]) : sum(_EXAMPLES[: n + 1])] for n in range(len(_EXAMPLES))]
            yield "examples", [Option(", ".join(row.id for row in some), {"examples": some}) for some in drawn if some]

    def _items(self, parts: Mapping[str, str]) -> dict[str, str]:
        """The parts with `{item}` replaced by the fields that are shown there now: one, and others in parentheses behind it."""
        found = dict(parts)
        for name in ("history_item", "candidate_item"):
            if name in parts:
                first, *more = dict.fromkeys(slots(getattr(self.start, name), ("title", *self.start.fields)))
                item = f"{{{first}}}" + (f" ({', '.join(f'{{{other}}}' for other in more)})" if more else "")
                found[name] = parts[name].replace("{item}", item)
        return found

    def _effective(self, rows: Sequence[Row], offered: Iterator[tuple[str, list[Option]]]) -> Iterator[Component]:
        """Components with the options that read differently from the first template and from each other on the longest history."""
        as_is, longest = Option("as it is", {}), max(rows, key=lambda row: len(row.history))
        for name, options in offered:
            seen, kept = {_read(self.start, longest)}, [as_is]
            for option in options:
                try:
                    read = _read(self._made({**self._own, **option.parts}, name), longest)
                except DataError:  # a section that is near its longest has no room for it
                    continue
                if read not in seen:
                    seen.add(read)
                    kept.append(option)
            if len(kept) > 1:
                yield Component(name, tuple(kept))


def _options(part: str, texts: Mapping[str, str]) -> list[Option]:
    return [Option(name, {part: text}) for name, text in texts.items()]


def _read(template: Template, row: Row) -> tuple[object, ...]:
    """What a model would be given for a row and for nobody, to tell options apart."""
    scored = template.kind == "likelihood"
    return template.render((), ()), template.render(row.history, row.candidates), scored and template.continuation(row.candidates[0])


def _turned(text: str) -> str:
    """Text that tells the order of the history, telling the other one."""
    return "newest first".join(part.replace("newest first", "oldest first") for part in text.split("oldest first"))
