"""A prompt search as settings, and the rows they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench.config import DataSettings, LLMSettings, ModelSettings, Settings
from workbench.prompts.metrics import DEFAULT_METRICS
from workbench.prompts.optimize import Rules
from workbench.prompts.tasks import RankingTask
from workbench.store import Store


class TaskSettings(Settings):
    """Which rows."""

    source: Literal["po4isr", "recprompt", "mind", "rerank", "simulated"]
    """What they are read as; `rerank` takes the lists of a recommender, `simulated` adds dev rows of a stored simulation to these."""
    path: str = ""
    """A folder (po4isr, mind), a file (recprompt), a run (simulated), or nothing (rerank)."""
    data: DataSettings = DataSettings()
    """For rerank: the log."""
    recommender: ModelSettings = ModelSettings(name="itemknn")
    """For rerank: whose lists are put in order."""
    candidates: int | None = Field(default=None, ge=2)
    """For rerank and mind: candidates a row."""
    train: int | None = Field(default=None, ge=0)
    """Rows for a proposer to look at; by default as many as the source's reader takes."""
    dev: int | None = Field(default=None, ge=2)
    """Rows to choose and to confirm by."""
    test: int | None = Field(default=None, ge=1)
    """Rows to report on, sealed."""


class OptimizeSettings(Settings):
    """The resolved configuration stored with a prompt search: all that is needed to repeat or resume it."""

    task: TaskSettings
    """The rows."""
    template: str
    """The template to start from, as TOML."""
    optimizer: str = "components"
    """Name of the optimizer."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Its own settings."""
    llm: LLMSettings = LLMSettings(temperature=0.0, timeout=600.0)
    """The model that ranks, and the bounds of the whole run."""
    proposer: str = ""
    """The model that writes templates, for optimizers that need one; by default the one that ranks."""
    metric: str = "MRR"
    """What is optimized."""
    metrics: tuple[str, ...] = DEFAULT_METRICS
    """What is reported beside it."""
    repetitions: int = Field(default=1, ge=1)
    """Orders in which a model that reads their order is shown the candidates."""
    search_share: float = Field(default=0.5, gt=0, lt=1)
    """Of the dev rows, to choose by; the others confirm."""
    finalists: int = Field(default=3, ge=1)
    """Templates that are looked at again."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of the confirming test."""
    open_test: str = ""
    """Why the test rows are opened at the end; empty leaves them sealed."""
    seed: int = Field(default=0, ge=0)
    """Of every draw."""

    @property
    def rules(self) -> Rules:
        """How the search is judged."""
        return Rules(self.metric, self.metrics, self.search_share, self.finalists, self.alpha, self.seed)


def stored_settings(config: dict[str, Any]) -> tuple[OptimizeSettings, str]:
    """The settings of a stored run, and the hash of its rows."""
    return OptimizeSettings(**{name: value for name, value in config.items() if name != "task_hash"}), str(config["task_hash"])


def load_task(store: Store, settings: TaskSettings, seed: int) -> RankingTask:
    """The rows of a task; raises what its reader raises. The store is where a simulation is looked for."""
    from workbench.prompts import readers

    sizes = {name: size for name in ("train", "dev", "test") if (size := getattr(settings, name)) is not None}
    match settings.source:
        case "po4isr":
            return readers.po4isr_task(Path(settings.path), **sizes, seed=seed)
        case "recprompt":
            return readers.recprompt_task(Path(settings.path), **sizes, seed=seed)
        case "mind":
            return readers.mind_task(Path(settings.path), settings.candidates, **sizes, seed=seed)
        case "rerank":
            from workbench.data import load_split
            from workbench.prompts.reranking import rerank_task
            from workbench.recommenders import ready, refuse_leaks, resolved_model

            dataset, split = load_split(settings.data)
            refuse_leaks([resolved_model(store, settings.recommender, split.train)], "a task with held-out rows")
            first = ready(settings.recommender, split.train)
            return rerank_task(first, dataset, split, settings.candidates or 20, **sizes, seed=seed, reached_only=True)
        case "simulated":
            from workbench.data import load_split
            from workbench.prompts.simulated import simulated_task
            from workbench.recommenders import ready, refuse_leaks
            from workbench.simulate import RunSettings

            run = store.resolve(settings.path, "simulate")
            simulated = RunSettings(**store.run(run).config)
            _, split = load_split(simulated.data)
            refuse_leaks([simulated.simulation.recommender], "a task with held-out rows")
            first = ready(simulated.simulation.recommender, split.train)
            return simulated_task(store, run, first, split, settings.candidates or 0, **sizes, seed=seed)
