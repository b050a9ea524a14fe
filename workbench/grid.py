"""Recommenders x datasets x seeds: every cell trained and judged once, stored as a run of its own, and never done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recsys_core import Evaluation, evaluate
from recsys_core.data import Dataset, Split
from recsys_core.errors import DataError, RunStoppedError, WorkbenchError
from recsys_core.evaluation import compare, holm, metric_names
from recsys_core.progress import Progress, silent
from recsys_core.recommender import FitOptions
from workbench.config import GridModel, GridSettings
from workbench.data import load_split
from workbench.loop import is_random, stored_evaluations
from workbench.machine import machine
from workbench.prompts.channel import ranking_through
from workbench.recommenders import class_of, ready, refuse_leaks, resolved_model
from workbench.report import figure
from workbench.store import RunSummary, Store, code_version

KIND = "cell"
FIT_SECONDS = "fit seconds"
"""Stored beside the metrics of a cell: what its training took."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One model on one dataset with one seed.

    key: SHA-256 of all that its numbers depend on, beside the code. run: where it is stored; code: the version that computed it, and
    machine what it ran on; seconds: of training, None where it was trained before, or failed; error: one line, empty where it is done;
    reused: it was in the store already. evaluation: per-user values as stored, None after an error.
    """

    model: GridModel
    dataset: Dataset
    split: Split
    part: str
    seed: int
    key: str
    config: dict[str, Any]
    run: str = ""
    code: str = ""
    machine: str = ""
    error: str = ""
    reused: bool = False
    seconds: float | None = None
    evaluation: Evaluation | None = None

    def __str__(self) -> str:
        return f"{self.model.title} on {self.dataset.name}, seed {self.seed}"


def run_grid(
    settings: GridSettings,
    store: Store,
    progress: Progress = silent,
    name: str = "grid",
    checkpoints: Path | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[Cell]:
    """Does every cell that the store does not hold, in order, and gives all of them with their stored values.

    share: (n, of), only every `of`-th cell from the n-th on, for processes that work on one grid and store together.

    What cannot work (a model, a field, a metric, a dataset) is refused before anything is trained. A cell that fails is stored as a failed
    run with one line of reason, and the rest goes on; it is tried again by the next call. Ctrl-C or a kill loses the present cell only, or,
    with `checkpoints` (a folder), what it did since its last checkpoint.
    """
    cells = plan(store, settings)[share[0] :: share[1]]
    done = {key: run for run in reversed(store.runs(KIND)) if (key := run.config["key"]) and run.status == "finished"}
    open_ = [cell for cell in cells if cell.key not in done]
    start, finished, timed = time.perf_counter(), 0, dict[tuple[str, str], float]()

    def report(cell: Cell, share: float, text: str) -> None:
        left = _outlook([_kind(c) for c in open_[finished:]], timed, time.perf_counter() - start, share)
        progress((finished + min(share, 1.0)) / len(open_), f"cell {finished + 1}/{len(open_)}: {cell}: {text}{left}")

    found = []
    for cell in cells:
        if cell.key in done:
            found.append(_stored(store, cell, done[cell.key], reused=True))
        else:
            start = time.perf_counter()
            report(cell, 0.0, "starting")
            found.append(_run(store, cell, settings, name, partial(report, cell), checkpoints))
            if found[-1].error:
                report(cell, 1.0, f"failed: {found[-1].error}")
            finished += 1
            timed[_kind(cell)] = time.perf_counter() - start
    failed = sum(1 for cell in found if cell.error)
    trouble = f", {failed} failed and will be tried again by the next call" if failed else ""
    progress(1.0, f"{len(open_) - failed} cells done, {len(cells) - len(open_)} were in the store{trouble}")
    return found


def plan(store: Store, settings: GridSettings) -> list[Cell]:
    """All cells of a grid by dataset, model and seed, nothing trained; raises what a wrong model, field, metric or dataset raises.

    A trained model is a cell like others; it must be of the dataset, and have seen nothing of what is held out.
    """
    metrics = metric_names(settings.metrics)
    with ranking_through(store):
        random = {m.title: is_random(m) for m in settings.models}
    cells = []
    for data in settings.data:
        dataset, split = load_split(data)
        models = [resolved_model(store, model, split.train) for model in settings.models]
        refuse_leaks(models, f"a table of the {settings.part} part")
        for model in models:
            for seed in range(settings.seeds if random[model.title] else 1):
                config = model.config | ({"seed": seed} if random[model.title] else {})
                shown: dict[str, Any] = {
                    "dataset_hash": dataset.content_hash, "split_hash": split.content_hash, "config": config,
                    "model": model.trained.model if model.trained else model.name,
                    "seed": seed, "part": settings.part, "metrics": list(metrics), "early_stopping": settings.early_stopping,
                }  # fmt: skip
                if model.trained is not None:
                    shown["trained"] = model.trained.model_dump()
                key = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
                kept = shown | {"key": key, "label": model.title, "device": settings.device}
                cells.append(Cell(model, dataset, split, settings.part, seed, key, kept))
    return cells


def grid_rows(cells: Sequence[Cell], metrics: Sequence[str], base: str | None = None) -> list[dict[str, Any]]:
    """One row a dataset and model, as plain values: what the numbers are of, and for each metric its figures.

    A figure has mean, low, high (values averaged over seeds first, 95% bootstrap over users), seed_spread, and beside a base: difference
    with its own low and high, p (sign-flip), wilcoxon_p, holm_p (p, adjusted for all comparisons of the dataset). best: the highest mean of
    the dataset. A model none of whose seeds worked has no metrics, and says why in `errors`.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.split.content_hash, cell.model.title), []).append(cell)
    evaluated = {key: [c.evaluation for c in group if c.evaluation] for key, group in groups.items()}
    rows = []
    for (split, _), group in groups.items():
        first, runs = group[0], evaluated[split, group[0].model.title]
        against = evaluated.get((split, base or ""), [])
        rows.append(
            {
                "dataset": first.dataset.name,
                "dataset_hash": first.dataset.content_hash,
                "split": first.split.name,
                "split_hash": split,
                "part": first.part,
                "users": len(runs[0].users) if runs else 0,
                "model": first.model.title,
                "name": first.model.name,
                "training": class_of(first.model)(class_of(first.model).Config(**first.config["config"])).training,
                "config": first.config["config"],
                "seeds": len(runs),
                "seconds": sum(c.seconds or 0.0 for c in group) if any(c.seconds is not None for c in group) else None,
                "code": sorted({c.code for c in group if c.code}),
                "machines": sorted({c.machine for c in group if c.machine}),
                "runs": [c.run for c in group],
                "errors": [c.error for c in group if c.error],
                "metrics": {m: _figures(runs, against if first.model.title != base else [], m) for m in metrics} if runs else {},
            }
        )
    for split in dict.fromkeys(split for split, _ in groups):
        _mark([row for row in rows if row["split_hash"] == split])
    return rows


