"""Lists of candidates written as JSON: of ids, of titles, of objects, by rank."""

from __future__ import annotations

import json
import re
from typing import Any

from workbench.prompts.line_lists import Mention, agreed, entries, ordered
from workbench.prompts.matching import WRAPPED_ID, Offer, plain

_JSON_TRIES = 100
_DEPTH = 6
_OPENING = re.compile(r"[\[{]")
_NAMED = ("id", "candidate", "candidate_id", "candidateid", "item", "item_id", "index", "label")


def json_lists(text: str, offer: Offer) -> tuple[list[list[int]], str]:
    """The lists in the JSON values of a text, and the text without its JSON objects, whose keys would read as lines."""
    decoder, found, rest, start = json.JSONDecoder(), [], "", 0
    for _ in range(_JSON_TRIES):
        opening = _OPENING.search(text, start)
        if not opening:
            break
        rest += text[start : opening.start()]
        try:
            value, start = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            rest, start = rest + opening[0], opening.end()
            continue
        found.append(_flat(value, offer))
        if not value or isinstance(value, list):
            rest += text[opening.start() : start]
    return found, rest + text[start:]


def _flat(value: Any, offer: Offer, depth: int = 0) -> list[int]:
    """The candidates of a JSON list or object, in its order."""
    if depth > _DEPTH:
        return []
    if isinstance(value, list):
        return [place for entry in value for place in _element(entry, offer, depth)]
    names = [(_cell(name, offer), v) for name, v in value.items()]
    if any(place is not None for place, _ in names):
        return ordered([Mention(p, _number(v)) for p, v in names if p is not None])
    if value and all(plain(name).strip().isdecimal() for name in value):
        return [place for name in sorted(value, key=lambda n: int(plain(n))) for place in _element(value[name], offer, depth)]
    inner = [_flat(v, offer, depth + 1) for v in value.values() if isinstance(v, list | dict)]
    own = _record(value, offer)
    if not own:
        inner += [[m.place for m in entries(" ".join(plain(v).split()), offer)[1]] for v in value.values() if isinstance(v, str)]
    return max((own, *inner), key=lambda places: len({p for p in places if p >= 0}))


def _element(entry: Any, offer: Offer, depth: int) -> list[int]:
    """The candidates of one element of a JSON list."""
    if isinstance(entry, dict):
        return _record(entry, offer) or _flat(entry, offer, depth + 1)
    if isinstance(entry, list):
        return _flat(entry, offer, depth + 1)
    if isinstance(entry, bool) or not isinstance(entry, int | str):
        return []
    if isinstance(entry, int):
        place = offer.by_number(entry)
        return [place if place >= 0 else offer.by_near_title(str(entry)) if abs(entry) < 10_000 else place]
    line = " ".join(plain(entry).split())
    mentions = entries(line, offer)[1]
    return [m.place for m in mentions] or [offer.by_near_title(line)]


def _record(entry: dict[str, Any], offer: Offer) -> list[int]:
    """An object that describes one candidate: {"id": "C3", "title": ..}."""
    ids, titles = [], []
    for name, value in entry.items():
        text = plain(value).strip() if isinstance(value, str) else ""
        if found := WRAPPED_ID.fullmatch(text):
            ids.append(offer.by_id(found))
        elif plain(name) in _NAMED and (text.isdecimal() or (isinstance(value, int) and not isinstance(value, bool))):
            ids.append(offer.by_number(int(value if not text else text[:5])))
        elif text and (place := offer.by_title(text)) is not None:
            titles.append(place)
    return agreed(ids, titles)


def _cell(text: str, offer: Offer) -> int | None:
    """A key of a JSON object as a candidate, if it is one. `id` and the like are keys in their own right, whatever the titles."""
    name = plain(text).strip()
    found = WRAPPED_ID.fullmatch(name)
    if found:
        return offer.by_id(found)
    return None if name.isdecimal() or len(name) < 3 or name in (*_NAMED, "title", "ranking", "answer") else offer.by_title(name)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 else None
