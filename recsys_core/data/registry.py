"""Datasets by name or path."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from recsys_core import assets
from recsys_core.data.attributes import FeatureColumns, Table, declared_kinds, read_features
from recsys_core.data.catalog import CATALOG, Recipe
from recsys_core.data.dataset import Dataset
from recsys_core.data.features import Feature, Features
from recsys_core.data.filters import k_core as core
from recsys_core.data.filters import positives
from recsys_core.data.readers import SEQUENCES, Columns, Log, read_log, read_sequences
from recsys_core.data.tables import FORMATS, TableFile
from recsys_core.errors import DataError, unknown_name
from recsys_core.progress import Progress

_TRAILING_ARTICLE = re.compile(r"([^()]+), (The|A|An|Les?|La|L'|Il|El|Das|Der|Die)(?=\s*(?:[()]|$))")


def known_datasets() -> dict[str, str]:
    """Names that `load_dataset` accepts, each with one line about it; it also takes paths of log files."""
    return {name: assets.assets()[name].description for name in CATALOG}


def load_dataset(
    name_or_path: str | Path,
    *,
    columns: Columns | None = None,
    items: str | Path | None = None,
    users: str | Path | None = None,
    features: FeatureColumns | None = None,
    min_rating: float | None = None,
    k_core: int | None = None,
    tie_rule: str = "file-order",
    progress: Progress | None = None,
) -> Dataset:
    """A named dataset, or an interaction log from a CSV, TSV, Parquet, JSON Lines or RecBole `.inter` file, or a `.txt` of sequences.

    columns: which column holds what, for files whose names are unusual. items: a file with titles and tags; users: a file about users;
    RecBole's `.item` and `.user` beside the `.inter` are found by themselves. features: which further columns are features; by default
    what RecBole's types say, and none for other formats. A named dataset declares all of these itself.
    The filters apply in this order: min_rating drops interactions rated below it (`filters.positives`), then k_core drops users and items
    with fewer interactions than that (`filters.k_core`). tie_rule: how equal timestamps of a user are ordered, see Dataset. All three are
    in the dataset's name and, through what they change, in its hash.
    Dense ids follow the sorted external ids (by number if all are digits, else as text), so they do not depend on the order of rows.
    Rows that repeat user, item and timestamp are kept: whether they are one event or several is for the source to say.
    Raises UnknownNameError, DataError (see `read_log`) or UnavailableError.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if name in CATALOG:
        given = {"columns": columns, "items": items, "users": users, "features": features}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise DataError(f"{' and '.join(wrong)} cannot be given for {name!r}, a registered dataset that declares them itself")
        dataset = _read(name, assets.fetch(name, progress), CATALOG[name])
    else:
        if path.suffix.lower() not in (*FORMATS, SEQUENCES) and not path.exists():
            raise unknown_name("dataset", name, [*CATALOG, f"or a path ending in {', '.join(FORMATS[:5])} or {SEQUENCES}"])
        recipe = Recipe(
            path.name, None, columns or Columns(), _found(items, path, ".item"), _found(users, path, ".user"),
            features or FeatureColumns(), timed=path.suffix.lower() != SEQUENCES,
        )  # fmt: skip
        dataset = _read(path.stem, path.parent, recipe, declared=features is None)
    if min_rating is not None:
        dataset = positives(dataset, min_rating)
    if k_core is not None:
        dataset = core(dataset, k_core)
    return dataset if tie_rule == dataset.tie_rule else replace(dataset, tie_rule=tie_rule, name=f"{dataset.name}/{tie_rule}")


def readable_title(title: str) -> str:
    """Moves articles from behind to in front: 'Shawshank Redemption, The (1994)' becomes 'The Shawshank Redemption (1994)'."""
    return _TRAILING_ARTICLE.sub(lambda m: f"{m[2]}{'' if m[2].endswith(chr(39)) else ' '}{m[1]}", title)


def _found(given: str | Path | None, log: Path, ending: str) -> str | None:
    """A file given, or RecBole's beside the log."""
    if given is not None:
        return str(Path(given).absolute())
    beside = log.with_suffix(ending)
    return beside.name if log.suffix.lower() == ".inter" and beside.is_file() else None


def _read(name: str, folder: Path, recipe: Recipe, declared: bool = False) -> Dataset:
    """Reads what a recipe names inside a folder. declared: the features are those that RecBole's types declare."""
    path, wanted = folder / recipe.log, recipe.features
    titles: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()
    of_users: tuple[Feature, ...] = ()
    of_items: tuple[Feature, ...] = ()
    log, of_log = _read_log(path, recipe, declared)
    if recipe.items is not None:
        table = Table.open(TableFile.open(folder / recipe.items), "item", recipe.columns.item, log.items)
        titles, tags, title = table.texts(recipe.columns, log.items)
        of_items = table.features(table.declared((title,)) if declared else wanted.item)
    if recipe.users is not None:
        table = Table.open(TableFile.open(folder / recipe.users), "user", recipe.columns.user, log.users)
        of_users = table.features(table.declared() if declared else wanted.user)
    for owner, kinds, file in (("item", wanted.item, recipe.items), ("user", wanted.user, recipe.users)):
        if kinds and file is None:
            raise DataError(f"{owner} features {', '.join(kinds)} need a file of {owner}s; pass {owner}s=...")
    return Dataset(
        name, log.users, log.items, log.user, log.item, log.timestamp, log.rating,
        tuple(map(readable_title, titles)) if recipe.film_titles else titles, tags, Features(of_users, of_items, of_log),
        timed=recipe.timed, provenance=str(folder if name in CATALOG else path),
    )  # fmt: skip


def _read_log(path: Path, recipe: Recipe, declared: bool) -> tuple[Log, tuple[Feature, ...]]:
    """The interactions and their features."""
    if path.suffix.lower() == SEQUENCES:
        if recipe.features.interaction:
            raise DataError(f"{path} is a file of sequences; it has no columns for features: {', '.join(recipe.features.interaction)}")
        return read_sequences(path), ()
    file = TableFile.open(path, recipe.names)
    log = read_log(file, recipe.columns)
    return log, read_features(file, declared_kinds(file, log.used, tags=False) if declared else recipe.features.interaction)
