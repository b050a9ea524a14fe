"""Entry point: gathers the commands, and turns every expected error into one line and an exit code."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from recsys_core.errors import WorkbenchError
from workbench.cli import data, models, prompts
from workbench.cli.demo import demo
from workbench.cli.export import export
from workbench.cli.optimize import optimize
from workbench.cli.recommend import recommend
from workbench.cli.runs import dashboard, runs
from workbench.cli.simulate import augment, simulate
from workbench.cli.ui import progress_console

app = typer.Typer(
    help="Simulated users, prompt optimization and generative recommenders, measured honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo)
app.add_typer(data.app, name="data")
app.command("train")(models.train)
app.command("evaluate")(models.evaluate)
app.command("recommend")(recommend)
app.command("simulate")(simulate)
app.command("augment")(augment)
app.command("optimize")(optimize)
app.add_typer(prompts.app, name="prompts")
app.command("export")(export)
app.command("runs")(runs)
app.command("dashboard")(dashboard)


def run() -> None:
    """Exit codes: 0 done, 2 bad input, 3 something outside is missing, 4 stopped and resumable, 130 interrupted, 1 a bug of ours."""
    try:
        app()
    except WorkbenchError as error:
        progress_console.print(f"[red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 130:  # Typer makes this of Ctrl-C, without a word
            progress_console.print("[red]interrupted;[/] what is stored stays, give the same command again")
        raise
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    run()
