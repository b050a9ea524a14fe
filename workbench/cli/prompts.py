"""`workbench prompts`: the templates of a store."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from recsys_core.errors import DataError
from workbench.cli import ui
from workbench.cli.optimize import (
    METRICS,
    CandidatesOption,
    LlmOption,
    MetricsOption,
    RecommenderOption,
    TaskArgument,
    TestOption,
    task_settings,
)
from workbench.config import LLMSettings
from workbench.optimization.comparing import compare_searches
from workbench.optimization.testing import measure_on_test
from workbench.prompts.facts import baseline_facts, difference_facts, measured_facts
from workbench.prompts.starting import STARTING
from workbench.prompts.templates import SECTIONS, Template
from workbench.prompts.versions import diff, keep, kept, resolve, to_toml

app = typer.Typer(help="Ranking templates: what is stored, what is in one, what changed, how good one is.", no_args_is_help=True)
KeyArgument = Annotated[str, typer.Argument(help="A built-in or stored name, a version or its beginning, or a TOML file.")]


@app.command("list")
def list_(
    name: Annotated[str, typer.Argument(help="Only templates of this name.")] = "",
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """List the built-in templates and those of the store, oldest first."""
    with ui.reading(store, create=True) as handle:
        stored = kept(handle, name)
    versions = {row.id: template.version for row, template in stored}
    rows = [(t.name, t.version, t.kind, t.author, "", 0.0) for t in STARTING.values() if name in ("", t.name)]
    rows += [(t.name, t.version, t.kind, t.author, versions.get(row.parent or "", ""), row.created) for row, t in stored]
    if json:
        return ui.print_json([dict(zip(("name", "version", "kind", "author", "parent", "created"), row, strict=True)) for row in rows])
    cells = [[*row[:5], time.strftime("%Y-%m-%d %H:%M", time.gmtime(row[5])) if row[5] else "built in"] for row in rows]
    return ui.table("Templates", ["name", "version", "kind", "author", "made from", "stored (UTC)"], cells)


@app.command()
def show(key: KeyArgument, store: ui.StoreOption = ui.DEFAULT_STORE, json: ui.JsonOption = False) -> None:
    """Print a template as TOML, to read, to edit and to give back with --template FILE.toml.

    Example: workbench prompts show likelihood > mine.toml
    """
    with ui.reading(store, create=True) as handle:
        template = resolve(handle, key)
    if json:
        settings = {name: getattr(template, name) for name in template.__dataclass_fields__}
        return ui.print_json({"version": template.version, **settings})
    return ui.console.print(to_toml(template), markup=False, end="", soft_wrap=True)


@app.command("diff")
def diff_(
    a: KeyArgument,
    b: Annotated[str, typer.Argument(help="The other one.")],
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Show what changed from one template to another, section by section."""
    with ui.reading(store, create=True) as handle:
        changed = diff(*(resolve(handle, key) for key in (a, b)))
    if json:
        return ui.print_json(changed)
    if not changed:
        return ui.console.print("no difference")
    for name, lines in changed.items():
        ui.console.print(f"[bold]{name}[/]" + (" (section)" if name in SECTIONS else ""))
        for line in lines:
            ui.console.print(f"[{'red' if line[0] == '-' else 'green'}]{escape(line)}[/]", soft_wrap=True)
    return None


@app.command()
def add(file: Annotated[Path, typer.Argument(help="A template as TOML.")], store: ui.StoreOption = ui.DEFAULT_STORE) -> None:
    """Keep a template in the store as a version."""
    if file.suffix != ".toml":
        raise DataError(f"{file} is not a .toml file; see an example with: workbench prompts show plain")
    with ui.opened(store) as handle:
        template = resolve(handle, str(file))
        keep(handle, template)
    ui.console.print(f"{escape(template.name)} {template.version}", soft_wrap=True)


