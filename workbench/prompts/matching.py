"""From what a model wrote of one candidate, an id or a title, to the candidate it means: surely, or not at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from workbench.prompts.placeholders import shown

UNKNOWN_ID = -1
"""An id that no candidate has, or one beside the title of another candidate."""
UNKNOWN_TITLE = -2
"""A title that no candidate has, or that several have."""
_NEAR = 0.9
"""Least similarity of two titles (difflib's ratio of matching characters) that are taken for one."""
_CUT = 15
"""Least characters of a title's beginning that stand for the title; it must also be most of it."""
_OPEN, _CLOSE = r"""[\s"'`*_\[({<«“‘„]*""", r"""[\s"'`*_\])}»”’]*"""
_WORD, _END = r"(?:candidate|item|option)", r"(?![^\W_])(?!\.\d)"
_ID = rf"(?:(?:{_WORD}|id)\s?[:#=]?\s?)?c\s?0*(\d{{1,4}}){_END}|{_WORD}\s?#?\s?(\d{{1,4}}){_END}"
ID = re.compile(rf"(?<![^\W_])(?:{_ID})")
"""An id as prompts show it, in lower case: c3, c 03, candidate c3, candidate 3."""
WRAPPED_ID = re.compile(rf"{_OPEN}(?:{_ID}){_CLOSE}")
NEXT_ID = re.compile(rf"(?:[\s,;/&|=>→≻›»]|->|\band\b|\bthen\b)*{_OPEN}(?:{_ID}){_CLOSE}")
_QUOTES = " \"'`*_“”‘’«»"
_LABELS = re.compile(r"[\s:.)\]\-–—|\"'“”*_`=(]*")
"""What may stand between an id and its title."""
_NUMBERS = re.compile(r"\d+|\b[ivxlcdm]+\b")
_ARTICLE = re.compile(r"^(.*), (the|a|an|les|la|le|el|il|das|der|die)\b(.*)$")
_ABOUT = re.compile(r"[\"'`*_”’»]*\s*(?:[:(–—|]|- )")
_ASIDE = re.compile(r"\s*\([^()]*\)\s*$")


def plain(text: str) -> str:
    """Text to compare: compatibility forms such as full-width digits made plain, lower case, no invisible characters; `①` becomes `1. `."""
    numbered = re.sub("[①-⑳]", lambda digit: f"{unicodedata.numeric(digit[0]):g}. ", text)
    normal = unicodedata.normalize("NFKC", numbered).casefold()
    return "".join(c for c in normal if unicodedata.category(c) != "Cf")


def key(text: str) -> str:
    """The words of plain text; where it has none, its characters."""
    return " ".join(re.findall(r"[^\W_]+", text)) or "".join(text.split())


class Offer:
    """The titles of the candidates of one prompt, in the order in which they were shown. Indices are places, from 0."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = [plain(shown(title, len(title))) for title in titles]
        self.longest = max(map(len, self.titles), default=0)
        self._keys = [key(title) for title in self.titles]
        self._exact = _places(self.titles)
        self._loose = [
            _places(self._keys),
            _places([key(_turned(t)) for t in self.titles]),
            _places([key(_ASIDE.sub("", t)) for t in self.titles]),
        ]

    def by_number(self, number: int) -> int:
        """The place of candidate C`number`, or UNKNOWN_ID."""
        return number - 1 if 1 <= number <= len(self.titles) else UNKNOWN_ID

    def by_id(self, found: re.Match[str]) -> int:
        """The place of a match of one of the id patterns, or UNKNOWN_ID."""
        return self.by_number(int(found[1] or found[2]))

    def by_exact_title(self, text: str) -> int | None:
        """The candidate whose title plain text is; None where none has it, UNKNOWN_TITLE where several have."""
        return _only(self._exact.get(text.strip()) or self._exact.get(text.strip(_QUOTES)))

    def by_title(self, text: str) -> int | None:
        """The candidate whose title plain text is, down to punctuation, a year in brackets and an article put last.

        None where no title is like it, UNKNOWN_TITLE where several are.
        """
        for places in (self._exact.get(text.strip()), *(table.get(key(text)) for table in self._loose)):
            if places:
                return _only(places)
        return None

    def by_near_title(self, text: str) -> int:
        """The one candidate whose title is nearly this plain text, or begins with it where it is most of the title; else UNKNOWN_TITLE.

        Numbers must agree: sequels differ by little else.
        """
        found = self.by_title(text)
        if found is None:
            mine = key(text)
            near = [n for n, other in enumerate(self._keys) if _alike(mine, other)]
            found = near[0] if len(near) == 1 else UNKNOWN_TITLE
        return found

    def explained(self, text: str) -> int | None:
        """The candidate with whose title plain text begins, before a dash, colon or bracket and something about it; None for no such one.

        Of several the longest title counts.
        """
        body, bare = text.lstrip(_QUOTES), [title.lstrip(_QUOTES) for title in self.titles]
        begun = [n for n, title in enumerate(bare) if title and body.startswith(title)]
        begun = [n for n in begun if _ABOUT.match(body, len(bare[n]))]
        if not begun:
            return None
        longest = [n for n in begun if len(bare[n]) == max(len(bare[m]) for m in begun)]
        return longest[0] if len(longest) == 1 else UNKNOWN_TITLE

    def after_own_title(self, place: int, text: str, start: int) -> int | None:
        """Where plain text goes on after the title of the candidate, if that is what follows an id that ends at `start`."""
        title = _LABELS.sub("", self.titles[place], count=1)
        begin = _end(_LABELS, text, start)
        stop = begin + len(title)
        return (
            stop if title and text.startswith(title, begin) and not (text[stop - 1].isalnum() and text[stop : stop + 1].isalnum()) else None
        )


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name:
            table.setdefault(name, []).append(place)
    return table


def _only(places: list[int] | None) -> int | None:
    return None if not places else places[0] if len(places) == 1 else UNKNOWN_TITLE


def _turned(title: str) -> str:
    """`shining, the (1980)` as `the shining (1980)`."""
    return _ARTICLE.sub(r"\2 \1\3", title)


def _alike(mine: str, other: str) -> bool:
    if len(mine) >= max(_CUT, 0.6 * len(other)) and other.startswith(mine):
        return True
    most = 2 * min(len(mine), len(other)) / max(len(mine) + len(other), 1)
    if most < _NEAR or _NUMBERS.findall(mine) != _NUMBERS.findall(other):
        return False
    same = SequenceMatcher(None, mine, other, autojunk=False)
    return same.quick_ratio() >= _NEAR and same.ratio() >= _NEAR
