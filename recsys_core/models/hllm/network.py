"""The two halves of HLLM: vectors of items from their texts, and a decoder over sequences of those vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from recsys_core.data.jagged import Jagged
from recsys_core.language.reader import TextReader
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.dropout import Dropout
from recsys_core.sequence.embedding import ItemEmbedding
from recsys_core.sequence.padding import Padding
from recsys_core.sequence.recommender import SequenceNetwork


class TextEmbedding(ItemEmbedding):
    """Vectors of items from their texts, and a learned start token.

    In training vectors are made for the items that are asked for, with gradients; otherwise those of the catalogue are made once and kept
    in `table` [I, dim] until weights change. A loaded model has its table, and no texts.
    """

    table: Tensor | None

    def __init__(self, n_items: int, size: int, dim: int, scale: float) -> None:
        super().__init__()
        self.n_items, self.size, self.dim = n_items, size, dim
        self.start = nn.Parameter(torch.randn(dim) * scale)
        self.register_buffer("table", None, persistent=False)
        self.register_buffer("tokens", None, persistent=False)
        self.register_buffer("offsets", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda *_: self._forget())  # type: ignore[no-untyped-call]

    def fill(self, texts: Jagged) -> None:
        """Takes over the tokens of the catalogue's texts."""
        self.tokens, self.offsets = torch.from_numpy(texts.values), torch.from_numpy(texts.offsets)

    @abstractmethod
    def read(self, rows: Tensor) -> Tensor:
        """Vectors [N, dim] float32 of items [N] int64 of the filled-in texts."""

    @abstractmethod
    def of_texts(self, reader: TextReader | None, tokens: Tensor, offsets: Tensor) -> Tensor:
        """Vectors [N, dim] of texts that are in no catalogue; reader: the item model, where this module does not hold it."""

    def items(self, rows: Tensor | None = None) -> Tensor:
        if self.training:
            return self.read(torch.arange(self.n_items, device=self.start.device) if rows is None else rows)
        table = self.table
        if table is None:
            # Kept beyond this call, so it must be a plain tensor in whatever mode the call is.
            with torch.inference_mode(False), torch.no_grad():
                table = self.table = self.read(torch.arange(self.n_items, device=self.start.device))
        return table if rows is None else table[rows]

    def forward(self, batch: SequenceBatch) -> Tensor:
        return self.among(self.items(), batch.tokens)

    def among(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Vectors [T, dim] of tokens [T] int64 that are rows of `vectors` [N, dim], or N for the start."""
        found = vectors[tokens.clamp(max=len(vectors) - 1)]
        return torch.where((tokens == len(vectors))[:, None], self.start, found)

    def append(self, vectors: Tensor) -> None:
        """Adds items behind the others; not for further training, which reads texts."""
        self.table = torch.cat([self.items(), vectors])
        self.n_items += len(vectors)

    def train(self, mode: bool = True) -> TextEmbedding:
        if mode:
            self._forget()
        super().train(mode)
        return self

    def _forget(self) -> None:
        self.table = None


class TrainedTexts(TextEmbedding):
    """Vectors by an item model that learns; through a linear map where the user model is of another width."""

    def __init__(self, n_items: int, reader: TextReader, dim: int, scale: float) -> None:
        super().__init__(n_items, reader.size, dim, scale)
        self.reader = reader
        self.map = nn.Identity() if reader.size == dim else nn.Linear(reader.size, dim, bias=False)

    def read(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.map(self.reader.rows(self.get_buffer("tokens"), self.get_buffer("offsets"), rows))
        return vectors.float()

    def of_texts(self, reader: TextReader | None, tokens: Tensor, offsets: Tensor) -> Tensor:
        vectors: Tensor = self.map(self.reader(tokens, offsets))
        return vectors.float()


class FrozenTexts(TextEmbedding):
    """Vectors by a learned linear map of what an item model, which `source` makes, said of each text before training.

    Its states are standardized over the catalogue: a decoder has a few directions, far longer than the rest, in which all texts agree.
    """

    states: Tensor | None

    def __init__(self, n_items: int, size: int, dim: int, scale: float, source: Callable[[], TextReader]) -> None:
        super().__init__(n_items, size, dim, scale)
        self.source = source
        self.map = nn.Linear(size, dim, bias=False)
        self.register_buffer("states", None, persistent=False)
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def read(self, rows: Tensor) -> Tensor:
        states = self.states
        if states is None:
            # Here and not before, so that it happens on the device of training; in float32, as texts that come later are read.
            with torch.no_grad(), torch.autocast(self.start.device.type, enabled=False):
                found = self.source().to(self.start.device)(self.get_buffer("tokens"), self.get_buffer("offsets"))
                self.get_buffer("center").copy_(found.mean(0))
                self.get_buffer("spread").copy_(found.std(0, unbiased=False).clamp(min=1e-6))
                states = self.states = self._standard(found)
        vectors: Tensor = self.map(states[rows])
        return vectors.float()

    def of_texts(self, reader: TextReader | None, tokens: Tensor, offsets: Tensor) -> Tensor:
        assert reader is not None
        vectors: Tensor = self.map(self._standard(reader(tokens, offsets)))
        return vectors.float()

    def _standard(self, states: Tensor) -> Tensor:
        return (states - self.get_buffer("center")) / self.get_buffer("spread")


class HLLMNetwork(SequenceNetwork):
    """Item vectors and a decoder that reads them in place of words."""

    embedding: TextEmbedding

    def __init__(self, embedding: TextEmbedding, user: nn.Module, dropout: float) -> None:
        super().__init__()
        self.embedding, self.user, self.dropout = embedding, user, Dropout(dropout)
        # Words are never read.
        user.set_input_embeddings(nn.Identity())  # type: ignore[operator]

    def forward(self, batch: SequenceBatch) -> Tensor:
        return self.states(self.embedding(batch), batch)

    def states(self, x: Tensor, batch: SequenceBatch) -> Tensor:
        """States [T, dim] of tokens with the vectors [T, dim]. Padding stands behind each sequence, where a causal model does not look."""
        padding = Padding(batch)
        states: Tensor = padding.remove(self.user(inputs_embeds=padding.add(self.dropout(x)), use_cache=False).last_hidden_state)
        return states.float()
