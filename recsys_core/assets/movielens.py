"""The MovieLens datasets in one form, whichever source they came from.

`ratings.tsv` (user, item, rating, timestamp, no header) or, from the later releases, `ratings.csv` as GroupLens wrote it; `items.tsv` with
a header and the columns item, title (without year), year, genres (joined by '|'); `users.tsv`, where the users are known, likewise. The
datasets: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.

The branches for RecBole's wheel and for ml-latest-small were run on the real archives; the others are tested on small archives of the same
layout. Both branches of ml-100k must give the same SHA-256s, so a difference shows as a refused source, never as another dataset.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
"""Of MovieLens-100K, in the order of the official flags."""

AGES = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56 and over",
}  # fmt: skip
"""Of MovieLens-1M, by code."""

OCCUPATIONS = (
    "other", "academic or educator", "artist", "clerical or admin", "college or grad student", "customer service", "doctor or health care",
    "executive or managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales or marketing", "scientist",
    "self-employed", "technician or engineer", "tradesman or craftsman", "unemployed", "writer",
)  # fmt: skip
"""Of MovieLens-1M, by code."""

_RECBOLE = "recbole/dataset_example/ml-100k/ml-100k"


def from_100k(archive: Path, out: Path) -> None:
    """From GroupLens' ml-100k.zip: `u.item` is latin-1, '|' between fields, 19 genre flags last."""
    with zipfile.ZipFile(archive) as zipped:
        (out / "ratings.tsv").write_bytes(zipped.read("ml-100k/u.data"))
        items = [line.split("|") for line in zipped.read("ml-100k/u.item").decode("latin-1").splitlines() if line]
        users = [line.split("|") for line in zipped.read("ml-100k/u.user").decode("latin-1").splitlines() if line]
    _write_items(out, ((f[0], f[1], [genre for genre, flag in zip(GENRES, f[-len(GENRES) :], strict=True) if flag == "1"]) for f in items))
    _write_users(out, (f[:4] for f in users))


def from_recbole(archive: Path, out: Path) -> None:
    """From RecBole's wheel: the ratings have a header line more, the titles lost their year to a column of its own."""
    with zipfile.ZipFile(archive) as zipped:
        ratings = zipped.read(f"{_RECBOLE}.inter").replace(b"\r", b"")
        lines = zipped.read(f"{_RECBOLE}.item").decode("utf-8").splitlines()[1:]
        users = zipped.read(f"{_RECBOLE}.user").decode("utf-8").splitlines()[1:]
    (out / "ratings.tsv").write_bytes(ratings[ratings.index(b"\n") + 1 :])
    fields = [line.split("\t") for line in lines if line]
    # One item has no title; the wheel misspells the word that the official file has in its place.
    items = ((i, "unknown" if title == "unkonwn" else f"{title} ({year})", g.split()) for i, title, year, g in fields)
    _write_items(out, ((i, title, sorted(genres, key=GENRES.index)) for i, title, genres in items))
    _write_users(out, (line.split("\t")[:4] for line in users if line))


def from_1m(archive: Path, out: Path) -> None:
    """From GroupLens' ml-1m.zip: latin-1, '::' between fields, ages and occupations as codes."""
    with zipfile.ZipFile(archive) as zipped:
        (out / "ratings.tsv").write_bytes(zipped.read("ml-1m/ratings.dat").replace(b"\r", b"").replace(b"::", b"\t"))
        items = [line.split("::") for line in zipped.read("ml-1m/movies.dat").decode("latin-1").splitlines() if line]
        users = [line.split("::") for line in zipped.read("ml-1m/users.dat").decode("latin-1").splitlines() if line]
    _write_items(out, ((item, title, genres.split("|")) for item, title, genres in items))
    _write_users(out, ((user, AGES[age], gender, OCCUPATIONS[int(job)]) for user, gender, age, job, _zip in users))


def from_csv(folder: str) -> Callable[[Path, Path], None]:
    """A build from a later release (ml-20m, ml-latest-small), whose files are CSV inside a folder of the archive."""

    def build(archive: Path, out: Path) -> None:
        with zipfile.ZipFile(archive) as zipped:
            with zipped.open(f"{folder}/ratings.csv") as packed, (out / "ratings.csv").open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            with zipped.open(f"{folder}/movies.csv") as packed:
                rows = list(csv.reader(io.TextIOWrapper(packed, "utf-8", newline="")))[1:]
        none = "(no genres listed)"
        _write_items(out, ((item, title, [genre for genre in genres.split("|") if genre != none]) for item, title, genres in rows))

    return build


def _write_items(out: Path, items: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    rows = ["item\ttitle\tyear\tgenres"]
    for item, dated, genres in items:
        # "(V)", released on video, may follow the year; a span of years, as of a series, counts by its first.
        title, year = re.fullmatch(r"(.*?)(?:\s*\((\d{4})(?:[-–]\d{0,4})?\)(?:\s*\(V\))?)?", " ".join(dated.split())).groups()  # type: ignore[union-attr]
        rows.append(f"{item}\t{title}\t{year or ''}\t{'|'.join(genres)}")
    _write(out / "items.tsv", rows)


def _write_users(out: Path, users: Iterable[Sequence[str]]) -> None:
    """Rows of user, age, gender, occupation."""
    _write(out / "users.tsv", ["user\tage\tgender\toccupation", *map("\t".join, users)])


def _write(path: Path, rows: list[str]) -> None:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")
