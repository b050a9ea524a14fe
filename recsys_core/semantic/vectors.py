"""Item vectors that semantic ids are made of: of texts, of a log, or of another trained model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from recsys_core import assets
from recsys_core.data.dataset import Dataset
from recsys_core.errors import DataError
from recsys_core.models.registry import load
from recsys_core.progress import Progress, silent
from recsys_core.serving.text import sentence_encoder
from recsys_core.vectors import VectorRecommender

_ENCODER = "all-minilm-l6-v2"
_RANK = 64


def item_vectors(dataset: Dataset, source: str = "text", progress: Progress | None = None) -> Tensor:
    """Vectors [I, D] float32 of a dataset's items, on the processor.

    source: `text`, what the sentence encoder makes of title and tags, kept in the asset cache; `log`, the leading 64 singular vectors of
    the log, scaled to length 1; or the folder of a saved recommender that has item vectors.
    Raises DataError for a dataset without texts, and for a model that has no item vectors or not of all these items.
    """
    if source == "text":
        return _of_texts(dataset, progress or silent)
    return _of_log(dataset) if source == "log" else _of_model(dataset, Path(source))


def origin(dataset: Dataset, source: str) -> str:
    """What `item_vectors` are of, in a few words; of a model that was trained on another log, which may hold what is kept from this one."""
    if source in ("text", "log"):
        return {"text": "texts", "log": "the log"}[source]
    model = load(source)
    return f"{model.name}'s vectors" + ("" if model.trained_on.get("log") == dataset.content_hash else ", trained on another log")


def _of_texts(dataset: Dataset, progress: Progress) -> Tensor:
    if not dataset.titles and not dataset.tags:
        raise DataError(
            f"dataset {dataset.name!r} has no titles and no tags to make semantic ids of; read it with a file of items, or set vectors = "
            "'log' (vectors of the interactions) or the folder of a saved model such as sasrec"
        )
    texts = [dataset.text(item) for item in range(len(dataset.items))]
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def build(_: Path, out: Path) -> None:
        progress(0.0, f"reading the texts of {len(texts)} items")
        save_file({"vectors": torch.from_numpy(sentence_encoder()(texts))}, out / "vectors.safetensors")

    return load_file(assets.derived(_ENCODER, f"texts-{digest[:32]}", build, progress) / "vectors.safetensors")["vectors"]


def _of_log(dataset: Dataset) -> Tensor:
    """S V of D_u^-1/2 R D_i^-1/2 = U S V', where R says which user took which item, and D are the counts of either."""
    taken = dataset.sequences().distinct()
    user, item = torch.from_numpy(taken.row_ids), torch.from_numpy(taken.values)
    size = (len(dataset.users), len(dataset.items))
    of_user, of_item = torch.bincount(user, minlength=size[0]), torch.bincount(item, minlength=size[1])
    weights = (of_user[user] * of_item[item]).float().rsqrt()
    matrix = torch.sparse_coo_tensor(torch.stack([user, item]), weights, size, check_invariants=False).coalesce()
    _, values, vectors = torch.svd_lowrank(matrix, min(_RANK, *size), niter=4)
    # Of unit length: the lengths say how popular an item is.
    return functional.normalize(vectors * values, dim=1)


def _of_model(dataset: Dataset, folder: Path) -> Tensor:
    model = load(folder)
    if not isinstance(model, VectorRecommender) or model.items is None:
        raise DataError(f"the {model.name} model in {folder} has no item vectors; give one that has, such as sasrec, or 'text' or 'log'")
    rows = model.items.encode(dataset.items.ids)
    return model.item_vectors().float().cpu()[torch.as_tensor(rows)]
