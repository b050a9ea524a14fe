"""Results as plain rows: what the tables print and `--json` writes are the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_core import Comparison, Evaluation
from workbench.loop import Trained
from workbench.simulate import Outcome
from workbench.store import Evaluation as StoredEvaluation
from workbench.store import RunSummary, StoreReader

FIDELITY_NOTE = (
    "AUC: telling a user's latest real items from others, 0.5 is chance; popularity is the floor, EASE a reference. "
    "W1, RMSE: ratings against the user's own."
)
"""What stands under every table of `fidelity_rows`."""
LEAK_NOTE = (
    "The recommender was not trained on the training part of this split: it may have seen what is held out. Its lists are no evidence of "
    "accuracy, and nothing is retrained on what its users did."
)
"""What stands under a simulation on a trained model that is not clean (`workbench.config.TrainedModel`)."""
DIFFERENCE_NOTE = "Paired, with 95% intervals; p of a two-sided sign-flip test, not corrected for the number of rows."
"""What stands beside every table of stored comparisons."""


def score_rows(trained: Sequence[Trained], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One row a model and arm: metric to (mean, low, high) over users, values averaged over seeds first."""
    rows = []
    for item in trained:
        rows.append(
            {
                "model": item.model,
                "training": item.runs[0].training,
                "arm": item.arm,
                "seeds": len(item.runs),
                "metrics": {metric: figure(item.runs, metric) for metric in metrics},
                "seconds": item.seconds,
            }
        )
    return rows


def figure(runs: Sequence[Evaluation], metric: str) -> tuple[float, float, float]:
    """Mean and 95% interval over users of one model's seeds, values averaged over them first; a total has no interval but itself."""
    if metric in runs[0].totals:
        mean = float(np.mean([run.totals[metric] for run in runs]))
        return mean, mean, mean
    averaged = replace(runs[0], values={metric: np.mean([run[metric] for run in runs], axis=0)})
    return averaged.means[metric], *averaged.interval(metric)


def comparison_rows(comparisons: Sequence[tuple[str, str, Comparison]]) -> list[dict[str, Any]]:
    """One row a model, arm and metric: before, after, difference with its interval and p-value, spread between seeds."""
    return [
        {
            "model": model,
            "arm": arm,
            "metric": c.metric,
            "before": c.mean_b,
            "after": c.mean_a,
            "difference": c.difference,
            "low": c.low,
            "high": c.high,
            "p": c.p_value,
            "wilcoxon_p": c.wilcoxon_p,
            "seed_spread": c.spread_a,
        }
        for model, arm, c in comparisons
    ]


def fidelity_rows(stored: Sequence[StoredEvaluation]) -> list[dict[str, Any]]:
    """One row a judge and test of what is stored with a simulation run; empty where fidelity was not measured."""
    return [
        {"judge": e.model, "test": e.arm, "metric": e.metric, "value": e.mean, "low": e.low, "high": e.high, "n": len(e.per_user)}
        for e in stored
        if e.part == "fidelity"
    ]


EXITS = {"policy": "chose to leave", "hazard": "fatigue", "pages": "page limit", "catalogue": "nothing left to show"}
"""Why a session ended with a page (`simulators.events.PageRecord`), as it is shown."""


def page_rows(store: StoreReader, run: str) -> list[dict[str, Any]]:
    """One row a page number of a simulation run: who reached it, what they took there, and why sessions ended with it."""
    totals = store.page_totals(run)
    reasons = [why for why in EXITS if any(why in t.exits for t in totals)]
    return [
        {
            "page": t.page + 1, "agents": t.agents, "shown": t.shown, "taken": t.taken, "take rate": t.taken / max(t.shown, 1),
            "mean rating": t.rating if t.taken else None, "fallbacks": t.fallbacks,
        }
        | {f"ended: {EXITS[why]}": t.exits.get(why, 0) for why in reasons}
        for t in totals
    ]  # fmt: skip


def subject(run: RunSummary) -> str:
    """What a run was about, in a few words of its configuration; empty for one that the workbench did not start."""
    config = run.config
    try:
        if run.kind == "simulate":
            simulation = config["simulation"]
            agents = simulation["llm"]["spec"] if simulation["policy"] == "llm" else simulation["policy"]
            trained = simulation["recommender"].get("trained")
            leak = "" if trained is None or trained["clean"] else ", which may have seen what is held out"
            return f"{agents} agents on {simulation['recommender']['name']}{leak}"
        if run.kind == "optimize":
            return f"{config['optimizer']}, {config['llm']['spec']}"
        if run.kind == "test":
            return f"{' against '.join(config['names'])}, {config['llm']['spec']}"
        if run.kind == "cell":
            return f"{config.get('label', config['model'])}, seed {config['seed']}"
        models = config["loop"]["models"] if run.kind == "augment" else config.get("baselines") or config["models"]
        return ", ".join(model if isinstance(model, str) else model["name"] for model in models)
    except KeyError:
        return ""


def simulation_row(outcome: Outcome) -> dict[str, Any]:
    """Totals of one simulation: what was shown and taken, how sessions ended, what the model was asked."""
    r, c, settings = outcome.result, outcome.counts, outcome.settings
    return {
        "run": outcome.run,
        "policy": settings.policy,
        "recommender": settings.recommender.name,
        "trained": settings.recommender.trained.model_dump() if settings.recommender.trained else None,
        "agents": r.agents,
        "pages": r.pages,
        "exposures": r.exposures,
        "actions": r.actions,
        "take_rate": r.actions / max(r.exposures, 1),
        "pages_per_agent": r.pages / max(r.agents, 1),
        "fallbacks": r.fallbacks,
        "exits": dict(sorted(r.exits.items())),
        "calls": None
        if c is None
        else {
            "asked": c.calls,
            "cached": c.cache_hits,
            "retries": c.retries,
            "parse_failures": c.parse_failures,
            "failures": c.failures,
            "prompt_tokens": c.prompt_tokens,
            "completion_tokens": c.completion_tokens,
            "cost_usd": c.cost,
        },
        "log_hash": outcome.log_hash,
    }
