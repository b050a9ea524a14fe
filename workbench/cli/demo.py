"""`workbench demo`: the whole loop in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys_core.assets import fetch, is_present
from recsys_core.data import known_datasets
from workbench.cli import ui
from workbench.config import Experiment
from workbench.experiment import Report, run_experiment
from workbench.report import FIDELITY_NOTE, comparison_rows, fidelity_rows, score_rows, simulation_row
from workbench.store import Store


def demo(
    config: Annotated[Path | None, typer.Option("--config", help="A TOML experiment file instead of the built-in one.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of agents and controls.")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Run the whole loop: train, simulate, augment, retrain, compare on untouched data.

    Without a file: MovieLens-100K, 200 statistical and 20 language-model agents. A second run with the same seed asks the model nothing
    new and prints the same figures.

    Example: workbench demo --seed 1 --json > report.json
    """
    start = time.perf_counter()
    experiment = Experiment.load(config) if config else Experiment()
    if seed is not None:
        experiment = experiment.model_copy(update={"seed": seed})
    have_assets(experiment)
    with ui.opened(store) as handle:
        report = run_experiment(handle, experiment, ui.step)
        facts = as_json(handle, report) | {"seconds": round(time.perf_counter() - start, 1)}
    if json:
        return ui.print_json(facts)
    return render(facts, store)


def have_assets(experiment: Experiment) -> None:
    """Downloads what the experiment needs and the cache lacks, before anything is started."""
    embedded = any(s.policy == "llm" and s.llm.spec == "embedded" for s in experiment.simulations)
    data = [experiment.data.name] if experiment.data.name in known_datasets() else []
    for asset in [*data, *(["smollm2-135m-instruct"] if embedded else [])]:
        if not is_present(asset):
            with ui.step(f"downloading {asset}") as progress:
                fetch(asset, progress)


def as_json(store: Store, report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    settings, metrics = report.experiment.simulations, report.experiment.loop.metrics
    return {
        "experiment": report.experiment.name,
        "seed": report.experiment.seed,
        "dataset": report.dataset.name,
        "dataset_hash": report.dataset.content_hash,
        "split": report.split.name,
        "split_hash": report.split.content_hash,
        "test_users": len(report.split.test),
        "baselines": score_rows(report.baselines, metrics),
        "simulations": [simulation_row(o) for o in report.simulations],
        "fidelity": [
            {"agents": s.policy, **row}
            for o, s in zip(report.simulations, settings, strict=True)
            for row in fidelity_rows(store.evaluations(o.run))
        ],
        "loop": {
            "run": report.loop.run,
            "added": report.loop.added,
            "users": report.loop.users,
            "scores": score_rows(report.loop.trained, metrics),
            "comparisons": comparison_rows(report.loop.comparisons),
        },
    }


def render(facts: dict[str, Any], store: str) -> None:
    """The report as tables, in the order of the loop."""
    metrics = list(facts["baselines"][0]["metrics"])
    where = f"{facts['dataset']}, {facts['split']}, {facts['test_users']} test users, full catalogue, seen items removed"
    ui.console.print()
    rows = [
        [
            r["model"],
            r["training"],
            str(r["seeds"]),
            *(ui.interval(*r["metrics"][m]) for m in metrics),
            "-" if r["seconds"] is None else f"{r['seconds']:.1f}",
        ]
        for r in facts["baselines"]
    ]
    ui.table(
        "Recommenders before",
        ["model", "loss, negatives, time", "seeds", *metrics, "fit s"],
        rows,
        f"{where}; split {facts['split_hash'][:12]}; 95% bootstrap intervals over users",
    )
    rows = [
        [
            r["policy"],
            r["recommender"],
            str(r["agents"]),
            str(r["pages"]),
            str(r["exposures"]),
            str(r["actions"]),
            f"{r['take_rate']:.3f}",
            str(r["fallbacks"]),
            _calls(r["calls"]),
            r["log_hash"][:12],
        ]
        for r in facts["simulations"]
    ]
    ui.table(
        "Simulated users",
        ["policy", "recommender", "agents", "pages", "shown", "taken", "take rate", "fallbacks", "model calls", "log hash"],
        rows,
    )
    if facts["fidelity"]:
        rows = [
            [r["agents"], r["test"], r["metric"], r["judge"], ui.interval(r["value"], r["low"], r["high"]), str(r["n"])]
            for r in facts["fidelity"]
        ]
        ui.table(
            "How far to trust them",
            ["agents", "test", "measure", "judge", "value with 95% interval", "users or ratings"],
            rows,
            FIDELITY_NOTE,
        )
    loop = facts["loop"]
    note = f"{loop['added']} interactions of {loop['users']} users added to training in every arm but 'none'; {where}; paired by user"
    ui.before_and_after(loop["comparisons"], loop["scores"], note)
    ui.console.print(_verdict(loop["comparisons"]))
    ui.console.print(
        f"{facts['seconds']:.0f} s in all. Everything is in {store}: see it with 'workbench runs' or 'make dashboard'.", soft_wrap=True
    )


def _calls(calls: dict[str, Any] | None) -> str:
    return "-" if calls is None else f"{calls['asked']} new, {calls['cached']} cached"


def _verdict(rows: list[dict[str, Any]]) -> str:
    """One sentence on whether synthesized interactions helped, and whether they did better than the controls."""
    synthesized = [r for r in rows if r["arm"] == "synthesized"]
    better = [f"{r['model']} {r['metric']}" for r in synthesized if r["low"] > 0]
    worse = [f"{r['model']} {r['metric']}" for r in synthesized if r["high"] < 0]
    if not better and not worse:
        return "Synthesized interactions changed no metric beyond its 95% interval."
    said = [f"raised {', '.join(better)}"] if better else []
    said += [f"lowered {', '.join(worse)}"] if worse else []
    found = f"Synthesized interactions {' and '.join(said)} beyond the 95% interval"
    return f"{found} ({len(synthesized)} comparisons, not corrected for their number)."
