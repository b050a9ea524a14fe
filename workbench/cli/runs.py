"""`workbench runs` and `workbench dashboard`: looking at what is stored."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from recsys_core.errors import UnavailableError, missing_extra
from workbench.cli import ui
from workbench.store import Store


def runs(
    run: Annotated[str | None, typer.Argument(help="Run id, a unique beginning of it, or 'latest'; left out, all are listed.")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """List stored runs, newest first, or show one: its facts, model calls, metrics and the hash of its log.

    Examples: workbench runs

    workbench runs latest --json
    """
    with ui.opened(store, create=False) as handle:
        if run:
            return _show(handle, run, json)
        summaries = handle.runs()
    if json:
        return ui.print_json([{k: v for k, v in vars(s).items() if k != "config"} for s in summaries])
    rows = [[s.id, s.name, s.status, s.dataset, str(s.agents), str(s.pages), _when(s.created)] for s in summaries]
    return ui.table(f"Runs in {store}", ["run", "experiment", "status", "dataset", "agents", "pages", "started (UTC)"], rows)


def _show(store: Store, run: str, json: bool) -> None:
    summary, calls = store.run(run), store.call_totals(run)
    evaluations, events = store.evaluations(run), store.status(run)
    log_hash = store.log_hash(run) if summary.agents else ""
    columns = ("model", "arm", "seed", "part", "metric", "mean", "low", "high")
    metrics = [{name: getattr(e, name) for name in columns} for e in evaluations]
    facts = {**vars(summary), "events": [vars(e) for e in events], "calls": vars(calls), "log_hash": log_hash, "evaluations": metrics}
    if json:
        return ui.print_json(facts)
    plain = [[k, str(v)] for k, v in facts.items() if k not in ("evaluations", "config", "events", "calls")]
    plain += [[f"calls: {k}", str(v)] for k, v in vars(calls).items()]
    ui.table(summary.id, ["fact", "value"], plain)
    if evaluations:
        rows = [[e.model, e.arm, str(e.seed), e.metric, ui.interval(e.mean, e.low, e.high)] for e in evaluations]
        ui.table("Metrics", ["model", "arm", "seed", "metric", "value with 95% interval"], rows)
    return None


def dashboard(
    store: ui.StoreOption = ui.DEFAULT_STORE,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on this machine.")] = 8501,
) -> None:
    """Open the Streamlit dashboard over a store.

    Example: workbench dashboard --store workbench.sqlite --port 8501
    """
    if find_spec("streamlit") is None:
        raise missing_extra("streamlit", "dashboard", "the dashboard")
    page = Path(__file__).resolve().parents[2] / "app.py"
    if not page.is_file():
        raise UnavailableError(f"the dashboard page {page} is missing; run the dashboard from a checkout of the project")
    with ui.opened(store, create=False):
        pass
    command = [sys.executable, "-m", "streamlit", "run", str(page), "--server.port", str(port), "--server.address", "localhost"]
    options = ["--server.headless", "true", "--browser.gatherUsageStats", "false"]
    sys.exit(subprocess.call([*command, *options, "--", "--store", store]))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
