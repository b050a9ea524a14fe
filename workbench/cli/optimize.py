"""`workbench optimize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from recsys_core.errors import DataError
from workbench.cli import ui
from workbench.cli.models import parse_settings
from workbench.config import DataSettings, LLMSettings, ModelSettings
from workbench.optimization.plan import Plan, make_plan, prepare
from workbench.optimization.run import Optimized, resume_search, run_search
from workbench.optimization.settings import OptimizeSettings, TaskSettings, stored_settings
from workbench.prompts.facts import baseline_facts, report_facts
from workbench.prompts.optimize import Part
from workbench.prompts.starting import showing
from workbench.prompts.trials import Trial
from workbench.prompts.versions import resolve, to_toml

SOURCES = ("po4isr", "recprompt", "mind", "rerank", "simulated")
METRICS = "MRR,NDCG@5,NDCG@10,HR@1"
_ROWS = "Rows: po4isr:FOLDER, recprompt:FILE.csv, mind:FOLDER, rerank:DATASET or simulated:RUN."
TaskArgument = Annotated[str, typer.Argument(help=_ROWS)]
LlmOption = Annotated[str, typer.Option("--llm", help="The model that ranks: `embedded`, `openai:MODEL`, or `vllm:MODEL@URL`.")]
RecommenderOption = Annotated[str, typer.Option("--recommender", help="For rerank: whose lists are put in order.")]
CandidatesOption = Annotated[int | None, typer.Option("--candidates", min=2, help="For rerank and mind: candidates a row.")]
TestOption = Annotated[int | None, typer.Option("--test", min=1, help="Test rows; by default at most 400, of RecPrompt 40, of PO4ISR all.")]
MetricsOption = Annotated[str, typer.Option("--metrics", help="Reported beside it, comma-separated.")]


def optimize(
    context: typer.Context,
    task: TaskArgument = "",
    llm: LlmOption = "embedded",
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="`components` (needs no proposer), `recprompt`, `po4isr`, `gepa`, `dspy`.")
    ] = "components",
    settings: Annotated[list[str], typer.Option("--set", help="A setting of the optimizer, as name=value; repeatable.")] = [],  # noqa: B006
    proposer: Annotated[str, typer.Option("--proposer", help="The model that writes templates; by default the one that ranks.")] = "",
    template: Annotated[
        str, typer.Option("--template", help="To start from: a built-in or stored one, or a TOML file.", show_default="by model")
    ] = "",
    fields: Annotated[str, typer.Option("--fields", help="Item fields shown beside titles, comma-separated.")] = "",
    metric: Annotated[str, typer.Option("--metric", help="What is optimized.")] = "MRR",
    metrics: MetricsOption = METRICS,
    recommender: RecommenderOption = "itemknn",
    candidates: CandidatesOption = None,
    train: Annotated[int | None, typer.Option("--train", min=0, help="Rows for a proposer to look at.")] = None,
    dev: Annotated[int | None, typer.Option("--dev", min=2, help="Rows to choose and to confirm by.")] = None,
    test: TestOption = None,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Orders in which candidates are shown.")] = 1,
    sealed: Annotated[bool, typer.Option("--sealed", help="Leave the test rows sealed.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would work with and may take, and ask nothing.")] = False,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Model questions in flight.", show_default="32")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, help="Seconds for one model question.", show_default="600")] = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, help="Further attempts of a model question.", show_default="3")] = None,
    max_calls: Annotated[int | None, typer.Option("--max-calls", min=1, help="Budget of model questions, never exceeded.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Budget of tokens, never exceeded.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", min=0.0001, help="Budget in US dollars, never exceeded.")] = None,
    max_seconds: Annotated[float | None, typer.Option("--max-seconds", min=1, help="Budget of wall time of this sitting.")] = None,
    resume: Annotated[str | None, typer.Option("--resume", help="Go on with a stopped search (its id, or 'latest').")] = None,
    seed: ui.SeedOption = 0,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Improve a ranking prompt: search on some dev rows, confirm on others by a paired test, report on the sealed test rows once.

    Examples: workbench optimize po4isr:data/po4isr/games --test 300

    workbench optimize rerank:ml-100k --recommender ease --train 20 --dev 60 --test 100 --llm openai:gpt-4o-mini --max-cost 2

    workbench optimize --resume latest
    """
    bounds: dict[str, Any] = {
        "concurrency": concurrency, "timeout": timeout, "retries": retries, "max_calls": max_calls, "max_tokens": max_tokens,
        "max_cost": max_cost, "max_seconds": max_seconds,
    }  # fmt: skip
    if resume:
        ui.refuse_beside(context, "--resume", "resume", "llm", *bounds, "store", "json")
    with ui.opened(store, create=not resume) as handle:
        if resume:
            known, _ = stored_settings(handle.run(handle.resolve(resume, "optimize")).config)
            with ui.step(f"resuming {resume}") as progress:
                watch = _Watch(progress)
                again = None if llm == "embedded" else llm
                found = resume_search(handle, resume, _say, watch, ui.taken_up(known.llm, again, bounds))
        else:
            start = resolve(handle, template or ("likelihood" if llm.startswith("embedded") else "plain"))
            asked = OptimizeSettings(
                task=task_settings(task, recommender, candidates, train=train, dev=dev, test=test),
                template=to_toml(showing(start, ui.names(fields))),
                optimizer=optimizer,
                settings=parse_settings(settings),
                llm=LLMSettings(**{"spec": llm, "temperature": 0.0, "timeout": 600.0, **ui.given(bounds)}),
                proposer=proposer,
                metric=metric,
                metrics=ui.names(metrics),
                repetitions=repetitions,
                open_test="" if sealed else "the report of workbench optimize",
                seed=seed,
            )
            if plan:
                return _show_plan(make_plan(prepare(handle, asked)), json)
            with ui.step(f"improving {start.name} by {optimizer} on {task}") as progress:
                found = run_search(handle, asked, _say, _Watch(progress))
    return ui.print_json(facts(found)) if json else _show(found)


