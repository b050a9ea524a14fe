"""Templates outside the process: TOML files that a person can edit, versions in the store, and what changed between two."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_core.errors import DataError, UnknownNameError
from workbench.prompts.starting import STARTING
from workbench.prompts.templates import SECTIONS, Template

if TYPE_CHECKING:
    from workbench.store import PromptVersion, Store, StoreReader

_SETTINGS = tuple(name for name in Template.__dataclass_fields__ if name not in SECTIONS)
_LISTS = ("fields", "parents")


def to_toml(template: Template) -> str:
    """The whole template as TOML, sections under `[sections]`; `from_toml` gives back an equal one."""
    settings = [f"{name} = {_value(getattr(template, name))}" for name in _SETTINGS]
    sections = [f"{name} = {_value(getattr(template, name))}" for name in SECTIONS]
    return "\n".join([*settings, "", "[sections]", *sections, ""])


def from_toml(text: str) -> Template:
    """Reads a template. Left-out settings and sections have Template's defaults. Raises DataError for what is none."""
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"the template is not TOML: {error}; export one for an example") from None
    sections = body.pop("sections", {})
    if not isinstance(sections, dict):
        raise DataError(f"sections of the template is {sections!r}, not a table; write [sections] and below it a line a section")
    for part, known in ((body, _SETTINGS), (sections, SECTIONS)):
        if unknown := sorted(set(part) - set(known)):
            where = "; it is a section, write it below a line [sections]" if unknown[0] in SECTIONS else ""
            raise DataError(f"the template has an unknown entry {unknown[0]!r}{where}; known are {', '.join(known)}")
    if missing := [name for name in ("name", "kind") if name not in body]:
        raise DataError(f"the template has no {missing[0]}; a template needs a name and a kind, such as kind = 'listwise'")
    for name, value in (body | sections).items():
        _check_type(name, value)
    given: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in (body | sections).items()}
    return Template(**given)


def diff(a: Template, b: Template) -> dict[str, list[str]]:
    """What changed from `a` to `b`: by section or setting, lines that begin with `- ` (gone) or `+ ` (new); equal ones are left out."""
    changed = {}
    for name in (*SECTIONS, *_SETTINGS):
        before, after = (getattr(t, name) for t in (a, b))
        if before != after:
            gone, new = ((value if name in SECTIONS else _value(value)).splitlines() for value in (before, after))
            changed[name] = [line for line in difflib.ndiff(gone, new) if line[0] in "+-"]
    return changed


class Shelf:
    """Keeps templates in a store whose own are read once, at the start: each further one costs no more than itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[Template, PromptVersion] = {}
        self._first: dict[str, str] = {}
        for row, template in kept(store):
            self._note(row, template)

    def keep(self, template: Template) -> PromptVersion:
        """Keeps a template and gives back its row; one that is there already is left as it is.

        The row's parent is the first of the template's parents that the store has; its text, the TOML, names all of them.
        """
        if template not in self._rows:
            parent = next((self._first[version] for version in template.parents if version in self._first), None)
            self._note(self._store.add_prompt(template.name, to_toml(template), template.author, parent), template)
        return self._rows[template]

    def _note(self, row: PromptVersion, template: Template) -> None:
        self._rows.setdefault(template, row)
        self._first.setdefault(template.version, row.id)


def keep(store: Store, template: Template) -> PromptVersion:
    """Keeps one template, as `Shelf.keep` does; reads all that the store has."""
    return Shelf(store).keep(template)


def kept(store: StoreReader, name: str = "") -> list[tuple[PromptVersion, Template]]:
    """The templates in a store, or those of one name, oldest first. Prompts of other kinds are left out."""
    found = []
    for row in store.prompts(name):
        try:
            found.append((row, from_toml(row.text)))
        except DataError:
            continue  # a prompt of another kind, such as an agent's
    return found


def find(store: StoreReader, key: str) -> Template:
    """The template of a row id, a version, a unique beginning of either, or the latest of a name. Raises UnknownNameError."""
    rows = kept(store)
    named = [template for row, template in rows if row.name == key]
    if named:
        return named[-1]
    matches = {t.version: t for row, t in rows if key and (row.id.startswith(key) or t.version.startswith(key))}
    if len(matches) == 1:
        return next(iter(matches.values()))
    names = sorted({row.name for row, _ in rows})
    problem = f"is ambiguous: versions {', '.join(sorted(matches)[:4])}" if matches else "is unknown"
    raise UnknownNameError(f"template {key!r} {problem}; store {store.where} has {', '.join(names) or 'none'}")


def resolve(store: StoreReader, key: str) -> Template:
    """The template of a TOML file, of a starting template's name, or of anything `find` knows, looked for in this order.

    Raises DataError for a file that cannot be read and UnknownNameError for what is nowhere.
    """
    if key.endswith(".toml"):
        try:
            return from_toml(Path(key).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"template file {key} cannot be read: {error}") from None
    try:
        return STARTING[key] if key in STARTING else find(store, key)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; built in are {', '.join(sorted(STARTING))}") from None


def _check_type(name: str, value: object) -> None:
    default = Template.__dataclass_fields__[name].type
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "tuple[str, ...]": isinstance(value, list) and all(isinstance(v, str) for v in value),
    }.get(str(default), isinstance(value, str))
    if not fits:
        example = '["category"]' if name in _LISTS else _example(name)
        raise DataError(f"{name} of the template is {value!r}; give a value like {example}")


def _example(name: str) -> str:
    default = Template.__dataclass_fields__[name].default
    return _value(default) if isinstance(default, str | int) else '"listwise"'


def _value(value: Any) -> str:
    """A value as TOML. JSON's strings, numbers and lists are TOML's too, but for a form that shows line breaks as such."""
    if not isinstance(value, str) or "\n" not in value.strip("\n"):
        return json.dumps(value, ensure_ascii=False)
    # A quote is escaped where it could be taken for a part of the closing three.
    return '"""\n' + re.sub(r'"(?="|\Z)', r'\\"', value.replace("\\", "\\\\")) + '"""'