@app.command("test")
def measure_(
    key: KeyArgument,
    task: TaskArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why the sealed test rows are opened; the store keeps it.")],
    against: Annotated[str, typer.Option("--against", help="Another template that shows the same features, compared row by row.")] = "",
    llm: LlmOption = "embedded",
    metrics: MetricsOption = METRICS,
    recommender: RecommenderOption = "itemknn",
    candidates: CandidatesOption = None,
    rows: TestOption = None,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Orders in which candidates are shown.")] = 1,
    max_calls: Annotated[int | None, typer.Option("--max-calls", min=1, help="Budget of model questions, never exceeded.")] = None,
    seed: ui.SeedOption = 0,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Measure a template on sealed test rows beside baselines without a model; the opening is written down first.

    Figures and model calls are kept as a run: workbench runs latest.

    Example: workbench prompts test likelihood po4isr:data/po4isr/games --test 300 --reason "the table of our report"
    """
    chosen = ui.names(metrics)
    asked = LLMSettings(spec=llm, temperature=0.0, timeout=600.0, max_calls=max_calls)
    with ui.opened(store) as handle:
        template: Template = resolve(handle, key)
        other = resolve(handle, against) if against else None
        where = task_settings(task, recommender, candidates, test=rows)
        with ui.step(f"testing {template.name} on {task}"):
            found = measure_on_test(handle, where, asked, template, reason, chosen, against=other, repetitions=repetitions, seed=seed)
        openings = handle.openings(found.task.test.content_hash)
    if json:
        return ui.print_json(
            {
                "run": found.run, "task": found.task.name, "test_hash": found.task.test.content_hash, "openings": len(openings),
                "template": {"version": template.version, **measured_facts(found.measured)},
                "against": measured_facts(found.against) if found.against else None,
                "difference": {name: difference_facts(c) for name, c in found.differences.items()},
                "baselines": baseline_facts(found.baselines), "replies": asdict(found.rates), "calls": asdict(found.counts),
            }
        )  # fmt: skip
    lines = [*found.baselines, found.measured, *([found.against] if found.against else [])]
    cells = [[m.name, *(ui.interval(m.mean(name), *m.interval(name)) for name in chosen)] for m in lines]
    if found.differences:
        signed = [ui.interval(c.difference, c.low, c.high, signed=True) for c in found.differences.values()]
        cells.append(["difference", *signed])
    title = f"{len(found.measured.rows)} test rows of {found.task.name}"
    return ui.table(
        title, ["ranked by", *chosen], cells, f"{found.rates}. These rows were opened {ui.times(len(openings))}; run {found.run}."
    )


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished searches of one task: ids, unique beginnings, or 'latest'.")],
    metric: Annotated[str, typer.Option("--metric", help="One that all of them report.")] = "MRR",
    part: Annotated[str, typer.Option("--part", help="`test` or `fresh` rows.")] = "test",
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Compare the favourites of several searches on the same rows, against the template that the first began with.

    Give the searches one budget: workbench optimize TASK --optimizer recprompt --max-calls 2000, then the same with another optimizer.

    Example: workbench prompts compare optimize-20260101-120000-ab12cd latest
    """
    if part not in ("test", "fresh"):
        raise DataError(f"part is {part!r}; it must be 'test' or 'fresh'")
    with ui.reading(store) as handle:
        found = compare_searches(handle, runs, metric, part)
    if json:
        shown = ("run", "optimizer", "questions", "template", "value", "low", "high")
        return ui.print_json(
            [
                {name: getattr(c, name) for name in shown} | {"difference": difference_facts(c.difference), "adjusted_p": c.adjusted}
                for c in found
            ]
        )
    rows = [
        [
            c.optimizer, c.template, str(c.questions), ui.interval(c.value, c.low, c.high),
            ui.interval(c.difference.difference, c.difference.low, c.difference.high, signed=True), f"{c.adjusted:.3f}", c.run,
        ]
        for c in found
    ]  # fmt: skip
    title = f"{metric} on {part} rows, against the first search's start"
    return ui.table(title, ["optimizer", "favourite", "questions", metric, "difference", "p, Holm", "run"], rows)


@app.command()
def openings(store: ui.StoreOption = ui.DEFAULT_STORE, json: ui.JsonOption = False) -> None:
    """List who opened which sealed test rows, when, why, and for which template."""
    with ui.reading(store) as handle:
        found = handle.openings()
    if json:
        return ui.print_json([asdict(opening) for opening in found])
    rows = [[o.task, o.test_hash[:12], o.template, o.who, o.reason, time.strftime("%Y-%m-%d %H:%M", time.gmtime(o.at))] for o in found]
    return ui.table("Openings of sealed test rows", ["task", "test rows", "template", "who", "why", "when (UTC)"], rows)
