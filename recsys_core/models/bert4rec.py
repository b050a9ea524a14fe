"""BERT4Rec: a transformer that fills in masked items, from both sides (Sun et al. 2019, arXiv 1904.06690)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.data.dataset import Dataset
from recsys_core.data.features import missing
from recsys_core.data.jagged import Jagged
from recsys_core.models.sasrec import SASRecBlock, SASRecConfig
from recsys_core.recommender import Histories
from recsys_core.sequence.batch import SequenceBatch, SequenceLog
from recsys_core.sequence.dropout import Dropout
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.padding import Padding
from recsys_core.sequence.recommender import SequenceLearner, SequenceNetwork, SequenceRecommender
from recsys_core.sequence.windows import cut


class BERT4RecConfig(SASRecConfig):
    """Settings of BERT4Rec. It learns from a share of the positions a window, so it takes more epochs than models that learn from all."""

    epochs: int = Field(60, ge=1)
    """Passes over the log, at most."""
    max_length: int = Field(50, ge=2)
    """Tokens of context: the latest max_length - 1 items and the mask behind them. Longer training sequences are cut into windows."""
    mask_share: float = Field(0.3, gt=0, lt=1)
    """Share of a window's items that are masked and to be found; at least one."""
    last_share: float = Field(0.2, ge=0, le=1)
    """Share of windows in which the last item is masked and no other, as when ranking."""


class BERT4RecNetwork(SequenceNetwork):
    """Item vectors plus learned positions, counted from the end; blocks without a causal mask; a last layer norm.

    The embedding's one extra token, which other models start from, is the mask. Layer norms come first in a block, which trains more
    stably than the paper's order.
    """

    causal = False

    def __init__(self, config: BERT4RecConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = nn.Parameter(0.02 * torch.randn(config.max_length, config.dim))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """States [T, dim]; the state of a token may depend on all tokens of its sequence."""
        padding = Padding(batch)
        from_end = (padding.lengths[batch.rows.clamp(max=len(batch) - 1)] - 1 - padding.positions).clamp(min=0)
        x = self.dropout(self.embedding(batch) + functional.embedding(from_end, self.positions))
        for block in self.blocks:
            x = block(x, padding, padding.filled[:, None, None])
        states: Tensor = self.norm(x)
        return states


class BERT4Rec(SequenceRecommender):
    """Masked-item prediction by attention to both sides; ranks by a mask behind the history. Order is used, timestamps are not."""

    name = "bert4rec"
    Config = BERT4RecConfig
    config: BERT4RecConfig

    @property
    def training(self) -> str:
        return f"masked items, {super().training}"

    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork:
        return BERT4RecNetwork(self.config, embedding)

    def _learner(self, dataset: Dataset) -> BERT4RecLearner:
        return BERT4RecLearner(self.network, self.config, SequenceLog.of(dataset), dataset.item_counts)

    def _question(self, histories: Histories) -> SequenceBatch:
        batch = super()._question(histories)
        # Each sequence begins with the extra token; moved on by one it stands behind the sequence before, and the first behind the last.
        return replace(
            batch, tokens=batch.tokens.roll(-1), features={name: column.roll(-1) for name, column in batch.features.items()},
            times=None, next_times=None, ratings=None,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class MaskedBatch(SequenceBatch):
    """Windows of items without a start token. targets: [T] int64, all their items; masked: [M] int64, the tokens that are masked."""

    masked: Tensor = field(kw_only=True)

    def part(self, offsets: NDArray, masked: NDArray, start: int, stop: int) -> MaskedBatch:
        """Sequences `start` to `stop` (excluded), by offsets and masked places that the processor knows."""
        first, last = np.searchsorted(masked, offsets[[start, stop]])
        return cut(replace(self, masked=self.masked[first:last] - int(offsets[start])), offsets, start, stop)


class BERT4RecLearner(SequenceLearner):
    """A network with a training log: windows in random order, each with some items masked."""

    config: BERT4RecConfig

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[MaskedBatch]:
        windows = self.windows(rng)
        masked = np.flatnonzero(draw_masks(windows, self.config.mask_share, self.config.last_share, rng))
        whole = self.masked_batch(windows, masked).to(device)
        size = self.config.batch_size
        return [whole.part(windows.offsets, masked, start, min(start + size, len(windows))) for start in range(0, len(windows), size)]

    def masked_batch(self, windows: Jagged, masked: NDArray) -> MaskedBatch:
        """All windows of an epoch, with neither items nor features at the masked places."""
        places, log = windows.values, self.log
        items = log.items.values[places]
        tokens, features = items.copy(), {name: column[places] for name, column in log.features.items()}
        tokens[masked] = self.n_items
        for column in features.values():
            column[masked] = missing(column)
        return MaskedBatch(
            tokens=torch.from_numpy(tokens),
            offsets=torch.from_numpy(windows.offsets),
            users=torch.from_numpy(log.items.row_ids[places[windows.offsets[:-1]]]),
            longest=self.config.max_length,
            targets=torch.from_numpy(items),
            features={name: torch.from_numpy(column) for name, column in features.items()},
            masked=torch.from_numpy(masked),
        )

    def weight(self, batch: SequenceBatch) -> float:
        assert isinstance(batch, MaskedBatch)
        return float(len(batch.masked))

    def shard(self, batch: SequenceBatch, rank: int, world: int) -> MaskedBatch:
        assert isinstance(batch, MaskedBatch)
        start, stop = len(batch) * rank // world, len(batch) * (rank + 1) // world
        return batch.part(batch.offsets.cpu().numpy(), batch.masked.cpu().numpy(), start, stop)

    def forward(self, batch: SequenceBatch) -> Tensor:
        assert isinstance(batch, MaskedBatch)
        assert batch.targets is not None
        return self.loss(self.network(batch)[batch.masked], batch.targets[batch.masked], batch.real[batch.masked])


def draw_masks(windows: Jagged, mask_share: float, last_share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which values of the windows [T] are masked: each with probability mask_share and at least one a window, or the last alone."""
    rows, lengths = windows.row_ids, windows.lengths
    chosen = rng.random(len(rows)) < mask_share
    one = windows.offsets[:-1] + (rng.random(len(windows)) * lengths).astype(np.int64)
    chosen[one[np.bincount(rows[chosen], minlength=len(windows)) == 0]] = True
    last = rng.random(len(windows)) < last_share
    chosen &= ~last[rows]
    chosen[windows.offsets[1:][last] - 1] = True
    return chosen
