"""Recommenders by name: the built-in ones, those registered in this process, and those of installed packages."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from recsys_core.errors import DataError, unknown_name
from recsys_core.recommender import Recommender

ENTRY_POINTS = "recsys_workbench.models"
"""A package adds a recommender with an entry point of this group: its name, and `module:Class`."""

# Addresses, not classes: listing the names or running Popularity should not wait for torch.
_BUILT_IN = {
    "random": "recsys_core.models.random:Random",
    "popularity": "recsys_core.models.popularity:Popularity",
    "itemknn": "recsys_core.models.itemknn:ItemKNN",
    "ease": "recsys_core.models.ease:EASE",
    "bpr": "recsys_core.models.bpr:BPR",
    "multvae": "recsys_core.models.multvae:MultVAE",
    "lightgcn": "recsys_core.models.lightgcn:LightGCN",
    "gru4rec": "recsys_core.models.gru4rec:GRU4Rec",
    "sasrec": "recsys_core.models.sasrec:SASRec",
    "bert4rec": "recsys_core.models.bert4rec:BERT4Rec",
    "hstu": "recsys_core.models.hstu.model:HSTU",
    "tiger": "recsys_core.models.tiger.model:TIGER",
    "hllm": "recsys_core.models.hllm.model:HLLM",
}
_registered: dict[str, type[Recommender]] = {}

R = TypeVar("R", bound=type[Recommender])


def register(model: R) -> R:
    """Class decorator: makes a recommender known under its `name` in this process. Raises DataError for a name another class has."""
    if model.name in known_models() and _registered.get(model.name) is not model:
        raise DataError(f"recommender name {model.name!r} is taken; give {model.__qualname__} another `name`")
    _registered[model.name] = model
    return model


def known_models() -> list[str]:
    """All names that `create` takes, sorted."""
    return sorted({*_BUILT_IN, *_registered, *_plugins()})


def model_class(name: str) -> type[Recommender]:
    """The recommender class of a name; raises UnknownNameError with the nearest and all names.

    Built-in names cannot be replaced by an installed package.
    """
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: type[Recommender] = getattr(import_module(module), attribute)
        return found
    plugins = _plugins()
    if name not in plugins:
        raise unknown_name("recommender", name, known_models())
    loaded = plugins[name].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Recommender)):
        raise DataError(f"entry point {plugins[name].value!r} for recommender {name!r} is not a subclass of recsys_core.Recommender")
    return loaded


def create(name: str, **config: Any) -> Recommender:
    """A new, untrained recommender; `config` are fields of its `Config`.

    Raises UnknownNameError for the name, and DataError naming the field, what is wrong with it and the known fields for the config.
    """
    model = model_class(name)
    try:
        return model(model.Config(**config))
    except ValidationError as error:
        problem = error.errors()[0]
        if not problem["loc"]:
            # Of fields that do not go together.
            raise DataError(f"config of recommender {name!r}: {problem['msg'].removeprefix('Value error, ')}") from None
        field = ".".join(map(str, problem["loc"]))
        what = "is unknown" if problem["type"] == "extra_forbidden" else f"is {problem['input']!r}: {problem['msg']}"
        fields = ", ".join(model.Config.model_fields) or "none"
        raise DataError(f"config field {field!r} of recommender {name!r} {what}; known fields: {fields}") from None


def load(folder: str | Path) -> Recommender:
    """The trained recommender that `save` wrote into a folder; raises DataError when there is none."""
    meta = Path(folder) / "model.json"
    if not meta.is_file():
        raise DataError(f"{folder} holds no recommender (model.json is missing); save one there with model.save(folder)")
    try:
        name = str(json.loads(meta.read_text())["name"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{meta} is not a recommender's description ({type(error).__name__}: {error}); save the model again") from error
    return model_class(name).load(Path(folder))


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
