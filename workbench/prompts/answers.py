"""What a model's answer comes to: complete, partial or invalid, and what was wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.prompts.matching import ID, Offer, plain
from workbench.prompts.reading import lists, visible
from workbench.prompts.tasks import Item

Status = Literal["complete", "partial", "invalid"]
_SUMS_UP = re.compile(r"\b(?:answer|choice|choose|pick|select|best|final|therefore)\b")
_YES, _NO = re.compile(r"\b(?:yes|true)\b"), re.compile(r"\b(?:no|false)\b")


@dataclass(frozen=True)
class RankingAnswer:
    """An order of candidates as a model gave it.

    order: candidate ids, best first, each once; duplicates: further mentions of these; unknown: ids and titles that were not offered or
    could mean several candidates; missing: candidates that were not named.
    """

    order: tuple[str, ...]
    duplicates: int
    unknown: int
    missing: int

    @property
    def status(self) -> Status:
        """`complete` where every candidate has a place, `invalid` where none has."""
        return "invalid" if not self.order else "partial" if self.missing else "complete"


def parse_ranking(text: str, offered: Sequence[Item]) -> RankingAnswer:
    """Reads an order of the candidates that a prompt showed as C1, C2, .. in the order of `offered`. Never raises.

    Takes ids or titles in JSON, lines, tables or one line, numbered in any usual way, in markdown, behind reasoning. Of several lists the
    one with most candidates counts, and the last of equals. A title must be one candidate's and nearly the same; an id with another
    candidate's title beside it is unknown; a number that could be rank or candidate is a rank where a title follows.
    """
    titles = [item.title for item in offered]
    best: list[int] = []
    for places in lists(visible(text, titles), Offer(titles)):
        if places and _distinct(places) >= _distinct(best):
            best = places
    known = [place for place in best if place >= 0]
    order = tuple(dict.fromkeys(known))
    return RankingAnswer(tuple(offered[p].id for p in order), len(known) - len(order), len(best) - len(known), len(offered) - len(order))


def parse_choice(text: str, offered: Sequence[Item]) -> str | None:
    """The one candidate that an answer chooses, as an id of `offered`; None where it names none or several. Never raises."""
    titles = [item.title for item in offered]
    answer = visible(text, titles)
    ranked = parse_ranking(answer, offered)
    if len(ranked.order) == 1 and not ranked.unknown:
        return ranked.order[0]
    offer = Offer(titles)
    # A sentence may say it: the only id of the whole answer, or of a last line that sums up.
    last = next((line for line in reversed(answer.splitlines()) if line.strip()), "")
    for part in (answer, last if _SUMS_UP.search(plain(last)) else ""):
        named = {offer.by_id(m) for m in ID.finditer(plain(part))}
        if len(named) == 1 and min(named) >= 0:
            return offered[min(named)].id
    return None


def parse_yes_no(text: str) -> bool | None:
    """Yes or no: the word an answer begins with, else the only one it holds; None for neither. Never raises."""
    words = plain(visible(text, ()))
    first = re.match(r"\W*(?:answer\W+)?(yes|no|true|false)\b", words)
    if first:
        return first[1] in ("yes", "true")
    yes, no = bool(_YES.search(words)), bool(_NO.search(words))
    return yes if yes != no else None


def _distinct(places: Sequence[int]) -> int:
    return len({place for place in places if place >= 0})
