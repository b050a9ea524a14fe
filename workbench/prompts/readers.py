"""Ranking tasks from files: MIND's, RecPrompt's and PO4ISR's."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from recsys_core.errors import DataError
from workbench.prompts.tasks import DEV, TEST, TRAIN, Item, RankingTask, Row, divide, lot, sizes

_RECPROMPT = ("news_id", "title", "category", "subvert", "abstract")
_SESSION, _CANDIDATES = "Current session interactions: ", "\nCandidate set: "


def mind_task(
    folder: Path, candidates: int | None = None, train: int | None = None, dev: int | None = None, test: int | None = None, seed: int = 0
) -> RankingTask:
    """MIND: rows drawn from the impressions of a folder with `behaviors.tsv` and `news.tsv`, no user in two parts.

    A part whose size is left open has 50, 200 or 400 rows (train, dev, test), fewer where the folder has few.
    """
    rows = read_mind(folder / "behaviors.tsv", folder / "news.tsv", candidates, seed)
    offered = "all candidates" if candidates is None else f"up to {candidates} candidates, those not clicked drawn by chance"
    return _drawn("mind", f"MIND, {folder.name}, {offered}", rows, (test, dev, train), (TEST, DEV, TRAIN), seed)


def read_mind(behaviors: Path, news: Path, candidates: int | None = None, seed: int = 0) -> list[Row]:
    """Impressions of MIND (Wu et al. 2020) with their clicks; fields category, subcategory, abstract.

    behaviors: tab-separated impression id, user, time, ids of the history, and `id-1` (clicked) or `id-0`; news: id, category, subcategory,
    title, abstract and more. candidates: keeps all clicks and draws others by chance up to this number, in their order; None keeps all.
    Impressions without a click are left out, since no metric is defined on them; an article offered twice counts once, as its click.
    """
    known: dict[str, Item] = {}
    for place, (id_, category, subcategory, title, abstract, *_) in _tab_separated(news, 5):
        if id_ in known:
            raise DataError(f"{place}: news {id_!r} is there twice; give every article one line")
        known[id_] = Item(id_, title, {"category": category, "subcategory": subcategory, "abstract": abstract})

    def article(place: str, id_: str) -> Item:
        if id_ not in known:
            raise DataError(f"{place}: news {id_!r} is not in {news}; take both files from one folder")
        return known[id_]

    rows = []
    for place, (impression, user, _, history, offers) in _tab_separated(behaviors, 5):
        labels: dict[str, float] = {}
        for offer in offers.split():
            id_, dash, label = offer.rpartition("-")
            if not dash or label not in ("0", "1"):
                raise DataError(f"{place}: candidate {offer!r} is not 'ID-0' or 'ID-1'; MIND's test set has no labels, take train or dev")
            labels[id_] = max(labels.get(id_, 0.0), float(label))
        clicked = [id_ for id_, label in labels.items() if label]
        if not clicked:
            continue
        if candidates is not None:
            others = sorted((id_ for id_, label in labels.items() if not label), key=lambda id_: lot(seed, f"{impression} {id_}"))
            drawn = {*clicked, *others[: max(candidates - len(clicked), 0)]}
            labels = {id_: label for id_, label in labels.items() if id_ in drawn}
        items = tuple(article(place, id_) for id_ in history.split()), tuple(article(place, id_) for id_ in labels)
        rows.append(_row(place, impression, *items, dict.fromkeys(clicked, 1.0), user=user))
    return rows


def recprompt_task(path: Path, train: int | None = None, dev: int | None = None, test: int | None = None, seed: int = 0) -> RankingTask:
    """RecPrompt's sample of MIND, which has no splits of its own; sizes left open are 20, 40 and 40 (train, dev, test), or less."""
    return _drawn("mind-sample", f"RecPrompt, {path.name}", read_recprompt(path), (test, dev, train), (40, 40, 20), seed)


def read_recprompt(path: Path) -> list[Row]:
    """RecPrompt's CSV (Liu et al. 2024): one impression a record, columns of one line an article, the click as `C6`.

    Fields as in `read_mind`.
    """
    rows = []
    with _opened(path) as lines:
        records = csv.DictReader(lines)
        needed = {"impression_id", "label"} | {f"{side}_{column}" for side in ("history", "candidate") for column in _RECPROMPT}
        if missing := sorted(needed - set(records.fieldnames or ())):
            raise DataError(f"{path}, line 1: no column {missing[0]!r}; RecPrompt's files have {', '.join(sorted(needed))}")
        start = records.line_num + 1
        for record in records:
            place, start = f"{path}, line {start}", records.line_num + 1  # a record has many lines
            history, offered = (_articles(place, record, side) for side in ("history", "candidate"))
            label = record["label"] or ""
            number = int(label[1:]) if re.fullmatch("C[0-9]{1,6}", label) else 0
            if not 1 <= number <= len(offered):
                raise DataError(f"{place}: label {label!r} is not C1 .. C{len(offered)}")
            rows.append(_row(place, record["impression_id"] or "", history, offered, {offered[number - 1].id: 1.0}))
    return rows