def task_settings(task: str, recommender: str, candidates: int | None, **sizes: int | None) -> TaskSettings:
    """Reads `SOURCE:PATH`; raises DataError for anything else."""
    source, colon, path = task.partition(":")
    if source not in SOURCES or not colon or not path:
        raise DataError(f"task {task!r} is not of the form {', '.join(f'{s}:...' for s in SOURCES)}; such as po4isr:data/po4isr/games")
    where: dict[str, Any] = {"path": path}
    if source == "rerank":
        where = {"data": DataSettings(name=path), "recommender": ModelSettings(name=recommender)}
    return TaskSettings(**{"source": source, "candidates": candidates, **where, **sizes})


def facts(found: Optimized) -> dict[str, Any]:
    """A finished search as JSON values."""
    task, plan = found.task, found.plan
    return {
        "run": found.run, "task": task.name, "source": task.source, "task_hash": task.content_hash, "optimizer": found.settings.optimizer,
        "model": found.settings.llm.spec, "metric": found.settings.metric, "seed": found.settings.seed,
        "rows": {"train": len(task.train), "search": plan.search, "fresh": plan.fresh, "test": plan.test},
        "detectable": _effects(plan),
        **report_facts(found.report),
        "test_openings": found.openings,
        "calls": [asdict(counts) for counts in found.counts],
        "seconds": round(found.seconds, 2),
    }  # fmt: skip


def _effects(plan: Plan) -> dict[str, float]:
    """Least differences that rows can show; there is none for a sealed part."""
    return {"dev": plan.fresh_effect, **({"test": plan.test_effect} if plan.test else {})}


class _Watch:
    """Shows the best so far while a search runs."""

    def __init__(self, progress: Any) -> None:
        self._progress, self._trials, self._best = progress, 0, ""
        self._known: tuple[int, float] = (0, 0.0)

    def __call__(self, part: str, trial: Trial) -> None:
        self._trials += 1
        metric = next(iter(trial.measured.values))
        mean = trial.measured.mean(metric)
        # A mean over more rows is worth more than a higher one over few.
        if part == "search" and (len(trial.rows), mean) > self._known:
            self._known = len(trial.rows), mean
            self._best = f", best {metric} {ui.interval(mean, *trial.measured.interval(metric))} on {len(trial.rows)} rows"
        shares = {"train": 0.1, "search": 0.3, "fresh": 0.6, "test": 0.8}
        self._progress(shares[part], f"{part}: {self._trials} trials{self._best}")


