"""How the files of each registered dataset are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from recsys_core.data.attributes import FeatureColumns
from recsys_core.data.readers import Columns


@dataclass(frozen=True)
class Recipe:
    """How the files of the asset of one name become a dataset; paths are inside the asset's folder.

    log: the interactions, with `names` as columns where the file has no header line; items, users: files about them, or None.
    film_titles: whether articles stand behind the titles, see `registry.readable_title`. timed: whether timestamps are seconds.
    """

    log: str
    names: tuple[str, ...] | None = ("user", "item", "rating", "timestamp")
    columns: Columns = field(default_factory=Columns)
    items: str | None = None
    users: str | None = None
    features: FeatureColumns = field(default_factory=FeatureColumns)
    film_titles: bool = False
    timed: bool = True


_FILM = FeatureColumns(item={"genres": "tags", "year": "number"})
_AMAZON = Recipe(
    "ratings.tsv", items="items.jsonl", features=FeatureColumns(item={"categories": "tags", "brand": "category", "price": "number"})
)
_RELEASE = Recipe("ratings.csv", names=None, items="items.tsv", features=_FILM, film_titles=True)

CATALOG = {
    "ml-100k": Recipe(
        "ratings.tsv",
        items="items.tsv",
        users="users.tsv",
        features=FeatureColumns(user={"age": "number", "gender": "category", "occupation": "category"}, item=_FILM.item),
        film_titles=True,
    ),
    "ml-1m": Recipe(
        "ratings.tsv",
        items="items.tsv",
        users="users.tsv",
        # Ages of this release are brackets.
        features=FeatureColumns(user={"age": "category", "gender": "category", "occupation": "category"}, item=_FILM.item),
        film_titles=True,
    ),
    "ml-20m": _RELEASE,
    "ml-latest-small": _RELEASE,
    "amazon-beauty": _AMAZON,
    "amazon-sports": _AMAZON,
    "amazon-toys": _AMAZON,
    "beauty-s3rec": Recipe("sequences.txt", items="items.jsonl", features=FeatureColumns(item={"categories": "tags"}), timed=False),
    "ml-1m-sequences": Recipe("sequences.txt", timed=False),
    "agent4rec-ml-1m": Recipe(
        "parts.tsv",
        names=("user", "item", "part"),
        columns=Columns(timestamp="part"),
        items="items.tsv",
        features=FeatureColumns(item={"genres": "tags"}),
        film_titles=True,
        timed=False,
    ),
}
