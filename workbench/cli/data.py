"""`workbench data`: what logs there are, and what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_core.assets import assets, fetch, first_seen, whereabouts
from recsys_core.data import describe, known_datasets, load_dataset
from workbench.cli import ui
from workbench.cli.dataset_page import WIDTH, page

app = typer.Typer(help="List, fetch and describe datasets and other assets.", no_args_is_help=True)

_DATASETS = (
    "Any CSV, TSV, Parquet, JSON Lines or RecBole file, or a .txt of sequences, is a dataset too, by its path. "
    "More on one, its licence too: workbench data describe NAME"
)
_MODELS = (
    "cached: on this machine, needs no network · at hand: a local file, unpacked on first use · download: fetched on first use · "
    "missing: nobody offers it for download; set WORKBENCH_SHARED_DATA to a folder that has it"
)


@app.command("list")
def list_(json: ui.JsonOption = False) -> None:
    """List the registered datasets and assets, and whether they are on this machine.

    Example: workbench data list
    """
    datasets = known_datasets()
    rows = [
        {
            "name": asset.name,
            "kind": "dataset" if asset.name in datasets else "model",
            "where": whereabouts(asset),
            "description": asset.description,
            "licence": asset.licence,
        }
        for asset in assets().values()
    ]
    if json:
        return ui.print_json(rows)
    for kind, note in (("dataset", _DATASETS), ("model", _MODELS)):
        cells = [[row["name"], row["where"], row["description"]] for row in rows if row["kind"] == kind]
        ui.table(f"{kind.title()}s", ["name", "where", "description"], cells, note)
    return None


@app.command("fetch")
def fetch_(names: Annotated[list[str], typer.Argument(help="Asset names, see: workbench data list")]) -> None:
    """Download assets into the cache; those already there are left alone.

    Example: workbench data fetch ml-100k smollm2-135m-instruct
    """
    for name in names:
        with ui.step(f"fetching {name}") as progress:
            folder = fetch(name, progress)
        ui.console.print(f"{name}: {folder}", soft_wrap=True)
        for file, digest in first_seen(name).items():
            ui.console.print(f"  {file}: nobody published a checksum; SHA-256 when first read here: {digest}", soft_wrap=True)


@app.command("describe")
def describe_(
    name: Annotated[str, typer.Argument(help="A registered dataset or a file.")],
    min_rating: Annotated[float | None, typer.Option("--min-rating", help="Leave out interactions rated below this.")] = None,
    k_core: Annotated[int | None, typer.Option("--k-core", min=1, help="Then leave out users and items with fewer interactions.")] = None,
    tie_rule: Annotated[str, typer.Option("--tie-rule", help="Order of equal timestamps: file-order or shuffled:SEED.")] = "file-order",
    items: Annotated[Path | None, typer.Option("--items", help="For a file: titles, tags and features of items.")] = None,
    users: Annotated[Path | None, typer.Option("--users", help="For a file: features of users.")] = None,
    json: ui.JsonOption = False,
) -> None:
    """Show on one page what a log holds and how it is distributed.

    Example: workbench data describe ml-100k --min-rating 4 --k-core 5
    """
    with ui.step(f"loading {name}") as progress:
        dataset = load_dataset(
            name, items=items, users=users, min_rating=min_rating, k_core=k_core, tie_rule=tie_rule, progress=progress
        )  # fmt: skip
    asset = assets().get(name)
    facts = describe(dataset) | ({"description": asset.description, "licence": asset.licence} if asset else {})
    if json:
        return ui.print_json(facts)
    return ui.console.print(page(facts), width=min(ui.console.width, WIDTH))
