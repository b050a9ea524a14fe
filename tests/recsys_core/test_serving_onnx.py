"""ONNX graphs answer as PyTorch does, for any batch, any length and new items too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_core import Histories, Recommender, create
from recsys_core.data import Dataset
from recsys_core.errors import DataError
from recsys_core.sequence.recommender import SequenceRecommender
from recsys_core.serving import NewItem, Service, export_onnx
from tests.recsys_core.test_serving import described

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
TINY = {"dim": 8, "blocks": 1, "max_length": 6, "epochs": 1}


def ask(folder: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, inputs)[0]
    return answer


def test_sasrec_with_features_and_a_new_item(films: Dataset, tmp_path: Path) -> None:
    log = described(films)
    model = create("sasrec", **TINY, features=True).fit(log)
    service = Service.of(model, log)
    service.add_items([NewItem("new", features={"genre": "Drama", "shape": ["long", "short"], "year": 1999.0})])
    assert isinstance(model, SequenceRecommender)
    export_onnx(model, tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert (facts["inputs"], facts["output"], facts["max_items"], facts["items"][80]) == (["items", "lengths"], "scores", 5, "new")
    items = np.array([[3, 80, 7, 9], [80, 0, 0, 0], [5, 5, 5, 5]])
    found = ask(tmp_path, items=items, lengths=np.array([4, 1, 0]))
    np.testing.assert_allclose(found, model.score(Histories.of([[3, 80, 7, 9], [80], []])), atol=1e-4)
    # What stands behind a history's end is not read.
    items[1, 1:] = 40
    np.testing.assert_array_equal(ask(tmp_path, items=items, lengths=np.array([4, 1, 0])), found)


@pytest.mark.parametrize(
    "config",
    [
        {"time": "target", "heads": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"time": "past", "actions": True}, marks=pytest.mark.slow),
    ],
)
def test_hstu(config: dict[str, Any], films: Dataset, tmp_path: Path) -> None:
    model = create("hstu", **TINY, **config).fit(films)
    assert isinstance(model, SequenceRecommender)
    # At the start of training the time bias is too small to be missed.
    for name, weight in model.network.named_parameters():
        if "time_bias" in name:
            torch.nn.init.normal_(weight)
    export_onnx(model, tmp_path, "query")
    items, times = np.array([[3, 8, 7], [2, 0, 0]]), np.array([[100, 2000, 90000], [50, 0, 0]])
    given: dict[str, np.ndarray] = {"items": items, "lengths": np.array([3, 1])}
    if config:
        given |= {"times": times, "at": np.array([10**6, 60])}
    if "actions" in config:
        given["ratings"] = np.array([[1, 5, np.nan], [4, 0, 0]], np.float32)
    rows = Histories.of([[3, 8, 7], [2]])
    histories = Histories(
        rows.items, rows.users, np.array([100, 2000, 90000, 50]), np.array([1, 5, np.nan, 4], np.float32), np.array([10**6, 60])
    )
    np.testing.assert_allclose(ask(tmp_path, **given), model.query_vectors(histories).numpy(), atol=1e-4)
    if config.get("time") == "target":
        given["at"] = given["at"] + 10**8
        assert np.abs(ask(tmp_path, **given) - model.query_vectors(histories).numpy()).max() > 1e-3


def test_a_graph_that_differs_is_not_handed_over(films: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create("sasrec", **TINY).fit(films)
    assert isinstance(model, SequenceRecommender)
    whole = model._question

    def forgetful(histories: Histories) -> Any:
        return whole(Histories.of([row[-2:] for row in map(histories.items.__getitem__, range(len(histories)))]))

    monkeypatch.setattr(model, "_question", forgetful)
    with pytest.raises(DataError, match="from PyTorch at lengths"):
        export_onnx(model, tmp_path)
    assert not (tmp_path / "model.json").exists()


def test_other_models_are_refused(films: Dataset, tmp_path: Path) -> None:
    model: Recommender = create("popularity").fit(films)
    with pytest.raises(DataError, match="popularity is no sequence model"):
        export_onnx(model, tmp_path)  # type: ignore[arg-type]
    model = create("bert4rec", **TINY).fit(films)
    with pytest.raises(DataError, match="states of bert4rec see what comes after"):
        export_onnx(model, tmp_path)  # type: ignore[arg-type]
