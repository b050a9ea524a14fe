"""`workbench simulate` and `workbench augment`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from recsys_core.errors import DataError
from workbench.cli import ui
from workbench.cli.demo import have_assets
from workbench.cli.models import SetOption, parse_settings
from workbench.config import DataSettings, Experiment, LLMSettings, LoopSettings, ModelSettings, SimulationSettings
from workbench.data import load_split
from workbench.experiment import close_loop
from workbench.report import FIDELITY_NOTE, LEAK_NOTE, comparison_rows, fidelity_rows, score_rows, simulation_row
from workbench.simulate import RunSettings, resume
from workbench.simulate import simulate as simulate_run


def simulate(
    context: typer.Context,
    policy: Annotated[str, typer.Option("--policy", help="`statistical` or `llm`.")] = "statistical",
    llm: Annotated[str | None, typer.Option("--llm", help="`embedded`, `openai:MODEL`, or `vllm:MODEL@URL`; implies --policy llm.")] = None,
    recommender: Annotated[str, typer.Option("--recommender", help="What the agents use: a name, or a trained model's folder.")] = "ease",
    settings_of: SetOption = [],  # noqa: B006
    agents: Annotated[int, typer.Option("--agents", min=1)] = 20,
    pages: Annotated[int, typer.Option("--pages", min=1, help="Most pages of a session.")] = 3,
    page_size: Annotated[int, typer.Option("--page-size", min=1, help="Items on a page.")] = 10,
    data: ui.DataOption = "ml-100k",
    seed: ui.SeedOption = 0,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Model questions in flight.", show_default="32")] = None,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, help="Seconds for one model question.", show_default="120")] = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, help="Further attempts of a model question.", show_default="3")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Token budget of the run, never exceeded.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", min=0.0001, help="Budget in US dollars, never exceeded.")] = None,
    fidelity_users: Annotated[int | None, typer.Option("--fidelity-users", min=0, help="Users for the fidelity test; 0 skips it.")] = None,
    resume_run: Annotated[str | None, typer.Option("--resume", help="Go on with a stopped run (its id, or 'latest').")] = None,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Let simulated users page through a recommender; every exposure and action is stored as it happens.

    Examples: workbench simulate --agents 500 --pages 5 --recommender hstu

    workbench simulate --recommender models/hstu --agents 500

    workbench simulate --llm openai:gpt-4o-mini --agents 50 --max-cost 0.50

    workbench simulate --recommender llm --set template=best.toml --set model=openai:gpt-4o-mini --set first_stage=ease --max-cost 2

    workbench simulate --resume latest
    """
    bounds: dict[str, Any] = {
        "concurrency": concurrency, "timeout": timeout, "retries": retries, "max_tokens": max_tokens, "max_cost": max_cost
    }  # fmt: skip
    if resume_run:
        ui.refuse_beside(context, "--resume", "resume_run", "llm", *bounds, "store", "json")
    with ui.opened(store, create=not resume_run) as handle:
        if resume_run:
            settings = RunSettings(**handle.run(handle.resolve(resume_run, "simulate")).config).simulation
            with ui.step(f"resuming {resume_run}") as progress:
                outcome = resume(handle, resume_run, progress, ui.taken_up(settings.llm, llm, bounds))
        else:
            if policy not in ("statistical", "llm"):
                raise DataError(f"policy is {policy!r}; it must be 'statistical' or 'llm'")
            settings = SimulationSettings(
                policy="llm" if llm else policy,  # type: ignore[arg-type]
                agents=agents,
                pages=pages,
                page_size=page_size,
                recommender=ModelSettings(name=recommender, config=parse_settings(settings_of)),
                fidelity_users=fidelity_users,
                llm=LLMSettings(spec=llm or "embedded", **ui.given(bounds)),
            )
            experiment = Experiment(name="simulate", seed=seed, data=DataSettings(name=data), simulations=(settings,))
            have_assets(experiment)
            with ui.step(f"simulating {agents} {settings.policy} agents on {recommender}") as progress:
                outcome = simulate_run(handle, experiment, settings, progress)
        facts = simulation_row(outcome)
        facts |= {"ranking": vars(outcome.rates) if outcome.rates else None, "fidelity": fidelity_rows(handle.evaluations(outcome.run))}
    if json:
        return ui.print_json(facts)
    rows = [
        [key.replace("_", " "), ui.plain(value)] for key, value in facts.items() if key not in ("fidelity", "trained") and value is not None
    ]
    trained = outcome.settings.recommender.trained
    ui.table(f"Simulation {outcome.run}", ["what", "figure"], rows, LEAK_NOTE if trained and not trained.clean else "")
    fidelity = [[r["judge"], r["test"], r["metric"], ui.interval(r["value"], r["low"], r["high"]), str(r["n"])] for r in facts["fidelity"]]
    if fidelity:
        ui.table(
            "How far to trust it", ["judge", "test", "measure", "value with 95% interval", "users or ratings"], fidelity, FIDELITY_NOTE
        )
    return None


def augment(
    runs: Annotated[list[str], typer.Argument(help="Simulation runs whose interactions are pooled (ids, or 'latest').")],
    models: Annotated[str, typer.Option("--models", help="Recommenders to retrain, comma-separated.")] = "ease,bpr",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds of models that draw random numbers.")] = 3,
    seed: ui.SeedOption = 0,
    store: ui.StoreOption = ui.DEFAULT_STORE,
    json: ui.JsonOption = False,
) -> None:
    """Retrain on synthesized interactions and compare with no augmentation and with as many from controls, on untouched test data.

    Example: workbench augment latest --models ease,bpr,hstu --seeds 5
    """
    with ui.opened(store, create=False) as handle:
        ids = [handle.resolve(run, "simulate") for run in runs]
        data = {RunSettings(**handle.run(run).config).data for run in ids}
        if len(data) != 1:
            raise DataError(f"the runs use {len(data)} different datasets or splits; augment runs of one dataset at a time")
        loop = LoopSettings(models=tuple(ModelSettings(name=m.strip()) for m in models.split(",")), seeds=seeds)
        experiment = Experiment(name="augment", seed=seed, data=data.pop(), loop=loop)
        dataset, split = load_split(experiment.data)
        with ui.step("retraining") as progress:
            found = close_loop(handle, experiment, dataset, split, ids, progress)
    rows, scores = comparison_rows(found.comparisons), score_rows(found.trained, loop.metrics)
    if json:
        return ui.print_json({"run": found.run, "added": found.added, "scores": scores, "comparisons": rows})
    note = f"{found.added} interactions added in every arm; run {found.run}; test split {split.content_hash[:12]}, paired by user"
    return ui.before_and_after(rows, scores, note)
