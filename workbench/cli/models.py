"""`workbench train` and `workbench evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys_core import create, known_models, load
from recsys_core import evaluate as evaluate_model
from recsys_core.errors import DataError
from workbench.cli import ui
from workbench.config import DataSettings, ModelSettings
from workbench.data import load_split
from workbench.loop import Trained, store_results, train_and_evaluate
from workbench.report import score_rows

SetOption = Annotated[list[str], typer.Option("--set", help="A field of the model's configuration, as name=value; repeatable.")]


def train(
    model: Annotated[str, typer.Argument(help=f"One of: {', '.join(known_models())}")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the trained model.")],
    data: ui.DataOption = "ml-100k",
    settings: SetOption = [],  # noqa: B006
    json: ui.JsonOption = False,
) -> None:
    """Train one recommender on the training part of a log and save it.

    Example: workbench train hstu --data ml-100k --set seed=1 --out models/hstu
    """
    _, split = load_split(DataSettings(name=data))
    start = time.perf_counter()
    with ui.step(f"training {model}") as progress:
        recommender = create(model, **parse_settings(settings)).fit(split.train, progress)
    recommender.save(out)
    facts = {"model": model, "folder": str(out), "seconds": round(time.perf_counter() - start, 2), "split_hash": split.content_hash}
    if json:
        return ui.print_json(facts)
    return ui.console.print(f"saved {model} to {out}", soft_wrap=True)


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Model names to train, or folders of trained models.")],
    data: ui.DataOption = "ml-100k",
    part: Annotated[str, typer.Option("--part", help="`valid` for choosing, `test` for reporting.")] = "valid",
    metrics: Annotated[str, typer.Option("--metrics", help="Comma-separated.")] = "HR@10,NDCG@10,MRR,Recall@10,AUC",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds of models that draw random numbers.")] = 1,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Rank the full catalogue for held-out users and print each metric with its 95% interval.

    Example: workbench evaluate popularity ease models/hstu --part test
    """
    if part not in ("valid", "test"):
        raise DataError(f"part is {part!r}; it must be 'valid' or 'test'")
    dataset, split = load_split(DataSettings(name=data))
    holdout = split.valid if part == "valid" else split.test
    names = tuple(m.strip() for m in metrics.split(",") if m.strip())
    trained = []
    for model in models:
        with ui.step(f"evaluating {model}") as progress:
            if Path(model).is_dir():
                saved = load(Path(model))
                if saved.items is None or saved.items.ids != dataset.items.ids:
                    raise DataError(f"{model} was trained on another catalogue than {data!r}; evaluate it on its own dataset")
                trained.append(Trained(model, "none", [evaluate_model(saved, holdout, names)]))
            else:
                trained += train_and_evaluate({"none": split.train}, holdout, [ModelSettings(name=model)], seeds, names, progress)
    with ui.opened(store) as handle:
        run = handle.start_run("evaluate", data, {"models": models, "part": part, "seeds": seeds}, 0, dataset, split)
        store_results(handle, run, trained, [], part)
        handle.record_status(run, "finished")
    rows = score_rows(trained, names)
    if json:
        return ui.print_json(
            {"run": run, "part": part, "dataset_hash": dataset.content_hash, "split_hash": split.content_hash, "rows": rows}
        )
    cells = [
        [str(r["model"]), r["training"], str(r["seeds"]), *(ui.interval(*r["metrics"][m]) for m in names), f"{r['seconds']:.1f}"]
        for r in rows
    ]
    where = f"{data}, {split.name}, {part}, {len(holdout)} users"
    note = f"{where}, full catalogue, seen items removed; split {split.content_hash[:12]}; run {run}"
    return ui.table("Ranking", ["model", "loss, negatives, time", "seeds", *names, "fit s"], cells, note)


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
