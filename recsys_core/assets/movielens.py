"""MovieLens-100K in one form, whichever source it came from.

`ratings.tsv` is the official `u.data` byte for byte: user, item, rating, timestamp, no header. `items.tsv` has a header and the columns
item, title (without year), year, genres (joined by '|'). The dataset: F. M. Harper and J. A. Konstan, "The MovieLens Datasets",
ACM TiiS 5(4), 2015.

Only the RecBole branch could be run on the real archive so far; the official branch is tested on a small archive of the same layout.
Both must give the same SHA-256s, so a difference between them shows as a refused source, never as another dataset.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""In the order of the official flags."""

_RECBOLE = "recbole/dataset_example/ml-100k/ml-100k"


def from_official(archive: Path, out: Path) -> None:
    """From GroupLens' ml-100k.zip: `u.item` is latin-1, '|' between fields, 19 genre flags last."""
    with zipfile.ZipFile(archive) as zipped:
        (out / "ratings.tsv").write_bytes(zipped.read("ml-100k/u.data"))
        lines = zipped.read("ml-100k/u.item").decode("latin-1").splitlines()
    fields = [line.split("|") for line in lines if line]
    _write_items(out, ((f[0], f[1], [genre for genre, flag in zip(GENRES, f[-len(GENRES) :], strict=True) if flag == "1"]) for f in fields))


def from_recbole(archive: Path, out: Path) -> None:
    """From RecBole's wheel: the ratings have a header line more, the titles lost their year to a column of its own."""
    with zipfile.ZipFile(archive) as zipped:
        ratings = zipped.read(f"{_RECBOLE}.inter").replace(b"\r", b"")
        lines = zipped.read(f"{_RECBOLE}.item").decode("utf-8").splitlines()[1:]
    (out / "ratings.tsv").write_bytes(ratings[ratings.index(b"\n") + 1 :])
    fields = [line.split("\t") for line in lines if line]
    # One item has no title; the wheel misspells the word that the official file has in its place.
    _write_items(out, ((i, "unknown" if title == "unkonwn" else f"{title} ({year})", g.split()) for i, title, year, g in fields))


def _write_items(out: Path, items: Iterable[tuple[str, str, list[str]]]) -> None:
    rows = ["item\ttitle\tyear\tgenres"]
    for item, dated, genres in items:
        # "(V)", released on video, may follow the year.
        title, year = re.fullmatch(r"(.*?)(?:\s*\((\d{4})\)(?:\s*\(V\))?)?", " ".join(dated.split())).groups()  # type: ignore[union-attr]
        rows.append(f"{item}\t{title}\t{year or ''}\t{'|'.join(sorted(genres, key=GENRES.index))}")
    (out / "items.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")
