"""The Amazon reviews of 2014 in one form: `ratings.tsv` (user, item, rating, timestamp, no header) and `items.jsonl`.

From two archives of one category: the 5-core reviews, one JSON object a line, and the metadata of all its products, one Python literal a
line. The reviews: J. McAuley, C. Targett, Q. Shi and A. van den Hengel, "Image-based Recommendations on Styles and Substitutes",
SIGIR 2015. Tested on small archives of the same layout.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recsys_core.errors import DataError

_ASIN = re.compile(r"'asin': '([^']*)'")


def from_gzip(category: str) -> Callable[[Path, Path], None]:
    """A build from a folder that holds reviews_CATEGORY_5.json.gz and meta_CATEGORY.json.gz."""

    def build(folder: Path, out: Path) -> None:
        items = _write_ratings(folder / f"reviews_{category}_5.json.gz", out / "ratings.tsv")
        _write_items(folder / f"meta_{category}.json.gz", out / "items.jsonl", items)

    return build


def _write_ratings(archive: Path, path: Path) -> set[str]:
    """Writes the reviews in file order; returns the items they are about."""
    items = set()
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line, text in _lines(archive):
            try:
                review = json.loads(text)
                user, item, rating, time = (review[key] for key in ("reviewerID", "asin", "overall", "unixReviewTime"))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{archive.name}, line {line}: {text!r:.80} is not a review: {error!r}") from None
            items.add(item)
            file.write(f"{user}\t{item}\t{rating:g}\t{time}\n")
    return items


def _write_items(archive: Path, path: Path, items: set[str]) -> None:
    """Writes what is known of some items, a line each, in the archive's order."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line, text in _lines(archive):
            # Most products have no review in the 5-core, and reading a literal takes long.
            found = _ASIN.search(text)
            if found and found[1] not in items:
                continue
            try:
                row = _item(ast.literal_eval(text))
            except (ValueError, SyntaxError, KeyError, TypeError) as error:
                raise DataError(f"{archive.name}, line {line}: {text!r:.80} is not a product: {error!r}") from None
            if row["item"] in items:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _item(product: dict[str, Any]) -> dict[str, Any]:
    """The columns that are kept. categories: those of every path to the product, from the general to the particular, each once."""
    paths = product.get("categories", [])
    price = product.get("price")
    return {
        "item": product["asin"],
        "title": " ".join(html.unescape(product.get("title") or "").split()),
        "categories": list(dict.fromkeys(html.unescape(name) for path in paths for name in path)),
        "brand": " ".join(html.unescape(product.get("brand") or "").split()),
        "price": None if price is None else float(price),
    }


def _lines(archive: Path) -> Iterator[tuple[int, str]]:
    with gzip.open(archive, "rt", encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, text