def duration(seconds: float) -> str:
    """Such as `40 s`, `12 min` or `3.5 h`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _kind(cell: Cell) -> tuple[str, str]:
    """What a cell's time depends on most: its model and its dataset."""
    return cell.model.title, cell.dataset.content_hash


def _outlook(left: Sequence[tuple[str, str]], timed: Mapping[tuple[str, str], float], spent: float, share: float) -> str:
    """What the cells of kinds `left`, the present one first, will take by those of their kind that were `timed` (seconds).

    Cheap models often come first, so a kind not timed yet is counted and not guessed from others. spent: seconds in the present cell,
    share of it done.
    """
    times = {**timed, left[0]: spent / share} if share > 0 else timed
    if not (seconds := sum(times.get(kind, 0.0) for kind in left)):
        return ""
    untimed = len({kind for kind in left if kind not in times})
    besides = f" without the models not timed yet ({untimed})" if untimed else ""
    return f", about {duration(max(seconds - spent, 0.0))} left{besides}"


def _run(store: Store, cell: Cell, settings: GridSettings, name: str, progress: Progress, checkpoints: Path | None) -> Cell:
    run = store.start_run(KIND, name, cell.config | {"machine": machine(settings.device)}, cell.seed, cell.dataset, cell.split)
    options = FitOptions(
        cell.split.valid if settings.early_stopping else None, checkpoints / cell.key[:16] if checkpoints else None, device=settings.device
    )
    with store.working_on(run):
        return _judged(store, cell, run, progress, options)


