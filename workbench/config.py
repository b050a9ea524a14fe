"""One experiment as settings: every field documented, unknown fields refused, loadable from one TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys_core.data import Columns, FeatureColumns
from recsys_core.errors import DataError


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Settings):
    """Which log, and how it is divided."""

    name: str = "ml-100k"
    """A registered dataset or a path to a CSV, TSV, Parquet, JSON Lines or RecBole `.inter` file, or a `.txt` of sequences."""
    split: Literal["leave-one-out", "global-time"] = "leave-one-out"
    """How validation and test are held out."""
    min_rating: float | None = None
    """Interactions rated below it are left out first."""
    k_core: int | None = Field(default=None, ge=1)
    """Users and items with fewer interactions are left out then, until none is left."""
    tie_rule: str = "file-order"
    """Order of equal timestamps of one user: `file-order` or `shuffled:SEED`."""
    items: str | None = None
    """For a path: a file with titles, tags and features of items."""
    users: str | None = None
    """For a path: a file with features of users."""
    columns: Columns | None = None
    """For a path: which column holds `user`, `item`, `timestamp`, `rating`, `title`, `year`, `tags`, where names are unusual."""
    features: FeatureColumns | None = None
    """For a path: feature columns of `user`, `item`, `interaction`, as `column = "category"`, `"tags"` or `"number"`."""


class TrainedModel(Settings):
    """What a run keeps of a model that was trained before it."""

    model: str
    """Its registry name."""
    sha256: str
    """Of its `model.json`, which in turn names the weights by theirs."""
    log: str
    """Hash of the log that it was trained on."""
    clean: bool
    """Whether that is the training part of the run's split; if not, the model may have seen what is held out."""


class ModelSettings(Settings):
    """A recommender by registry name and its own settings, or one that is trained already by its folder."""

    name: str = "ease"
    """Name in the model registry (`workbench train --help` lists them), or the folder that `workbench train --out` or `save` wrote."""
    config: dict[str, Any] = {}
    """Fields of the model's own configuration; a trained model has its own, and what is given must agree with it."""
    trained: TrainedModel | None = None
    """Of a trained model, filled in when a run is stored; where it is given, the folder must hold this very model."""


class LLMSettings(Settings):
    """The chat model behind LLM agents and the bounds on its use."""

    spec: str = "embedded"
    """`embedded`, `openai:MODEL`, or `openai:MODEL@URL` / `vllm:MODEL@URL` for any OpenAI-compatible endpoint."""
    elicit: Literal["answer", "likelihood"] | None = None
    """How a page is decided (agents.llm); by default `likelihood` where the model can score, else `answer`."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature; draws are seeded per question."""
    concurrency: int = Field(default=32, ge=1)
    """Questions in flight at once."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds before one question is cut off."""
    retries: int = Field(default=3, ge=0)
    """Attempts after the first, for errors that may pass and for unusable answers."""
    max_calls: int | None = Field(default=None, ge=1)
    """Most dispatched questions of a run; the run stops, resumable, before one more."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most prompt and completion tokens of a run, likewise."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most US dollars of a run, likewise."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Most wall-clock seconds of one sitting, from its first question, likewise."""


class SimulationSettings(Settings):
    """Simulated users in front of one recommender."""

    policy: Literal["statistical", "llm"] = "statistical"
    """Who decides: models of the training log, or a language model."""
    agents: int = Field(default=200, ge=1)
    """Simulated users, drawn by seed from those with held-out items."""
    skip: int = Field(default=0, ge=0)
    """Users to pass over in that order, so that two simulations can use different ones."""
    pages: int = Field(default=3, ge=1)
    """Most pages of a session."""
    page_size: int = Field(default=10, ge=1)
    """Items on a page."""
    cohort: int = Field(default=16, ge=1)
    """Agents served together; a cohort's page is one transaction."""
    recommender: ModelSettings = ModelSettings()
    """The recommender they use."""
    take_rate: float = Field(default=0.3, gt=0, lt=1)
    """Average share of a page taken; a log without exposures cannot tell it (see agents.taste)."""
    boredom: float = Field(default=0.2, ge=0, le=1)
    """Probability of leaving after a page on which nothing was taken."""
    session_gap: int = Field(default=3600, ge=1)
    """Seconds of pause that separate two sessions of the log when the exit hazard is fitted."""
    fidelity_users: int | None = Field(default=None, ge=0)
    """Users on whom the policy's fidelity is measured first: by default 20 for `llm` and 200 for `statistical`; 0 leaves it out."""
    llm: LLMSettings = LLMSettings()
    """Used by the `llm` policy."""