def _say(plan: Plan) -> None:
    """On stderr, so that a JSON document stays alone on stdout."""
    ui.progress_console.print(escape(_words(plan)), soft_wrap=True)


def _words(plan: Plan) -> str:
    test = f", {plan.test} test rows show one of {plan.test_effect:.3f}" if plan.test else "; the test rows stay sealed"
    return (
        f"{plan.search} rows to search by; {plan.fresh} to confirm on, which show a difference of {plan.fresh_effect:.3f} with 80% chance"
        f"{test} (by the spread of the baselines; prompts of one model differ less); {plan.outlook}"
    )


def _show_plan(plan: Plan, json: bool) -> None:
    if json:
        rows = {"search": plan.search, "fresh": plan.fresh, "test": plan.test}
        final = {"most": asdict(plan.final.most), "likely": asdict(plan.final.likely)}
        return ui.print_json({"rows": rows, "detectable": _effects(plan), "final": final, "baselines": baseline_facts(plan.baselines)})
    ui.console.print(escape(_words(plan)), soft_wrap=True)
    metrics = list(plan.baselines[0].values)
    return ui.table("Fresh dev rows, without a model", ["ranked by", *metrics], [_row(m.name, m, metrics) for m in plan.baselines])


def _show(found: Optimized) -> None:
    report = found.report
    for title, part in (
        ("Fresh dev rows, which the search has not seen", report.fresh),
        (f"Sealed test rows, opened {ui.times(found.openings)} in this store", report.test),
    ):
        if part is not None:
            _show_part(f"{title} ({len(part.before.rows)})", part)
    lines = [_verdict(found)]
    if curse := report.curse:
        lines.append(
            f"Choosing the best on the search rows flattered it: {found.settings.metric} {curse.apparent:.4f} there, "
            f"{ui.interval(curse.corrected, curse.low, curse.high)} corrected for the choice."
        )
    lines += [
        f"{s.metric} of the {name}: {s.dev:.4f} to {s.test:.4f}, lost {ui.interval(s.difference, s.low, s.high, signed=True)}."
        for name, s in report.shrinkage.items()
    ]
    asked, cached = (sum(getattr(c, what) for c in found.counts) for what in ("calls", "cache_hits"))
    lines.append(f"{report.searched} templates tried, {asked} calls, {cached} answers from the store, {found.seconds:.0f} s. {report.note}")
    if report.stopped:
        lines.append(f"The search ended early: {report.stopped}.")
    lines.append(f"workbench prompts diff {report.start.version} {report.favourite.version}; run {found.run}")
    for line in lines:
        ui.console.print(escape(line), soft_wrap=True)


def _verdict(found: Optimized) -> str:
    report, metric = found.report, found.settings.metric
    if report.confirmation is None:
        return "No template was worth a second look; the start is kept."
    difference = report.fresh.differences[metric]
    p = f"{metric} {ui.interval(difference.difference, difference.low, difference.high, signed=True)} on fresh rows"
    p += f", adjusted p {report.adjusted_p:.3f}"
    if report.confirmed:
        return f"Better: {p}. Use {report.favourite.version}."
    said = " The search itself says it is better; that is not confirmed." if report.claimed else ""
    return f"Not shown to be better: {p}. The start is kept.{said}"


def _show_part(title: str, part: Part) -> None:
    metrics = list(part.before.values)
    rows = [_row(m.name, m, metrics) for m in part.baselines]
    rows += [_row("start", part.before, metrics), _row("favourite", part.after, metrics)]
    changes = [part.differences[name] for name in metrics]
    rows.append(["favourite - start", *(ui.interval(c.difference, c.low, c.high, signed=True) for c in changes)])
    ui.table(title, ["ranked by", *metrics], rows, f"replies of the start: {part.rates[0]}; of the favourite: {part.rates[1]}")


def _row(name: str, measured: Any, metrics: Sequence[str]) -> list[str]:
    return [name, *(ui.interval(measured.mean(metric), *measured.interval(metric)) for metric in metrics)]
