"""What finding the ten largest inner products costs: a product with the whole catalogue, the exact index, and the graph index."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import arguments, report
from recsys_core.recommender import top_k
from recsys_core.serving import ItemIndex

K, DIM, BATCH = 10, 64, 256


def rate(search: Callable[[np.ndarray], object], queries: np.ndarray, seconds: float = 2.0) -> float:
    """Queries a second in batches, after one batch to warm up."""
    search(queries[:BATCH])
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        first = done % len(queries)
        search(queries[first : first + BATCH])
        done += BATCH
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[12_000, 100_000, 1_000_000])
    options = parser.parse_args()
    rows = []
    for items in options.items:
        rng = np.random.default_rng(0)
        vectors = rng.standard_normal((items, DIM), np.float32)
        # Independent directions are the hardest case for a graph; queries near items are nearer to what a model asks.
        queries = vectors[rng.integers(0, items, 1024)] + 0.5 * rng.standard_normal((1024, DIM), np.float32)
        table = torch.from_numpy(vectors)
        plain = rate(lambda batch, table=table: top_k(torch.from_numpy(batch) @ table.T, K), queries)  # type: ignore[misc]
        rows.append({"items": items, "search": "torch", "queries/s": plain, "recall@10": 1.0, "build s": 0.0})
        for kind in ("exact", "hnsw"):
            start = time.perf_counter()
            index = ItemIndex(vectors, kind)  # type: ignore[arg-type]
            build = time.perf_counter() - start
            speed = rate(lambda batch, index=index: index.search(batch, K), queries)  # type: ignore[misc]
            rows.append(
                {"items": items, "search": kind, "queries/s": speed, "recall@10": index.recall(queries[:BATCH], K), "build s": build}
            )
    report(f"retrieval, dim {DIM}, batches of {BATCH}, {torch.get_num_threads()} threads", rows, options.csv)


if __name__ == "__main__":
    main()