def po4isr_task(folder: Path, train: int | None = None, dev: int | None = None, test: int | None = None, seed: int = 0) -> RankingTask:
    """PO4ISR's own splits of one domain: `train_50.json`, `valid.json`, `test_seed_42.json`, or so many rows of each, drawn by chance."""
    parts = []
    for name, size in (("train_50.json", train), ("valid.json", dev), ("test_seed_42.json", test)):
        rows = read_po4isr(folder / name)
        parts.append(rows if size is None else divide(rows, (size,), seed)[0])
    return RankingTask(f"po4isr-{folder.name}", f"PO4ISR, {folder.name}, its own splits, test of seed 42; seed {seed}", *parts)


def read_po4isr(path: Path) -> list[Row]:
    """PO4ISR's sessions (Sun et al. 2024): a JSON list of `input` (two numbered lists of quoted titles), `target` and `target_index`.

    The source knows items by their titles only, so ids are hashes of titles, and a second candidate with the same title gets an id of
    its own. The target is taken by its index, from 1, and checked against its title.
    """
    with _opened(path) as lines:
        try:
            sessions = json.load(lines)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(sessions, list):
        raise DataError(f"{path}: {type(sessions).__name__}, not a list of sessions")
    rows = []
    for number, session in enumerate(sessions, 1):
        place = f"{path}, session {number}"
        if not isinstance(session, dict) or not {"input", "target", "target_index"} <= set(session):
            raise DataError(f"{place}: {str(session)[:80]!r} is not an object with 'input', 'target' and 'target_index'")
        before, found, after = str(session["input"]).partition(_CANDIDATES)
        if not found or not before.startswith(_SESSION):
            raise DataError(f"{place}: input {before[:80]!r} is not '{_SESSION}[...]' and '{_CANDIDATES.strip()}[...]' on two lines")
        history, offered = _titled(_numbered(place, before.removeprefix(_SESSION))), _titled(_numbered(place, after))
        target, index = session["target"], session["target_index"]
        if not isinstance(index, int) or not 1 <= index <= len(offered) or offered[index - 1].title != target:
            raise DataError(f"{place}: candidate {index!r} is not the target {str(target)[:80]!r}; target_index counts candidates from 1")
        # The stem keeps the rows of the three files apart.
        rows.append(_row(place, f"{path.stem}-{number}", history, offered, {offered[index - 1].id: 1.0}))
    return rows


def _drawn(name: str, source: str, rows: list[Row], asked: Sequence[int | None], usual: Sequence[int], seed: int) -> RankingTask:
    test, dev, train = divide(rows, sizes(len(rows), asked, usual), seed)
    return RankingTask(name, f"{source}; random split, seed {seed}", train, dev, test)


def _row(place: str, id_: str, history: tuple[Item, ...], offered: tuple[Item, ...], grades: Mapping[str, float], user: str = "") -> Row:
    try:
        return Row(id_, history, offered, grades, user=user)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _articles(place: str, record: Mapping[str, Any], side: str) -> tuple[Item, ...]:
    columns = {name: (record[f"{side}_{name}"] or "").replace("\r\n", "\n").split("\n") for name in _RECPROMPT}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{place}: {side} has {lengths} lines; each column must have one line an article")
    if all(column == [""] for column in columns.values()):
        return ()
    return tuple(
        Item(id_, title, {"category": category, "subcategory": subcategory, "abstract": abstract})
        for id_, title, category, subcategory, abstract in zip(*columns.values(), strict=True)
    )


def _numbered(place: str, text: str) -> list[str]:
    """The titles of `[1."A",2."B"]`. A title may hold quotes, brackets and numbers, but not `",2."` with the number that comes next."""
    if not (text.startswith('[1."') and text.endswith('"]')):
        raise DataError(f'{place}: {text[:80]!r} is not a list like [1."A",2."B"]')
    titles: list[str] = []
    rest = text[len('[1."') : -len('"]')]
    while (end := rest.find(mark := f'",{len(titles) + 2}."')) >= 0:
        titles.append(rest[:end])
        rest = rest[end + len(mark) :]
    return [*titles, rest]


def _titled(titles: Sequence[str]) -> tuple[Item, ...]:
    """Items with ids that depend on the title and, for the second of one title, on how many came before."""
    counts: dict[str, int] = {}
    items = []
    for title in titles:
        name = hashlib.sha256(title.encode(errors="surrogatepass")).hexdigest()[:10]
        counts[name] = counts.get(name, 0) + 1
        items.append(Item(name if counts[name] == 1 else f"{name}-{counts[name]}", title))
    return tuple(items)


def _tab_separated(path: Path, least: int) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line; quotes have no meaning, and no character but a line feed ends a line."""
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) < least:
                raise DataError(f"{path}, line {number}: {len(cells)} tab-separated cells in {line[:80]!r}, at least {least} are expected")
            yield f"{path}, line {number}", cells


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file, and DataErrors for what can be wrong with it as a whole, while it is read."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error.object[error.start : error.end]!r} at byte {error.start} of a block is not UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{path}: not CSV ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
