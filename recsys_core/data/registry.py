"""Datasets by name or path."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_core import assets
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints
from recsys_core.data.readers import Columns, ItemTexts, Log, read_items, read_log
from recsys_core.data.tables import SEPARATORS
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, unknown_name
from recsys_core.progress import Progress

_NAMED = ("ml-100k",)
_TRAILING_ARTICLE = re.compile(r"([^()]+), (The|A|An|Les?|La|L'|Il|El|Das|Der|Die)(?=\s*(?:[()]|$))")


def known_datasets() -> dict[str, str]:
    """Names that `load_dataset` accepts, each with one line about it; it also takes paths of log files."""
    return {name: assets.assets()[name].description for name in _NAMED}


def load_dataset(
    name_or_path: str | Path,
    *,
    columns: Columns | None = None,
    items: Path | None = None,
    tie_rule: str = "file-order",
    min_rating: float | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """A named dataset, or an interaction log from a CSV, TSV, Parquet or RecBole `.inter` file.

    columns: which column holds what, for a file whose names are unusual. items: a file with titles and tags; a RecBole `.item` file
    beside the `.inter` is found by itself. min_rating: drops interactions below it; users and items keep their dense ids.
    Dense ids follow the sorted external ids (by number if all are digits, else as text), so they do not depend on the order of rows.
    Rows that repeat user, item and timestamp are kept: whether they are one event or several is for the source to say.
    Raises UnknownNameError, DataError (see `read_log`) or UnavailableError.
    """
    if str(name_or_path) in _NAMED:
        dataset = _movielens_100k(tie_rule, progress)
    else:
        path = Path(name_or_path)
        if path.suffix.lower() not in SEPARATORS and not path.exists():
            raise unknown_name("dataset", str(name_or_path), [*_NAMED, "or a path ending in .csv, .tsv, .parquet or .inter"])
        beside = path.with_suffix(".item") if path.suffix == ".inter" else None
        texts = items or (beside if beside and beside.is_file() else None)
        dataset = _build(path.stem, read_log(path, columns), read_items(texts) if texts else {}, tie_rule, str(path))
    if min_rating is None:
        return dataset
    if dataset.rating is None:
        raise DataError(f"min_rating is {min_rating} but {dataset.name!r} has no rating column; leave min_rating out")
    return dataset.rows(dataset.rating >= min_rating, f"{dataset.name}/rating>={min_rating:g}")


def _movielens_100k(tie_rule: str, progress: Progress | None) -> Dataset:
    folder = assets.fetch("ml-100k", progress)
    texts = {item: (readable_title(title), tags) for item, (title, tags) in read_items(folder / "items.tsv").items()}
    return _build("ml-100k", read_log(folder / "ratings.tsv", names=("user", "item", "rating", "timestamp")), texts, tie_rule, str(folder))


def readable_title(title: str) -> str:
    """Moves articles from behind to in front: 'Shawshank Redemption, The (1994)' becomes 'The Shawshank Redemption (1994)'."""
    return _TRAILING_ARTICLE.sub(lambda m: f"{m[2]}{'' if m[2].endswith(chr(39)) else ' '}{m[1]}", title)


def _build(name: str, log: Log, texts: ItemTexts, tie_rule: str, provenance: str) -> Dataset:
    users, user = _encode(log.user)
    items, item = _encode(log.item)
    known = [texts.get(external, (external, ())) for external in items.ids] if texts else []
    return Dataset(
        name, users, items, user, item, log.timestamp, log.rating,
        tuple(title for title, _ in known), tuple(tags for _, tags in known), tie_rule=tie_rule, provenance=provenance,
    )  # fmt: skip


def _encode(external: pa.Array) -> tuple[Vocabulary, Ints]:
    """The sorted vocabulary of a column and its dense ids [T] int64."""
    unique: list[str] = pc.unique(external).to_pylist()
    if all(e.isascii() and e.isdigit() for e in unique):
        # By value, however long, and '7' before '007'.
        unique.sort(key=lambda e: (len(e.lstrip("0")), e.lstrip("0"), len(e)))
    else:
        unique.sort()
    dense = pc.index_in(external, value_set=pa.array(unique, pa.string()))
    return Vocabulary(unique), np.asarray(dense).astype(np.int64)
