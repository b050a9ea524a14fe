"""Recommenders as settings name them: by registry name, trained where they are used, or by the folder of one that is trained already.

A registered name is always the registry's, so that a stored run means the same wherever it goes on; a folder of that name is `./NAME`.
A trained model is used as it is. It must know the dataset's items and users, in their order, and a run keeps a hash of its files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from recsys_core.data import Dataset
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, UnknownNameError, damaged
from recsys_core.files import sha256
from recsys_core.models import create, known_models, load, model_class
from recsys_core.progress import Progress, silent
from recsys_core.recommender import MODEL_FILE, FitOptions, Recommender, whole_weights
from workbench.config import ModelSettings, TrainedModel
from workbench.prompts.channel import ranking_through
from workbench.store import Store

M = TypeVar("M", bound=ModelSettings)


def folder_of(model: ModelSettings) -> Path | None:
    """Where a trained model lies; None for a registry name. Raises UnknownNameError for what is neither."""
    if model.name in known_models():
        return None
    folder = Path(model.name)
    if (folder / MODEL_FILE).is_file():
        return folder
    if model.trained is not None:
        raise DataError(
            f"the trained model in {model.name} is gone (no {MODEL_FILE}); bring it back, or start in the folder it was named in"
        )
    try:
        model_class(model.name)
    except UnknownNameError as error:
        raise UnknownNameError(f"no trained model in a folder {model.name!r}, and {error}") from None
    return None


def hash_of(folder: Path, expected: str = "") -> str:
    """SHA-256 of a trained model's files; raises DataError where another is expected."""
    found = sha256(folder / MODEL_FILE)
    if expected and expected != found:
        was, now = expected[:12], found[:12]
        raise DataError(f"the trained model in {folder} was {was} and is now {now}; bring the old one back, or start a new run")
    return found


def class_of(model: ModelSettings) -> type[Recommender]:
    """The class of a recommender, trained or not."""
    folder = folder_of(model)
    return model_class(model.name if folder is None else str(_facts(folder)["name"]))


def resolved_model(store: Store, model: M, train: Dataset) -> M:
    """The model with its full configuration, templates of the store among it, and with what a trained one is.

    train: the training part of the split. Raises what `create` raises, and DataError for a trained model that is not of this dataset, has
    another configuration than is asked, or is not the one that `model.trained` names.
    """
    if (folder := folder_of(model)) is not None:
        return _resolved_trained(model, folder, train)
    with ranking_through(store):
        return model.model_copy(update={"config": create(model.name, **model.config).config.model_dump(mode="json")})


def ready(model: ModelSettings, train: Dataset, progress: Progress = silent, options: FitOptions | None = None) -> Recommender:
    """The recommender, trained on a log now, or loaded, if it was trained before, and checked as by `resolved_model`."""
    if (folder := folder_of(model)) is None:
        return create(model.name, **model.config).fit(train, progress, options)
    _resolved_trained(model, folder, train)
    return load(folder).to(options.device if options else "auto")


def _resolved_trained(model: M, folder: Path, train: Dataset) -> M:
    facts, digest = _facts(folder), hash_of(folder, model.trained.sha256 if model.trained else "")
    for field, value in model.config.items():
        if field not in facts["config"]:
            raise DataError(f"{facts['name']} in {folder} has no setting {field!r}; it has {', '.join(facts['config']) or 'none'}")
        if json.loads(json.dumps(value)) != facts["config"][field]:
            raise DataError(f"{folder} was trained with {field} = {facts['config'][field]!r}, not {value!r}; leave it out, or train anew")
    try:
        whole_weights(folder, facts["weights"])  # before a run begins, or others are trained for its table
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{facts['name']} model", error) from error
    _check_vocabulary(folder, "item", facts["items"], train.items)
    if facts["trained_on"]["users"] != train.users.content_hash:
        raise DataError(f"{folder} was trained on other users than those of {train.name!r}; use the dataset that it was trained on")
    log = str(facts["trained_on"]["log"])
    trained = TrainedModel(model=facts["name"], sha256=digest, log=log, clean=log == train.content_hash)
    return model.model_copy(update={"config": facts["config"], "trained": trained})


def refuse_leaks(models: Sequence[ModelSettings], purpose: str) -> None:
    """Raises DataError for a trained model that may have seen what the split holds back; models: resolved."""
    for model in models:
        if model.trained is not None and not model.trained.clean:
            raise DataError(
                f"{model.name} was not trained on the training part of this split and may have seen what is held out; {purpose} needs one "
                f"from: workbench train {model.trained.model} --out FOLDER, with the same --data"
            )


def refuse_twins(models: Sequence[ModelSettings], of: str) -> None:
    """Raises DataError for a name that stands twice where results go by name: two settings of one model would be averaged as its seeds."""
    names = [model.name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{twice!r} is named twice among the {of}; leave one out, or compare its settings in a [grid], each with a label")


def _facts(folder: Path) -> dict[str, Any]:
    """What `model.json` says."""
    try:
        facts: dict[str, Any] = json.loads((folder / MODEL_FILE).read_text())
        _ = facts["name"], facts["config"], facts["items"], facts["trained_on"]["users"], facts["trained_on"]["log"], facts["weights"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MODEL_FILE} cannot be read ({type(error).__name__}: {error}); train the model again") from error
    return facts


def _check_vocabulary(folder: Path, what: str, known: Sequence[str], dataset: Vocabulary) -> None:
    """Raises DataError that says how a model's ids differ from a dataset's."""
    if tuple(known) == dataset.ids:
        return
    there = set(known)
    missing, extra = [i for i in dataset.ids if i not in there], [i for i in known if i not in dataset]
    lacks = f"does not know {len(missing)} {what}s of the dataset, such as {missing[0]!r}" if missing else ""
    more = f"knows {len(extra)} that the dataset lacks, such as {extra[0]!r}" if extra else ""
    differs = ", and ".join(filter(None, (lacks, more))) or f"knows the same {what}s in another order"
    raise DataError(f"{folder} {differs}; use the dataset that it was trained on, or train on this one")