def _judged(store: Store, cell: Cell, run: str, progress: Progress, options: FitOptions) -> Cell:
    """Trains and evaluates, and records how that ended."""
    sink = store.sink(run)
    try:
        start = time.perf_counter()
        model = ready(cell.model.model_copy(update={"config": cell.config["config"]}), cell.split.train, progress, options)
        took = {} if cell.model.trained else {FIT_SECONDS: time.perf_counter() - start}
        progress(1.0, "evaluating")
        holdout = cell.split.valid if cell.part == "valid" else cell.split.test
        with ranking_through(store, lambda record: sink.calls([record])):
            found = evaluate(model, holdout, cell.config["metrics"], train=cell.split.train)
        found = replace(found, totals={**found.totals, **took})
        store.add_evaluations(run, stored_evaluations(found, cell.model.name, "none", cell.seed, cell.part))
    except KeyboardInterrupt:
        store.record_status(run, "stopped", "interrupted")
        raise
    except RunStoppedError:
        raise
    except Exception as error:
        expected = isinstance(error, WorkbenchError)
        message = " ".join(str(error).split())
        message = message if expected else f"{type(error).__name__}: {message}"
        store.record_status(run, "failed", message)
        return replace(cell, run=run, code=code_version(), error=message)
    store.record_status(run, "finished")
    return _stored(store, cell, store.run(run), reused=False)


def _stored(store: Store, cell: Cell, run: RunSummary, reused: bool) -> Cell:
    """The cell with what its run holds; float32 as stored, so that a cell gives the same figures now and later."""
    kept = {e.metric: e for e in store.evaluations(run.id)}
    users = (cell.split.valid if cell.part == "valid" else cell.split.test).users
    values = {name: e.per_user.astype(np.float64) for name, e in kept.items() if len(e.per_user)}
    totals = {name: e.mean for name, e in kept.items() if not len(e.per_user) and name != FIT_SECONDS}
    evaluation = Evaluation(cell.model.name, users, values, totals=totals)
    return replace(
        cell,
        run=run.id,
        code=run.code_version,
        machine=run.config.get("machine", ""),
        reused=reused,
        seconds=kept[FIT_SECONDS].mean if FIT_SECONDS in kept else None,
        evaluation=evaluation,
    )


def _figures(runs: Sequence[Evaluation], against: Sequence[Evaluation], metric: str) -> dict[str, Any]:
    mean, low, high = figure(runs, metric)
    means = [run.means[metric] for run in runs]
    found: dict[str, Any] = {
        "mean": mean,
        "low": low,
        "high": high,
        "seed_spread": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }
    if against and metric in runs[0].values:
        c = compare(runs, against, metric)
        found |= {
            "difference": c.difference, "difference_low": c.low, "difference_high": c.high, "p": c.p_value, "wilcoxon_p": c.wilcoxon_p
        }  # fmt: skip
    return found


def _mark(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to the figures of one dataset which is best, and the p-values adjusted for all of its comparisons."""
    figures = [(metric, found) for row in rows for metric, found in row["metrics"].items()]
    compared = [found for _, found in figures if "p" in found]
    for found, p in zip(compared, holm([found["p"] for found in compared]), strict=True):
        found["holm_p"] = p
    for metric, found in figures:
        found["best"] = higher_is_better(metric) and found["mean"] == max(other["mean"] for name, other in figures if name == metric)


def higher_is_better(metric: str) -> bool:
    """False for Gini and popularity, which have no good side of their own."""
    return not metric.startswith(("gini", "popularity"))


def failed(cells: Sequence[Cell]) -> DataError | None:
    """The error that sums up failed cells, or None."""
    wrong = [cell for cell in cells if cell.error]
    if not wrong:
        return None
    return DataError(f"{len(wrong)} of {len(cells)} cells failed and are tried again next time; first: {wrong[0]}: {wrong[0].error}")
