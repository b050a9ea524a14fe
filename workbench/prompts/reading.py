"""From the text of an answer to the lists of candidates in it, its reasoning left out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workbench.prompts.json_lists import json_lists
from workbench.prompts.line_lists import line_lists
from workbench.prompts.matching import Offer, plain

_LONGEST = 20_000
"""Characters at the end of an answer that are read; the list stands last."""
_THOUGHT = r"(?:think|thinking|thought|reasoning|analysis|scratchpad)"
_CLOSING, _OPENING = rf"(?i:</{_THOUGHT}>)", rf"(?i:<{_THOUGHT}>)"
_LINE = r"(?m:^)[ \t]*"
_ANSWER = re.compile(r"<(answer|ranking|output)>((?:(?!<\1>).)*?)(?:</\1>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(rf"<[/\s]*(?:{_THOUGHT}|answer|ranking|output)>", re.IGNORECASE)


def visible(text: str, titles: Sequence[str]) -> str:
    """An answer without its reasoning: what follows the last closing tag, and inside the last answer tags.

    An opening tag that is never closed hides what follows, for the answer was cut before it came. Where a title spells such a tag, tags
    count at the beginning of a line only.
    """
    spelled = any(_TAG.search(title) for title in titles)
    where = _LINE if spelled else ""
    if closings := list(re.finditer(where + _CLOSING, text)):
        text = text[closings[-1].end() :]
    if opening := re.search(where + _OPENING, text):
        text = text[: opening.start()]
    text = text[-_LONGEST:]
    if not spelled and (answers := [m[2] for m in _ANSWER.finditer(text) if m[2].strip()]):
        return answers[-1]
    return text


def lists(text: str, offer: Offer) -> list[list[int]]:
    """Every list of candidates in an answer, in order, those written as JSON last. Places are indices of the offer or UNKNOWN_*."""
    in_json: list[list[int]] = []
    rest = text
    # Full-width brackets and quotes make JSON only once they are plain.
    for source in (text, plain(text)):
        found, rest = json_lists(source, offer)
        in_json += found
    return [*line_lists(rest, offer), *in_json]
