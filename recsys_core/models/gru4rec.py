"""GRU4Rec: a recurrent network over the items of a sequence (Hidasi et al. 2016, arXiv 1511.06939)."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.dropout import Dropout
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.padding import Padding
from recsys_core.sequence.recommender import SequenceConfig, SequenceNetwork, SequenceRecommender


class GRU4RecConfig(SequenceConfig):
    """Settings of GRU4Rec."""

    learning_rate: float = Field(3e-3, gt=0)
    """Peak of AdamW's learning rate."""
    blocks: int = Field(1, ge=1)
    """Layers of GRU cells, each `dim` wide."""


class GRU4RecNetwork(SequenceNetwork):
    """Item vectors, GRU layers, and a linear map to the space of the item vectors."""

    def __init__(self, config: GRU4RecConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = Dropout(config.dropout)
        between = config.dropout if config.blocks > 1 else 0.0
        self.gru = nn.GRU(config.dim, config.dim, config.blocks, batch_first=True, dropout=between)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, batch: SequenceBatch) -> Tensor:
        padding = Padding(batch)
        # Padding stands behind each sequence, where it changes no state that is read, and costs less than torch's packed sequences.
        states, _ = self.gru(padding.add(self.dropout(self.embedding(batch))))
        out: Tensor = self.out(self.dropout(padding.remove(states)))
        return out


class GRU4Rec(SequenceRecommender):
    """Next-item prediction by a recurrent state; item order is used, timestamps are not. Windows take the place of parallel sessions."""

    name = "gru4rec"
    Config = GRU4RecConfig
    config: GRU4RecConfig

    def _build(self, embedding: TokenEmbedding) -> SequenceNetwork:
        return GRU4RecNetwork(self.config, embedding)
