"""Finding the items of the largest inner products: exactly, or by a graph that looks at few of them."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from recsys_core.data.jagged import Floats, Ints
from recsys_core.errors import DataError
from recsys_core.extras import optional
from recsys_core.serving.rules import Mask

Kind = Literal["exact", "hnsw"]
# Beyond this share of the catalogue a product with all of it is cheaper than a wider search.
_WIDEST = 1 / 8


class ItemIndex:
    """A faiss index over item vectors [I, D] float32; needs the extra `faiss`.

    kind: `exact` compares with every vector; `hnsw` walks a graph of neighbours (Malkov & Yashunin 2018, arXiv 1603.09320) and may miss
    some, see `recall`. links: neighbours a node; build_width and search_width: how many nodes are kept in sight in building and searching,
    more of them for a better recall at less speed.
    """

    def __init__(self, vectors: Floats, kind: Kind = "exact", links: int = 32, build_width: int = 100, search_width: int = 128) -> None:
        if kind not in get_args(Kind):
            raise DataError(f"index kind {kind!r} is unknown; take 'exact' or 'hnsw'")
        faiss = optional("faiss", "faiss", "an item index")
        self.vectors, self.kind, self.search_width = np.ascontiguousarray(vectors, np.float32), kind, search_width
        if kind == "exact":
            self._index = faiss.IndexFlatIP(vectors.shape[1])
        else:
            self._index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = build_width
        self._index.add(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Floats, k: int, allowed: Mask | None = None) -> tuple[Ints, Floats]:
        """The k best items for each query [B, D]: ids [B, k] int64, best first, -1 where none is left, and products [B, k], -inf there.

        allowed: [B, I] bool. A filtered search asks for more than k and widens until k are allowed, or all are looked at: k items are found
        wherever k exist. Equal products are ordered by id; which of them make the k-th place is open.
        """
        wanted = np.full(len(queries), min(k, len(self))) if allowed is None else np.minimum(allowed.sum(1), k)
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        pending = np.flatnonzero(wanted)
        share = 1.0 if allowed is None else float(allowed[pending].mean()) if len(pending) else 1.0
        reach = k if share == 1 else int(1.5 * k / max(share, 1e-9)) + 8
        while len(pending):
            if reach > max(_WIDEST * len(self), k) or reach > len(self):
                self._scan(queries, pending, allowed, ids, scores)
                break
            found, products = self._nearest(queries[pending], reach)
            kept = (found >= 0) if allowed is None else (found >= 0) & allowed[pending[:, None], found]
            enough = kept.sum(1) >= wanted[pending]
            for row, keep, items, product in zip(pending[enough], kept[enough], found[enough], products[enough], strict=True):
                ids[row], scores[row] = _best(items[keep], product[keep], k)
            pending, reach = pending[~enough], 4 * reach
        return ids, scores

    def recall(self, queries: Floats, k: int) -> float:
        """The share of the exact k best items that a search finds, over queries [B, D]."""
        found, (exact, _) = self.search(queries, k)[0], ItemIndex(self.vectors).search(queries, k)
        return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))

    def _nearest(self, queries: Floats, count: int) -> tuple[Ints, Floats]:
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(self.search_width, count)
        products, found = self._index.search(queries, count)
        return found, products

    def _scan(self, queries: Floats, rows: Ints, allowed: Mask | None, ids: Ints, scores: Floats) -> None:
        """Fills the rows from a product with every allowed item."""
        for row in rows:
            items = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed[row])
            ids[row], scores[row] = _best(items, self.vectors[items] @ queries[row], ids.shape[1])


def _best(items: Ints, products: Floats, k: int) -> tuple[Ints, Floats]:
    """The k largest products with their items, ties by id, filled up with -1 and -inf."""
    order = np.lexsort((items, -products))[:k]
    fill = (0, k - len(order))
    return np.pad(items[order], fill, constant_values=-1), np.pad(products[order], fill, constant_values=-np.inf)
