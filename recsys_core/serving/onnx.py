"""Sequence models as ONNX graphs, checked against PyTorch before they are handed over."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recsys_core.data.histories import Histories
from recsys_core.data.jagged import Jagged
from recsys_core.errors import DataError
from recsys_core.extras import optional
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.recommender import SequenceRecommender, similarity_scale

Output = Literal["scores", "query"]
TOLERANCE = 1e-4
"""How far the graph's answers may be from PyTorch's."""


class _Graph(nn.Module):
    """Histories as tables in, scores or query vectors out.

    The sequences of the batch inside are all L + 1 tokens long. That is exact for a causal network: what stands behind a history's end
    cannot reach the state at its end.
    """

    def __init__(self, model: SequenceRecommender, output: Output) -> None:
        super().__init__()
        self.network, self.config, self.output = model.network, model.config, output
        self.start = len(model.id_vectors())
        self.register_buffer("catalogue", model.item_vectors().clone())

    def forward(
        self, items: Tensor, lengths: Tensor, times: Tensor | None = None, at: Tensor | None = None, ratings: Tensor | None = None
    ) -> Tensor:
        rows, width = items.shape[0], items.shape[1] + 1
        place, end = torch.arange(width)[None], lengths[:, None]
        then = asked = None
        if times is not None and at is not None:
            then = torch.cat([torch.where(end > 0, times[:, :1], at[:, None]), times], 1).flatten()
            asked = torch.where(place == end, at[:, None], torch.cat([times, at[:, None]], 1)).flatten()
        batch = SequenceBatch(
            tokens=torch.cat([torch.full((rows, 1), self.start), items], 1).flatten(),
            offsets=torch.arange(rows + 1) * width,
            users=torch.full((rows,), -1),
            longest=width,
            times=then,
            next_times=asked,
            ratings=None if ratings is None else torch.cat([torch.full((rows, 1), torch.nan), ratings], 1).flatten(),
        )
        states = self.network(batch).view(rows, width, -1)
        query = similarity_scale(self.config, (states * (place == end)[..., None]).sum(1))
        return query @ self.get_buffer("catalogue").T if self.output == "scores" else query


def export_onnx(model: SequenceRecommender, folder: str | Path, output: Output = "scores") -> Path:
    """Writes `model.onnx` and `model.json` into a folder and returns the graph's path; needs the extra `onnx`.

    Inputs, B and L free, L at most `max_items`: items [B, L] int64 dense ids, oldest first, anything from 0 behind a history's end; lengths
    [B] int64; for a model that reads time also times [B, L] int64 seconds and at [B] int64, the moment of asking (the last item's time
    where there is none); for one that reads ratings also ratings [B, L] float32, NaN for unknown. Users are unknown ones, and
    interaction features missing. Output: `scores` [B, I] or `query` [B, D], float32. model.json has the items' ids, the input names
    and `max_items`.

    The graph is run on random histories of several lengths, none among them, and compared with PyTorch. Raises DataError where they are
    over 1e-4 apart, and for a model whose states see what comes after them.
    """
    onnxscript, runtime = optional("onnxscript", "onnx", "ONNX export"), optional("onnxruntime", "onnx", "ONNX export")
    if not isinstance(model, SequenceRecommender):
        raise DataError(f"{model.name} is no sequence model; ONNX export takes models such as sasrec and hstu")
    if not model.network.causal:
        raise DataError(f"states of {model.name} see what comes after them; ONNX export takes causal models such as sasrec and hstu")
    longest = model.config.max_length - 1
    graph = _Graph(model, output).eval()
    example = _tensors(model, _random(model, [0, 1, longest]))
    free = {0: torch.export.Dim("B"), 1: torch.export.Dim("L", max=longest)}
    shapes = {name: {d: free[d] for d in range(tensor.dim())} for name, tensor in example.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph, kwargs=example, dynamic_shapes=shapes, dynamo=True, output_names=[output], verbose=False,
            custom_translation_table={torch.ops.aten.searchsorted.Tensor: _searchsorted(onnxscript)},
        )  # fmt: skip
        assert program is not None
        program.save(path)
    _check(model, runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), output)
    facts = {"model": model.name, "inputs": list(example), "output": output, "max_items": longest, "items": list(model.items.ids)}  # type: ignore[union-attr]
    (folder / "model.json").write_text(json.dumps(facts))
    return path


def _check(model: SequenceRecommender, session: Any, output: Output) -> None:
    """Raises DataError where the graph and PyTorch differ."""
    longest = model.config.max_length - 1
    for lengths in ([0], [1], [longest], [0, 2, longest // 2, longest], list(range(longest))):
        histories = _random(model, lengths)
        given = {name: tensor.numpy() for name, tensor in _tensors(model, histories).items()}
        found = session.run([output], given)[0]
        expected = (model.scores(histories) if output == "scores" else model.query_vectors(histories)).cpu().numpy()
        error = float(np.abs(found - expected).max())
        if not error <= TOLERANCE:
            raise DataError(
                f"the graph of {model.name} is {error:.2g} from PyTorch at lengths {lengths[:5]}, more than {TOLERANCE}; do not use it"
            )


def _random(model: SequenceRecommender, lengths: list[int]) -> Histories:
    """Histories of random items with times some hours apart and some ratings unknown; the same every time."""
    rng, size = np.random.default_rng(sum(lengths)), sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ratings = np.where(rng.random(size) < 0.2, np.nan, rng.integers(1, 6, size)).astype(np.float32)
    times = 1_000_000_000 + rng.integers(0, 30_000, size).cumsum()
    items = Jagged(rng.integers(0, len(model.id_vectors()), size), offsets)
    at = np.full(len(lengths), 2_000_000_000, np.int64)
    return Histories(items, np.full(len(lengths), -1, np.int64), times, ratings, at)


def _tensors(model: SequenceRecommender, histories: Histories) -> dict[str, Tensor]:
    """The inputs of a model's graph for histories that have times, ratings and a moment of asking."""
    rows, lengths = histories.items.row_ids, histories.items.lengths
    place = np.arange(len(rows)) - np.repeat(histories.items.offsets[:-1], lengths)

    def table(column: NDArray | None, fill: float) -> Tensor:
        assert column is not None
        filled = np.full((len(lengths), max(int(lengths.max()), 1)), fill, column.dtype)
        filled[rows, place] = column
        return torch.from_numpy(filled)

    inputs = {"items": table(histories.items.values, 0), "lengths": torch.from_numpy(lengths)}
    if model.uses_time != "no":
        assert histories.at is not None
        inputs |= {"times": table(histories.timestamps, 0), "at": torch.from_numpy(histories.at)}
    if model.uses_ratings:
        inputs["ratings"] = table(histories.ratings, np.nan)
    return inputs


def _searchsorted(onnxscript: Any) -> Any:
    """The operator that finds each token's sequence, which ONNX lacks: how many of the bounds are not above a value."""
    op = onnxscript.opset18

    def searchsorted(bounds: Any, values: Any, right: bool = False, **_: Any) -> Any:
        below = op.LessOrEqual if right else op.Less
        return op.ReduceSum(op.Cast(below(op.Unsqueeze(bounds, [0]), op.Unsqueeze(values, [1])), to=7), [1], keepdims=0)

    return searchsorted


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of what it skips and renames, none of which is for the caller to mend."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
