"""What the store costs: pages a second, bytes an exposure, milliseconds a commit."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from agents.types import Persona
from benchmarks.common import arguments, report
from simulators.events import Action, Exposure, PageRecord
from workbench.store import Store


def page(user: int, number: int) -> PageRecord:
    exposures = tuple(Exposure(p, (user * 31 + number * 10 + p) % 1682, 1.0 / (1 + p), 1.0) for p in range(10))
    actions = tuple(Action(p, exposures[p].item, 4.0, "satisfied") for p in (0, 3, 7))
    return PageRecord(user, number, "ease", "statistical", exposures, actions, "satisfied", "", "", ())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--group", type=int, default=50, help="pages a commit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.sqlite") as store:
        run = store.start_run("simulate", "benchmark", {}, 0)
        sink = store.sink(run)
        sink.agents([Persona(u, 1, 1, 1, (), (), (), (), 3.0, 1.0) for u in range(options.agents)], "statistical")
        commits, start = [], time.perf_counter()
        for number in range(options.pages):
            for first in range(0, options.agents, options.group):
                began = time.perf_counter()
                sink.pages([page(u, number) for u in range(first, min(first + options.group, options.agents))])
                commits.append(time.perf_counter() - began)
        wall, pages = time.perf_counter() - start, options.agents * options.pages
        start = time.perf_counter()
        store.log_hash(run)
        hashing = time.perf_counter() - start
    row = {
        "pages": pages,
        "exposures": pages * 10,
        "pages/s": pages / wall,
        "commit median ms": float(np.median(commits)) * 1e3,
        "commit p99 ms": float(np.quantile(commits, 0.99)) * 1e3,
        "log hash s": hashing,
    }
    report("store, SQLite, WAL, synchronous FULL", [row], options.csv)


if __name__ == "__main__":
    main()
