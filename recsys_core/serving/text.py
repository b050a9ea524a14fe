"""From an item's text to an item's vector, with figures that say how much of one is in the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_core import assets
from recsys_core.data.jagged import Floats
from recsys_core.errors import DataError
from recsys_core.extras import optional

_BATCH = 64
_FEWEST = 50
_PENALTIES = np.logspace(-3, 4, 22)
_NEAREST = 10


def sentence_encoder() -> Callable[[Sequence[str]], Floats]:
    """all-MiniLM-L6-v2 as a function from N texts to unit vectors [N, 384] float32: token states averaged, at most 256 tokens.

    Needs the extra `llm` and the asset `all-minilm-l6-v2`, which is fetched on first use.
    """
    transformers = optional("transformers", "llm", "the text encoder")
    folder = assets.fetch("all-minilm-l6-v2")
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Floats:
        vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
        # Texts of like length share a batch, so little of it is padding.
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for start in range(0, len(texts), _BATCH):
            rows = order[start : start + _BATCH]
            tokens = tokenizer([texts[r] for r in rows], padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = tokens["attention_mask"][..., None]
            mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return encode


@dataclass(frozen=True, eq=False)
class TextMap:
    """A ridge regression from text vectors [E] to item vectors [D]: vector = mean + (text - text mean) @ weights.

    The rest are figures on the items held out (a tenth of those it was fitted on), predicted by a map that did not see them.
    r2: share of the variance of their vectors that is explained; 0 is the mean's. recall: how often an item is among the 10 that are
    nearest its predicted vector by cosine; chance: what that would be if text said nothing. items: how many it was fitted on.
    """

    Encoder: ClassVar[TypeAlias] = Callable[[Sequence[str]], Floats]

    encode: Callable[[Sequence[str]], Floats]
    text_mean: NDArray[np.float64]
    mean: NDArray[np.float64]
    weights: NDArray[np.float64]
    penalty: float
    r2: float
    recall: float
    chance: float
    items: int

    @classmethod
    def fit(cls, encode: Callable[[Sequence[str]], Floats], texts: Sequence[str], vectors: Floats, seed: int = 0) -> TextMap:
        """Fits to N texts and vectors [N, D]; raises DataError for fewer than 50.

        The penalty is the one with the least generalized cross-validation error (Golub, Heath & Wahba 1979) on the part not held out.
        """
        if len(texts) < _FEWEST:
            raise DataError(f"{len(texts)} items with interactions are too few to learn vectors from text; at least {_FEWEST} are needed")
        x, y = encode(texts).astype(np.float64), vectors.astype(np.float64)
        order = np.random.default_rng(seed).permutation(len(texts))
        held, kept = np.split(order, [len(texts) // 10])
        penalty = _best_penalty(x[kept], y[kept])
        predicted = _predict(x[held], *_ridge(x[kept], y[kept], penalty))
        error, spread = np.square(y[held] - predicted).sum(), np.square(y[held] - y[kept].mean(0)).sum()
        cosine = (predicted @ y.T) / np.linalg.norm(y, axis=1)
        rank = (cosine > cosine[np.arange(len(held)), held][:, None]).sum(1)
        return cls(
            encode, *_ridge(x, y, penalty), penalty, float(1 - error / spread), float((rank < _NEAREST).mean()), _NEAREST / len(texts),
            len(texts),
        )  # fmt: skip

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Item vectors [N, D] float32 of texts."""
        return _predict(self.encode(texts), self.text_mean, self.mean, self.weights).astype(np.float32)


Ridge = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _ridge(x: NDArray, y: NDArray, penalty: float) -> Ridge:
    """Mean of x, mean of y and the weights between the centered ones."""
    text_mean, mean = x.mean(0), y.mean(0)
    centered = x - text_mean
    weights = np.linalg.solve(centered.T @ centered + penalty * np.eye(x.shape[1]), centered.T @ (y - mean))
    return text_mean, mean, weights


def _predict(x: NDArray, text_mean: NDArray, mean: NDArray, weights: NDArray) -> NDArray[np.float64]:
    predicted: NDArray[np.float64] = mean + (x - text_mean) @ weights
    return predicted


def _best_penalty(x: NDArray, y: NDArray) -> float:
    """The penalty with the least N |residual|^2 / (N - degrees of freedom)^2."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    centered = y - y.mean(0)
    along = u.T @ centered
    outside = np.square(centered).sum() - np.square(along).sum()

    def error(penalty: float) -> float:
        shrink = s**2 / (s**2 + penalty)
        residual = outside + (np.square(1 - shrink)[:, None] * np.square(along)).sum()
        return float(residual / (len(x) - 1 - shrink.sum()) ** 2)

    return float(min(_PENALTIES, key=error))
