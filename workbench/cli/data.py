"""`workbench data`: what logs there are, and what is in one."""

from __future__ import annotations

from typing import Annotated

import typer

from recsys_core.assets import assets, fetch
from recsys_core.data import describe, known_datasets, load_dataset
from workbench.cli import ui

app = typer.Typer(help="List, fetch and describe datasets and other assets.", no_args_is_help=True)


@app.command("list")
def list_(json: ui.JsonOption = False) -> None:
    """List the registered datasets and assets.

    Example: workbench data list
    """
    known = known_datasets()
    rows = [{"name": a.name, "description": a.description, "licence": a.licence, "dataset": a.name in known} for a in assets().values()]
    if json:
        return ui.print_json(rows)
    cells = [[r["name"], "dataset" if r["dataset"] else "model", r["description"], r["licence"]] for r in rows]
    return ui.table("Registered assets", ["name", "kind", "description", "licence"], [[str(c) for c in row] for row in cells])


@app.command("fetch")
def fetch_(names: Annotated[list[str], typer.Argument(help="Asset names, see: workbench data list")]) -> None:
    """Download assets into the cache; those already there are left alone.

    Example: workbench data fetch ml-100k smollm2-135m-instruct
    """
    for name in names:
        with ui.step(f"fetching {name}") as progress:
            folder = fetch(name, progress)
        ui.console.print(f"{name}: {folder}", soft_wrap=True)


@app.command("describe")
def describe_(name: Annotated[str, typer.Argument(help="A registered dataset or a file.")], json: ui.JsonOption = False) -> None:
    """Count users, items and interactions, and show how they are distributed.

    Example: workbench data describe ml-100k
    """
    dataset = load_dataset(name)
    facts = describe(dataset)
    if json:
        return ui.print_json(facts)
    return ui.table(dataset.name, ["fact", "value"], [[key, str(value)] for key, value in facts.items()])
