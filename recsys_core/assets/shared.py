"""Builds out of the folder of shared data, whose sequences have no timestamps."""

from __future__ import annotations

import csv
from pathlib import Path


def copy_beauty(folder: Path, out: Path) -> None:
    """S3-Rec's Beauty as it is: `sequences.txt`, lines of `user item item ...`, and `items.jsonl`."""
    for name in ("sequences.txt", "items.jsonl"):
        (out / name).write_bytes((folder / name).read_bytes())


def number_sequences(archive: Path, out: Path) -> None:
    """gSASRec's MovieLens-1M: lines of `item item ...`, which get the line's number as the user in front."""
    lines = archive.read_text().splitlines()
    (out / "sequences.txt").write_text("".join(f"{number} {line}\n" for number, line in enumerate(lines, 1)))


def join_agent4rec(folder: Path, out: Path) -> None:
    """Agent4Rec's three parts in one log, and its films.

    `parts.tsv` (user, item, part, no header): part is 0 for train, 1 for valid and 2 for test; the order inside a part says nothing.
    `items.tsv` has the columns item, title, genres, rating (the mean of all ratings) and summary.
    """
    rows: list[tuple[int, str]] = []
    for part, name in enumerate(("train.txt", "valid.txt", "test.txt")):
        for line in (folder / name).read_text().splitlines():
            user, *items = line.split()
            rows += [(int(user), f"{user}\t{item}\t{part}\n") for item in items]
    # By user, then part: the file order of a user's rows.
    rows.sort(key=lambda row: row[0])
    (out / "parts.tsv").write_text("".join(text for _, text in rows))
    with (folder / "movie_detail.csv").open(newline="", encoding="utf-8") as file:
        films = [[" ".join(cell.split()) for cell in row] for row in csv.reader(file)][1:]
    lines = ["item\ttitle\tgenres\trating\tsummary", *map("\t".join, films)]
    (out / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
