"""`workbench train` and `workbench evaluate`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.markup import escape

from agents.chat import CallRecord
from recsys_core import create, known_models
from recsys_core.errors import DataError
from recsys_core.evaluation import DEFAULT_METRICS, metric_names
from recsys_core.models import model_class
from recsys_core.recommender import FitOptions
from workbench.cli import ui
from workbench.config import DataSettings, Experiment, ModelSettings
from workbench.data import load_split
from workbench.grid import failed, grid_rows, run_grid
from workbench.loop import Trained, store_results, train_and_evaluate
from workbench.prompts.channel import ranking_through
from workbench.recommenders import folder_of, refuse_twins, resolved_model
from workbench.report import score_rows
from workbench.running import ended
from workbench.store import code_version
from workbench.tables import Format, score_table

SetOption = Annotated[list[str], typer.Option("--set", help="A field of the model's configuration, as name=value; repeatable.")]


def train(
    model: Annotated[str, typer.Argument(help=f"One of: {', '.join(known_models())}")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the trained model.")],
    data: ui.DataOption = "ml-100k",
    settings: SetOption = [],  # noqa: B006
    device: Annotated[str, typer.Option("--device", help="`cpu`, `cuda`, `cuda:1`, or `auto` for a GPU where there is one.")] = "auto",
    checkpoints: Annotated[Path | None, typer.Option("--checkpoints", help="Folder for checkpoints and logs, to resume from.")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Train one recommender on the training part of a log and save it; the validation part is there for early stopping (`patience`).

    Example: workbench train hstu --data ml-100k --set seed=1 --out models/hstu
    Several GPUs: torchrun --nproc-per-node 4 -m workbench.cli.main train sasrec --out models/sasrec
    """
    from recsys_core.training.distributed import is_main_process  # torch: not at every start of the command line

    if checkpoints is not None and not model_class(model).keeps_checkpoints:
        able = ", ".join(name for name in known_models() if model_class(name).keeps_checkpoints)
        raise DataError(f"{model} keeps no checkpoints; leave --checkpoints out, or take one of {able}")
    _, split = load_split(DataSettings(name=data))
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):  # known now, not when it is trained
        raise DataError(f"--out {out} cannot be made, {there} is no folder that can be written; name another")
    start = time.perf_counter()
    with ui.answers_kept(model_class(model), store):
        recommender = create(model, **parse_settings(settings))
    options = FitOptions(split.valid, checkpoints, device)
    if not is_main_process():
        recommender.fit(split.train, options=options)
        return None
    with ui.step(f"training {model}") as progress:
        recommender.fit(split.train, progress, options)
    recommender.save(out)
    facts = {"model": model, "folder": str(out), "seconds": round(time.perf_counter() - start, 2), "split_hash": split.content_hash}
    if json:
        return ui.print_json(facts)
    return ui.console.print(f"saved {model} to {escape(str(out))}", soft_wrap=True)


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Model names to train, folders of trained models, or one TOML file with a grid.")],
    data: Annotated[str | None, typer.Option("--data", help="A registered dataset or a file.", show_default="ml-100k")] = None,
    part: Annotated[str | None, typer.Option("--part", help="`valid` for choosing, `test` for reporting.", show_default="valid")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="Comma-separated.", show_default=",".join(DEFAULT_METRICS))] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds of models that draw randomly.", show_default="1")] = None,
    form: Annotated[str, typer.Option("--format", help="`rich`, `markdown`, `csv` or `latex`.")] = "rich",
    out: Annotated[Path | None, typer.Option("--out", help="A file for the table instead of the terminal.")] = None,
    checkpoints: Annotated[Path | None, typer.Option("--checkpoints", help="Folder for a grid's checkpoints and training logs.")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Rank the full catalogue for held-out users and print each metric with its 95% interval.

    A TOML file with a grid trains models x datasets x seeds; what the store already holds is not done again, so the same command goes on
    after an interruption.

    Examples: workbench evaluate popularity ease models/hstu --part test

    workbench evaluate experiment.toml --format latex --out table.tex
    """
    if form not in get_args(Format):
        raise DataError(f"format is {form!r}; it must be one of {', '.join(get_args(Format))}")
    if len(models) == 1 and models[0].endswith(".toml"):
        given = {"--data": data, "--part": part, "--metrics": metrics, "--seeds": seeds}
        if twice := [option for option, value in given.items() if value is not None]:
            raise DataError(f"{twice[0]} does not go with {models[0]}; set it in the file's [grid]")
        return _evaluate_grid(Path(models[0]), form, out, checkpoints, store, json)
    if checkpoints is not None:
        raise DataError("--checkpoints goes with a TOML file; a single model is trained by: workbench train")
    names = metric_names(ui.names(metrics) if metrics is not None else DEFAULT_METRICS)
    asked = [ModelSettings(name=model) for model in models]
    refuse_twins(asked, "models")
    for model in asked:
        folder_of(model)  # a wrong name is refused before the models before it are trained
    return _evaluate_models(models, data or "ml-100k", part or "valid", names, seeds or 1, form, out, store, json)


def _evaluate_models(
    models: list[str], data: str, part: str, metrics: tuple[str, ...], seeds: int, form: str, out: Path | None, store: str, json: bool
) -> None:
    if part not in ("valid", "test"):
        raise DataError(f"part is {part!r}; it must be 'valid' or 'test'")
    dataset, split = load_split(DataSettings(name=data))
    holdout = split.valid if part == "valid" else split.test
    trained, calls = list[Trained](), list[CallRecord]()
    with ui.opened(store) as handle:
        resolved = [resolved_model(handle, ModelSettings(name=model), split.train) for model in models]
        with ranking_through(handle, calls.append):
            for model in models:
                with ui.step(f"evaluating {model}") as progress:
                    trained += train_and_evaluate({"none": split.train}, holdout, [ModelSettings(name=model)], seeds, metrics, progress)
        config = {"models": [m.model_dump() for m in resolved], "part": part, "seeds": seeds, "metrics": list(metrics)}
        run = handle.start_run("evaluate", data, config, 0, dataset, split)
        with ended(handle, run):
            handle.sink(run).calls(calls)
            store_results(handle, run, trained, [], part)
    rows = score_rows(trained, metrics)
    leaks = [model.name for model in resolved if model.trained and not model.trained.clean]
    facts = {"run": run, "part": part, "dataset_hash": dataset.content_hash, "split_hash": split.content_hash, "rows": rows}
    facts["may_have_seen_what_is_held_out"] = leaks
    where = f"{data}, {split.name}, {part}, {len(holdout)} users"
    note = f"{where}, full catalogue, seen items removed; split {split.content_hash[:12]}; run {run}."
    note += f" Not trained on this split's training part, may have seen what is held out: {', '.join(leaks)}." if leaks else ""
    plain = [row | {"metrics": {m: dict(zip(("mean", "low", "high"), f, strict=True)) for m, f in row["metrics"].items()}} for row in rows]
    ui.show(facts, score_table(plain, metrics, "Ranking", note), form, out, json)


def _evaluate_grid(file: Path, form: str, out: Path | None, checkpoints: Path | None, store: str, json: bool) -> None:
    experiment = Experiment.load(file)
    if (grid := experiment.grid) is None:
        raise DataError(f"{file} has no [grid]; add one, or run it with: workbench demo --config {file}")
    with ui.opened(store) as handle, ui.step(f"grid {experiment.name}") as progress:
        cells = run_grid(grid, handle, progress, experiment.name, checkpoints)
    rows = grid_rows(cells, grid.metrics, grid.base)
    reused = [cell for cell in cells if cell.reused]
    other = sorted({cell.code for cell in reused} - {code_version()})
    note = f"{grid.part} part, full catalogue, seen items removed; mean over users, seeds averaged by user, with 95% bootstrap interval."
    computed = f", some computed by code {', '.join(other)}; this is {code_version()}" if other else ""
    # Of this call, not of the figures: a caption that said so would differ between two calls for one table.
    ui.progress_console.print(f"{len(reused)} of {len(cells)} cells were in the store{escape(computed)}", soft_wrap=True)
    facts = {
        "experiment": experiment.name,
        "cells": len(cells),
        "reused": len(reused),
        "base": grid.base,
        "other_code": other,
        "rows": rows,
    }
    ui.show(facts, score_table(rows, grid.metrics, experiment.name, note, grid.base), form, out, json)
    if error := failed(cells):
        raise error


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are TOML where they parse as such, else text."""
    import tomllib

    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise DataError(f"--set {pair!r} is not of the form name=value")
        try:
            settings[name] = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
    return settings
