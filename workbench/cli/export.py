"""`workbench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from workbench.cli import ui
from workbench.export import export_run


def export(
    run: Annotated[str, typer.Argument(help="Simulation run: its id, a unique beginning of it, or 'latest'.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; the run gets one of its own inside.")] = Path("exports"),
    kind: Annotated[str, typer.Option("--format", help="`parquet` or `recbole` (.inter and .item).")] = "parquet",
    personas: Annotated[bool, typer.Option("--personas", help="Add persona columns (parquet).")] = False,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Write what the agents of a run took, with external ids and provenance.

    Example: workbench export latest --format recbole --out exports
    """
    with ui.reading(store) as handle:
        written = export_run(handle, handle.resolve(run, "simulate"), out, kind, personas)  # type: ignore[arg-type]
    if json:
        return ui.print_json({"run": written.run, "rows": written.rows, "files": [str(f) for f in written.files]})
    return ui.console.print(f"{written.rows} interactions of {written.run}: {escape(', '.join(map(str, written.files)))}", soft_wrap=True)
