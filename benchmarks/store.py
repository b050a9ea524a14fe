"""What the store costs: pages a second, milliseconds a commit, and what each click of the dashboard reads.

A million exposures: python -m benchmarks.store --agents 10000
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
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


def _seconds(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


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
        reads: dict[str, Callable[[], object]] = {
            "log hash": lambda: store.log_hash(run),
            "page totals": lambda: store.page_totals(run),
            "list of runs": store.runs,
            "agents": lambda: store.agents(run),
            "one agent's pages": lambda: store.pages(run, options.agents // 2),
            "interactions": lambda: store.interactions(run),
        }
        timed = {f"{name} s": min(_seconds(read) for _ in range(3)) for name, read in reads.items()}
    row = {
        "pages": pages,
        "exposures": pages * 10,
        "pages/s": pages / wall,
        "commit median ms": float(np.median(commits)) * 1e3,
        "commit p99 ms": float(np.quantile(commits, 0.99)) * 1e3,
        **timed,
    }
    report("store, SQLite, WAL, synchronous FULL", [row], options.csv)


if __name__ == "__main__":
    main()