class LoopSettings(Settings):
    """What is retrained on the synthesized interactions, and how it is judged."""

    models: tuple[ModelSettings, ...] = (ModelSettings(name="ease"), ModelSettings(name="bpr"))
    """Recommenders to retrain on every arm."""
    seeds: int = Field(default=3, ge=1)
    """Training seeds 0 .. n-1 of models that are random; deterministic ones are trained once."""
    metrics: tuple[str, ...] = ("HR@10", "NDCG@10", "MRR")
    """Metrics on the untouched test split."""


class GridModel(ModelSettings):
    """A row of the grid's table: a recommender, its settings, and what the table calls it."""

    label: str = ""
    """Its name in the table, by default the registry name; labels differ, so give one where a model is there twice."""

    @property
    def title(self) -> str:
        """The label, or the registry name where there is none."""
        return self.label or self.name


class GridSettings(Settings):
    """A grid of recommenders x datasets x seeds, judged on one part of each split."""

    data: tuple[DataSettings, ...] = Field(default=(DataSettings(),), min_length=1)
    """The logs, each with its split."""
    models: tuple[GridModel, ...] = Field(min_length=1)
    """The recommenders."""
    part: Literal["valid", "test"] = "test"
    """`valid` for choosing, `test` for reporting."""
    seeds: int = Field(default=3, ge=1)
    """Training seeds 0 .. n-1 of models that are random and whose configuration fixes none; others are trained once."""
    metrics: tuple[str, ...] = Field(default=("HR@10", "NDCG@10", "MRR"), min_length=1)
    """Metrics of accuracy and of the top-k lists."""
    base: str | None = None
    """Label of the model that every other is compared with, paired by user; without one there are no tests."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto` for a GPU where there is one."""
    early_stopping: bool = True
    """Whether models that can may stop by the validation part; the test part is never shown to them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        titles = [m.title for m in self.models]
        if twice := sorted({t for t in titles if titles.count(t) > 1}):
            raise ValueError(f"models are labelled {twice[0]!r} twice; give each another label")
        if self.base is not None and self.base not in titles:
            raise ValueError(f"base {self.base!r} is not a label of the grid: {', '.join(titles)}")
        if len(set(map(repr, self.data))) < len(self.data):
            raise ValueError("data name the same log and split twice; leave one out")
        return self


class Experiment(Settings):
    """The whole loop: data, baselines, simulations, retraining."""

    name: str = "demo"
    """Shown with every run of the experiment."""
    seed: int = Field(default=0, ge=0)
    """Seed of splits with shuffled ties, agents and controls."""
    data: DataSettings = DataSettings()
    """The log."""
    baselines: tuple[ModelSettings, ...] = tuple(ModelSettings(name=n) for n in ("random", "popularity", "ease", "bpr", "hstu"))
    """Recommenders of the first table."""
    simulations: tuple[SimulationSettings, ...] = (
        SimulationSettings(policy="statistical", agents=200, skip=20),
        SimulationSettings(policy="llm", agents=20, cohort=20, fidelity_users=12),
    )
    """Simulated users whose interactions are pooled for retraining."""
    loop: LoopSettings = LoopSettings()
    """Retraining and its controls."""
    grid: GridSettings | None = None
    """What `workbench evaluate FILE` trains and compares; the loop does not use it."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a TOML file; raises DataError naming the file, the field, the value and what is allowed."""
        try:
            return cls(**tomllib.loads(path.read_text()))
        except FileNotFoundError:
            raise DataError(f"experiment file {path} does not exist") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"experiment file {path} cannot be read: {error}") from None
        except ValidationError as error:
            raise DataError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: field, value, what is expected."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where} = {problem['input']!r}: {problem['msg'].lower()}{more}"
