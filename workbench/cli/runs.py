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
from workbench.report import DIFFERENCE_NOTE, page_rows, subject
from workbench.running import how_to_go_on
from workbench.store import StoreReader


def runs(
    run: Annotated[str | None, typer.Argument(help="Run id, a unique beginning of it, or 'latest'; left out, all are listed.")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """List stored runs, newest first, or show one: its facts, model calls, metrics, differences and the hash of its log.

    Examples: workbench runs

    workbench runs latest --json
    """
    with ui.reading(store) as handle:
        if run:
            return _show(handle, run, json)
        summaries = handle.runs()
    if json:
        return ui.print_json([{k: v for k, v in vars(s).items() if k != "config"} for s in summaries])
    rows = [[s.id, subject(s), s.name, s.status, s.dataset, *(str(n or "") for n in (s.agents, s.pages))] for s in summaries]
    return ui.table(f"Runs in {store}", ["run", "what", "experiment", "status", "dataset", "agents", "pages"], rows)


def _show(store: StoreReader, run: str, json: bool) -> None:
    summary, calls = store.run(run), store.call_totals(run)
    evaluations, comparisons, events = store.evaluations(run), store.comparisons(run), store.status(run)
    log_hash = store.log_hash(run) if summary.agents else ""
    columns = ("model", "arm", "seed", "part", "metric", "mean", "low", "high")
    metrics = [{name: getattr(e, name) for name in columns} for e in evaluations]
    facts = {"what": subject(summary), **vars(summary), "events": [vars(e) for e in events], "calls": vars(calls)}
    facts |= {"log_hash": log_hash, "evaluations": metrics}
    facts["comparisons"] = [vars(c) for c in comparisons]
    facts["page_totals"] = page_rows(store, run)
    facts["to go on"] = how_to_go_on(store, summary)
    if json:
        return ui.print_json(facts)
    times = {f"{name} (UTC)": _when(getattr(summary, name)) for name in ("created", "updated")}
    left_out = ["created", "updated", "config", "events", "calls", "evaluations", "comparisons", "page_totals"]
    left_out += [] if summary.agents else ["agents", "pages"]
    asked = {f"calls: {name}": ui.plain(value) for name, value in vars(calls).items()} if calls.calls else {}
    shown = {name: value for name, value in facts.items() if name not in left_out and value not in ("", None)} | times | asked
    ui.table(summary.id, ["fact", "value"], [[name, str(value)] for name, value in shown.items()])
    if totals := facts["page_totals"]:
        ui.table("Pages", list(totals[0]), [["-" if v is None else ui.plain(v) for v in row.values()] for row in totals])
    if evaluations:
        rows = [[e.model, e.arm, e.part, str(e.seed), e.metric, ui.interval(e.mean, e.low, e.high)] for e in evaluations]
        ui.table("Metrics", ["model", "arm", "part", "seed", "metric", "value with 95% interval"], rows)
    if comparisons:
        rows = [
            [c.model, c.part, c.metric, f"{c.arm_b} - {c.arm_a}", ui.interval(c.difference, c.low, c.high, signed=True), f"{c.p:.3f}"]
            for c in comparisons
        ]
        ui.table("Differences", ["model", "part", "metric", "of arms", "difference", "p"], rows, DIFFERENCE_NOTE)
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
    with ui.reading(store):
        pass
    command = [sys.executable, "-m", "streamlit", "run", str(page), "--server.port", str(port), "--server.address", "localhost"]
    options = ["--server.headless", "true", "--browser.gatherUsageStats", "false"]
    # The page is for readers: no deploying, and no watch over every file of the checkout, .venv too, for changes of the page.
    options += ["--client.toolbarMode", "viewer", "--server.fileWatcherType", "none"]
    sys.exit(subprocess.call([*command, *options, "--", "--store", store]))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
