"""Do lists that the embedded model ranked teach a recommender anything that their candidates, in another order, do not?

    python -m benchmarks.distill --store distill.sqlite --csv benchmarks/results/distill.csv

MovieLens-100K, leave-one-out. A first recommender offers random users its best new films, the model orders them by PMI, and BPR learns
from the log and the pairs of those lists. Beside it learn equally many pairs of the same films in other orders, and, to see that a lesson
can be learned at all, pairs that put the user's validation item first. The test items are shown to nobody before they are counted.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.chat import connect
from agents.seeding import stream
from benchmarks.common import arguments, report
from recsys_core import compare, create
from recsys_core.data import leave_one_out, load_dataset
from workbench.config import ModelSettings
from workbench.loop import BASE, Trained
from workbench.prompts.distill import CONTROLS, controls, distilled_pairs, export_pairs, learn, preferences
from workbench.prompts.ranked import Ranked, rates
from workbench.prompts.rankers import ranker_for
from workbench.prompts.reranking import rerank_rows
from workbench.prompts.tasks import Row, by_score
from workbench.store import Store

METRICS = ("HR@10", "NDCG@10", "MRR")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llm", default="embedded", help="a chat model that scores")
    parser.add_argument("--first", default="itemknn", help="the recommender that offers the candidates")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path, help="keep the answers here, so that a second run asks nothing")
    parser.add_argument("--pairs", type=Path, help="write the distilled pairs to this Parquet file")
    options = parser.parse_args()
    dataset = load_dataset("ml-100k")
    split = leave_one_out(dataset)
    first = create(options.first).fit(split.train)
    places = stream(0, "distilled users").permutation(len(split.valid))[: options.users]
    rows = rerank_rows(first, dataset, split.valid, np.sort(places).tolist(), options.candidates, "train")
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder, Store.open(options.store or Path(folder) / "store.sqlite") as store:
        ranked = asyncio.run(asked(options.llm, rows, store))
    seconds = (time.process_time() - started) / len(rows)
    print(f"{rates(ranked)}; {seconds:.2f} CPU s a row", flush=True)
    orders = {"distilled": ranked, **controls(rows, split.train), "validation item first": truth(rows)}
    pairs = {arm: distilled_pairs(rows, lists) for arm, lists in orders.items()}
    if options.pairs:
        export_pairs(pairs["distilled"], options.pairs, {"llm": options.llm, "first": options.first, "dataset": dataset.content_hash})
    arms = {arm: preferences(found, dataset) for arm, found in pairs.items()}
    trained = learn(
        arms, split.train, split.test, ModelSettings(name="bpr"), options.seeds, METRICS, lambda _, text: print(text, flush=True)
    )
    taught = np.isin(split.test.users, dataset.users.encode(sorted({row.user for row in rows})))
    shared = {"model": "bpr", "seeds": options.seeds, "split": split.content_hash[:12]}
    table = [
        {"pairs": arm, "pairs given": len(arms[arm]), "against": base, "judged on": who, "users": int(kept.sum())} | figures | shared
        for who, kept in (("users with pairs", taught), ("all users", np.ones(len(taught), bool)))
        for arm, base, figures in differences([only(item, kept) for item in trained])
    ]
    report(f"distillation, {options.llm}, {options.users} users", table, options.csv)


async def asked(llm: str, rows: list[Row], store: Store) -> list[Ranked]:
    """The rows ranked by a model's PMI."""
    return await ranker_for(connect(llm, cache=store.response_cache(), timeout=600)).rank(rows)


def truth(rows: list[Row]) -> list[Ranked]:
    """The user's validation item first where it was offered, the others as they were."""
    return [
        Ranked(row.id, by_score(row, {i.id: row.grades.get(i.id, 0) * 1000 - n for n, i in enumerate(row.candidates)}), ()) for row in rows
    ]


def differences(trained: list[Trained]) -> list[tuple[str, str, dict[str, Any]]]:
    """Every arm against none, and the distilled one against each other order of the same films; p is not corrected for their number."""
    runs = {item.arm: item.runs for item in trained}
    against = [(arm, BASE) for arm in runs if arm != BASE] + [("distilled", control) for control in CONTROLS]
    found = [(arm, base, compare(runs[arm], runs[base], metric)) for arm, base in against for metric in METRICS]
    return [
        (arm, base, {"metric": c.metric, "with": c.mean_a, "without": c.mean_b, "difference": c.difference, "low": c.low, "high": c.high,
                     "p": c.p_value})
        for arm, base, c in found
    ]  # fmt: skip


def only(trained: Trained, kept: np.ndarray) -> Trained:
    """The evaluations of some of the users."""
    runs: list[Any] = [
        replace(run, users=run.users[kept], values={m: v[kept] for m, v in run.values.items()}, lists=None) for run in trained.runs
    ]
    return Trained(trained.model, trained.arm, runs, trained.seconds)


if __name__ == "__main__":
    main()
