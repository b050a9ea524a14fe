"""Which way of asking makes agents that know what a user would take: `answer` or `likelihood`, on the embedded model.

Discrimination within pages of five real and five other items (simulators.fidelity); personas from the earlier part of the training log.
The users are the last of the seeded order, so none of those of the demo, and nothing of validation or test is read.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from agents.chat import connect
from agents.llm import LLMPolicy
from agents.seeding import stream
from agents.statistical import StatisticalPolicy
from benchmarks.common import arguments, report
from recsys_core.data import Dataset, leave_one_out, load_dataset
from simulators.fidelity import measure
from workbench.store import Store


async def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--llm", default="embedded")
    parser.add_argument("--store", type=Path, help="keep the answers here, so that a second run asks nothing")
    options = parser.parse_args()
    split = leave_one_out(load_dataset("ml-100k"))
    users = np.sort(stream(0, "agents").permutation(split.test.users)[-options.users :])
    rows = []
    with tempfile.TemporaryDirectory() as folder, Store.open(options.store or Path(folder) / "store.sqlite") as store:
        for elicit in ("answer", "likelihood"):
            client = connect(options.llm, cache=store.response_cache(), timeout=600)

            def build(log: Dataset) -> LLMPolicy:
                return LLMPolicy(client, StatisticalPolicy.fit(log), (1.0, 2.0, 3.0, 4.0, 5.0), elicit)  # noqa: B023 - used at once

            found = await measure(build, split.train, users)
            for part in found.discrimination:
                for judge in part.auc:
                    value, low, high = part.interval(judge)
                    name = elicit if judge == "llm" else judge
                    rows.append(
                        {"asked by": name, "negatives": part.negatives, "users": len(part.users), "AUC": value, "low": low, "high": high}
                    )
            if found.ratings:
                for (rater, measured), (value, low, high) in found.ratings.figures().items():
                    name = elicit if rater == "llm" else rater
                    rows.append(
                        {"asked by": name, "negatives": f"ratings, {measured}", "users": len(users), "AUC": value, "low": low, "high": high}
                    )
            print(f"{elicit}: {client.counts}")
    report(f"elicitation, {options.llm}, ml-100k training log", rows, options.csv)


if __name__ == "__main__":
    asyncio.run(main())
