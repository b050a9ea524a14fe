"""Lists of candidates written in lines: numbered, in bullets, in a table, in a sentence, by id or by title."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workbench.prompts.matching import ID, NEXT_ID, UNKNOWN_ID, UNKNOWN_TITLE, WRAPPED_ID, Offer

_NUMBERING = re.compile(
    r"""[*_]{0,2}
    (?: \(?\#?\d{1,3}(?:st|nd|rd|th)?(?:\\?[.):\]](?!\d)|\s?[-–—](?=\s))  # 1. 1) (1) #1: 1st) 1\. and 1 -
      | \[\d{1,3}\](?=\s*[^\s>,;\[])                                # [1] before words; else it may be a candidate
      | \(?(?:[a-z]|[ivx]{1,5})[.)](?=\s)                           # a) (b) iv.
      | \#\d{1,3}(?=\s)                                             # #1
      | (?:rank|place|position|top)\s?\#?\d{1,3}\s?[:.)–—-]?        # rank 1:
      | \d{1,3}(?:st|nd|rd|th)\b(?:\s(?:place|choice))?             # 1st place
    )
    (?:[*_]{1,2}:?)?\s*""",
    re.VERBOSE,
)
_BULLET = re.compile(r"[-*–—+>]\s+|[•·]\s*")
_LEAD = re.compile(r"[^:]{1,60}:[\s*_]*")
_BARE = re.compile(r"[\[({\"']*\d{1,4}[\])}\"'.]*(?:[\s,;/&>→≻›»\[\](){}\"']+\d{1,4}[\])}\"'.]*)*")
_NUMBER = re.compile(r"\W*\d+\W*")
_EITHER = re.compile(rf"or\b{WRAPPED_ID.pattern}")
_VALUE = re.compile(r"\s?[:=|–—-]\s?(\d+(?:\.\d+)?)\W*")


class Mention(NamedTuple):
    """A candidate's place or UNKNOWN_*, and the number written beside it where nothing else was."""

    place: int
    value: float | None = None


def line_lists(text: str, offer: Offer) -> Iterator[list[int]]:
    """Lists between headings; a line that is no entry, such as an explanation, ends none."""
    current: list[Mention] = []
    for line in text.splitlines():
        line = " ".join(line.split())
        lead, mentions = entries(line, offer)
        if lead or (not mentions and (line.startswith("#") or line.rstrip("*_ ").endswith(":"))):
            yield ordered(current)
            current = []
        # Numbered sentences before the first candidate are steps of a thought, not entries.
        current += mentions if current else [m for m in mentions if m.place != UNKNOWN_TITLE]
    yield ordered(current)


def ordered(mentions: Sequence[Mention]) -> list[int]:
    """Places in order of mention; where each has a number beside it, by that number if these are the ranks 1, 2, .., else none.

    Scores could be meant either way up.
    """
    values = [m.value for m in mentions if m.value is not None]
    if len(mentions) < 2 or len(values) < len(mentions):
        return [m.place for m in mentions]
    if sorted(values) != list(range(1, len(values) + 1)):
        return []
    return [m.place for m in sorted(mentions, key=lambda m: m.value or 0.0)]


def entries(line: str, offer: Offer) -> tuple[bool, list[Mention]]:
    """What a line of plain text says of candidates, and whether a few words lead to several of them: `final ranking: c3 > c1`."""
    if line.startswith("|"):
        return False, _row(line, offer)
    stages, numbered = [line], False
    while (marker := _NUMBERING.match(line) or _BULLET.match(line)) and marker.end() < len(line):
        numbered = numbered or marker.re is _NUMBERING
        line = line[marker.end() :]
        stages.append(line)
    titled = next((place for stage in stages if (place := offer.by_exact_title(stage)) is not None), None)
    for stage in stages:
        if run := _run(stage, offer)[0]:
            # `c4 corvette` is a title where it is one, and else an id with a remark.
            if titled is not None and len(run) == 1 and not WRAPPED_ID.fullmatch(stage):
                run = [Mention(titled)]
            # What is numbered has its place already, whatever number stands behind.
            return False, [Mention(m.place) for m in run] if numbered else run
    if titled is not None and not _NUMBER.fullmatch(line):
        return False, [Mention(titled)]
    if _BARE.fullmatch(line):
        return False, _bare(line, offer)
    lead = _LEAD.match(line)
    if lead and (run := _run(line, offer, lead.end())[0]):
        return len(run) > 1, run
    if lead and _BARE.fullmatch(line, lead.end()) and len(numbers := _bare(line[lead.end() :], offer)) > 1:
        return True, numbers
    if (
        (place := offer.by_title(line)) is not None
        or (place := _last(line, offer, listed=len(stages) > 1)) is not None
        or (place := next((p for stage in stages if (p := offer.explained(stage)) is not None), None)) is not None
    ):
        return False, [Mention(place)]
    if numbered:
        return False, [Mention(offer.by_near_title(line))]
    return False, _inside(line, offer)


def _run(line: str, offer: Offer, start: int = 0) -> tuple[list[Mention], int]:
    """The ids that a line lists from `start` on, each with its title behind it or not, and where they end."""
    found: list[Mention] = []
    step = WRAPPED_ID.match(line, start)
    while step:
        place, start = offer.by_id(step), step.end()
        after = offer.after_own_title(place, line, max(step.end(1), step.end(2))) if place >= 0 else None
        start = after or start
        found.append(Mention(place))
        step = NEXT_ID.match(line, start)
        if not step and not after:
            rest = line[start:]
            if _EITHER.match(rest):
                found[-1] = Mention(UNKNOWN_ID)
            elif value := _VALUE.fullmatch(rest):
                found[-1] = Mention(place, float(value[1]))
            elif (
                len(rest) <= offer.longest + 20 and rest.strip() and offer.by_title(rest.strip(" :.)]-–—|\"'“”*_`=(")) not in (None, place)
            ):
                found[-1] = Mention(UNKNOWN_ID)
    return found, start


def _bare(line: str, offer: Offer) -> list[Mention]:
    """Numbers without a letter. One that is also another candidate's title means neither."""
    found = []
    for digits in re.findall(r"\d{1,4}", line):
        place, titled = offer.by_number(int(digits)), offer.by_title(digits)
        clash = titled is not None and place >= 0 and titled != place
        found.append(Mention(UNKNOWN_ID if clash else titled if titled is not None and place < 0 else place))
    return found


def _last(line: str, offer: Offer, listed: bool) -> int | None:
    """A title with its id behind it: `heat (c3)`. In a list the words before the only id may be anything but another title."""
    ids = list(ID.finditer(line))
    if not ids or any(c.isalnum() for c in line[ids[-1].end() :]):
        return None
    titled, place = offer.by_title(line[: ids[-1].start()].rstrip(" ([<:-–—|")), offer.by_id(ids[-1])
    if titled is None:
        return place if listed and len(ids) == 1 else None
    return place if titled == place else UNKNOWN_ID


def _inside(line: str, offer: Offer) -> list[Mention]:
    """The longest list of ids inside a sentence: at least two with `>` between them, or three. Fewer may be a remark."""
    best: list[Mention] = []
    start = 0
    while found := ID.search(line, start):
        run, stop = _run(line, offer, found.start())
        start = max(stop, found.end())
        enough = 2 if any(c in line[found.start() : stop] for c in ">→≻") else 3
        if len(run) >= max(enough, len(best) + 1):
            best = run
    return best


def _row(line: str, offer: Offer) -> list[Mention]:
    """A row of a table; its header and rule say nothing."""
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    ids = [offer.by_id(m) for cell in cells if (m := WRAPPED_ID.fullmatch(cell))]
    titles = [
        place
        for n, cell in enumerate(cells)
        # A number in front is the rank.
        if (n or not cell.isdecimal()) and not WRAPPED_ID.fullmatch(cell) and (place := offer.by_title(cell)) is not None
    ]
    return [Mention(place) for place in agreed(ids, titles)]


def agreed(ids: Sequence[int], titles: Sequence[int]) -> list[int]:
    """The candidate of an entry that names ids and titles: the id, where no title speaks against it."""
    if not ids:
        return list(titles[:1]) if len(set(titles)) < 2 else [UNKNOWN_TITLE]
    return [UNKNOWN_ID if any(t not in (ids[0], UNKNOWN_TITLE) for t in titles) else ids[0]]
