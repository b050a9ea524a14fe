"""Placeholders in text that is filled with untrusted data: only known names, in one pass, so that what is filled in opens no other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping

from agents.prompts import one_line

_SLOT = re.compile(r"(\{+)([a-z][a-z0-9_]*)(\}+)")


def fill(text: str, values: Mapping[str, str]) -> str:
    """Text with `{name}` replaced by its value for each known name; other braces, as of a JSON example, stay as they are.

    `{{name}}` stands for the literal `{name}`. Values are not looked at again.
    """

    def replace(found: re.Match[str]) -> str:
        opened, name, closed = found.groups()
        if len(opened) > 1 and len(closed) > 1:
            return found[0][1:-1]
        return f"{opened[1:]}{values[name]}{closed[1:]}" if name in values else found[0]

    return _SLOT.sub(replace, text)


def slots(text: str, known: Collection[str]) -> list[str]:
    """The names that `fill` would replace, in order and with repetitions."""
    return [name for opened, name, closed in _SLOT.findall(text) if min(len(opened), len(closed)) == 1 and name in known]


def literal(text: str) -> str:
    """Text that `fill` gives back as it was: for data, such as a worked example, that becomes part of a section."""
    return _SLOT.sub(lambda found: f"{{{found[0]}}}", text)


def shown(text: str, limit: int) -> str:
    """Untrusted text as it stands in a prompt: one line, no control characters, at most `limit` characters, never empty.

    Sections of a prompt are set apart by blank lines, so one line that is not blank can neither end a section nor begin one.
    """
    return one_line(text, limit).strip() or "-"


def forbidden(text: str) -> str:
    """The first character that a section may not hold (control characters but newline and tab, halves of characters), or nothing."""
    return next((c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")), "")
