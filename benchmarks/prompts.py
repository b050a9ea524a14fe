"""How well are PO4ISR's and RecPrompt's rows ranked without a model, and by the embedded one's likelihoods?

    python -m benchmarks.prompts                          # baselines, dev rows
    python -m benchmarks.prompts --llm embedded --rows 40 # and PMI scores on the first dev rows of each task
    python -m benchmarks.prompts --store results.sqlite --open-test "the table of docs/prompts.md"

The test rows are opened only when a reason is given, and the store remembers it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from agents.chat import connect
from benchmarks.common import arguments, report
from recsys_core.assets.sources import shared_data
from recsys_core.errors import DataError
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.metrics import Measured, measure
from workbench.prompts.rankers import ranker_for
from workbench.prompts.readers import po4isr_task, recprompt_task
from workbench.prompts.tasks import RankingTask, Row
from workbench.store import Store

METRICS = ("MRR", "NDCG@5", "HR@1", "AUC")


async def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llm", default="", help="a chat model that scores; left out, only baselines are measured")
    parser.add_argument("--rows", type=int, default=0, help="dev rows a task, 0 for all")
    parser.add_argument("--store", type=Path, help="keeps answers and openings of test rows")
    parser.add_argument("--open-test", default="", help="measure the test rows instead of dev rows, for this reason")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Store.open(options.store or Path(folder) / "store.sqlite") as store:
        for task in tasks():
            part = task.test.open(options.open_test, store) if options.open_test else task.dev[: options.rows or None]
            name = "test" if options.open_test else "dev"
            rows += [_row(task, name, found, 0.0) for found in measure_baselines(task.train, part, METRICS)]
            if options.llm:
                started = time.process_time()
                found = await asked(options.llm, part, store)
                rows.append(_row(task, name, found, (time.process_time() - started) / len(part)))
                print(rows[-1], flush=True)
    report("ranking rows", rows, options.csv)


def tasks() -> list[RankingTask]:
    """Those whose files lie in the folder of shared data."""
    shared = shared_data()
    if shared is None or not (shared / "po4isr").is_dir():
        raise DataError("no shared data with a folder po4isr; set WORKBENCH_SHARED_DATA to one that has it and mind-sample")
    po4isr = [po4isr_task(shared / "po4isr" / name) for name in ("games", "ml-1m")]
    return [*po4isr, recprompt_task(shared / "mind-sample" / "valid_with_categories.csv")]


async def asked(llm: str, rows: tuple[Row, ...], store: Store) -> Measured:
    """The rows ranked by a model's PMI."""
    client = connect(llm, cache=store.response_cache(), timeout=600)
    found = await ranker_for(client).rank(rows)
    return measure(f"{llm}, PMI", rows, [one.ranking for one in found], METRICS)


def _row(task: RankingTask, part: str, found: Measured, seconds: float) -> dict[str, Any]:
    figures = {}
    for metric in METRICS:
        low, high = found.interval(metric)
        figures |= {metric: found.mean(metric), f"{metric} low": low, f"{metric} high": high}
    hashes = {"rows' hash": task.content_hash[:12]}
    return {"task": task.name, "part": part, "rows": len(found.rows), "ranked by": found.name, **figures, "CPU s a row": seconds, **hashes}


if __name__ == "__main__":
    asyncio.run(main())
