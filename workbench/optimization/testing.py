"""Templates on sealed test rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from agents.chat import Counts
from recsys_core.evaluation import Comparison
from workbench.config import LLMSettings
from workbench.llm import chat_client
from workbench.optimization.keeping import keep_test
from workbench.optimization.settings import TaskSettings, load_task
from workbench.prompts.baselines import measure_baselines
from workbench.prompts.metrics import Measured, compare, measure
from workbench.prompts.ranked import Ranked, Rates, rates
from workbench.prompts.rankers import ranker_for
from workbench.prompts.tasks import RankingTask
from workbench.prompts.templates import Template, same_features
from workbench.prompts.versions import keep, to_toml
from workbench.running import ended
from workbench.store import Store


@dataclass(frozen=True, eq=False)
class Tested:
    """A template on the sealed test rows, beside baselines; against: another one, and how the first differs from it, by metric.

    run: where the store keeps it, its model calls among it.
    """

    run: str
    task: RankingTask
    measured: Measured
    rates: Rates
    baselines: list[Measured]
    against: Measured | None
    differences: dict[str, Comparison]
    counts: Counts


def measure_on_test(
    store: Store,
    task: TaskSettings,
    llm: LLMSettings,
    template: Template,
    reason: str,
    metrics: Sequence[str],
    *,
    against: Template | None = None,
    repetitions: int = 1,
    seed: int = 0,
) -> Tested:
    """Opens the test rows for a stated reason, which the store's journal keeps, and measures one template, or two that show the same.

    It is a run of the store like others. Raises DataError for an empty reason and for templates that show different features, before
    anything is opened or stored.
    """
    if against is not None:
        same_features(template, against)
    loaded, client = load_task(store, task, seed), chat_client(store, llm)
    templates = (template, *((against,) if against else ()))
    rankers = [ranker_for(client, t, repetitions=repetitions, seed=seed) for t in templates]
    keep(store, template)
    rows = loaded.test.open(reason, store, template=template.version)

    names = [f"{t.name} {t.version}" for t in templates]
    config = {
        "task": task.model_dump(mode="json"), "task_hash": loaded.content_hash, "llm": llm.model_dump(mode="json"), "names": names,
        "templates": [to_toml(t) for t in templates], "reason": reason, "metrics": list(metrics), "repetitions": repetitions,
    }  # fmt: skip
    run = store.start_run("test", loaded.name, config, seed)

    async def ranked() -> list[list[Ranked]]:
        return [await ranker.rank(rows) for ranker in rankers]

    with ended(store, run):
        sink = store.sink(run)
        client.on_call = lambda record: sink.calls([record])
        results = asyncio.run(ranked())
        found = [measure(name, rows, [one.ranking for one in result], metrics) for name, result in zip(names, results, strict=True)]
        other = found[1] if against else None
        differences = {name: compare(found[0], other, name, seed) for name in metrics} if other else {}
        baselines = measure_baselines(loaded.train, rows, metrics)
        keep_test(store, run, seed, found, baselines, differences)
    return Tested(run, loaded, found[0], rates(results[0]), baselines, other, differences, client.counts)
