"""TIGER's encoder over the codes of a history, and its decoder of the next item's codes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_core.models.tiger.config import TIGERConfig
from recsys_core.semantic import SemanticIds, Trie
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.dropout import Dropout, attend
from recsys_core.sequence.padding import Padding

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the codes before a node, by layer: each [B, N, H, d, D] for N nodes of depth d."""


@dataclass(frozen=True, eq=False)
class Memory:
    """A history as the decoder reads it: keys and values [B, H, S, D] by layer, and which of the S places hold a code [B, 1, 1, S] bool."""

    layers: Cache
    readable: Tensor

    def rows(self, start: int, stop: int) -> Memory:
        """Some of the histories."""
        return Memory([(k[start:stop], v[start:stop]) for k, v in self.layers], self.readable[start:stop])


class FeedForward(nn.Module):
    """Norm, a wide ReLU layer, and back."""

    def __init__(self, config: TIGERConfig) -> None:
        super().__init__()
        self.norm, self.dropout = nn.RMSNorm(config.dim, eps=1e-6), Dropout(config.dropout)
        self.wide, self.narrow = nn.Linear(config.dim, config.inner, bias=False), nn.Linear(config.inner, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [.., dim] with the layer's output added."""
        update: Tensor = self.dropout(self.narrow(self.dropout(functional.relu(self.wide(self.norm(x))))))
        return x + update


class EncoderBlock(nn.Module):
    """Attention to all codes of the history and a feed-forward layer, each behind a norm and added to its input."""

    def __init__(self, config: TIGERConfig) -> None:
        super().__init__()
        self.heads, self.dropout, width = config.heads, Dropout(config.dropout), config.heads * config.head_dim
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(config.dim, 3 * width, bias=False), nn.Linear(width, config.dim, bias=False)
        self.feed = FeedForward(config)

    def forward(self, x: Tensor, padding: Padding, readable: Tensor) -> Tensor:
        """Tokens [T, dim] to tokens."""
        q, k, v = padding.heads(self.qkv(self.norm(x)), 3, self.heads)
        attended = attend(q, k, v, readable, self.dropout.share if self.training else 0.0)
        fed: Tensor = self.feed(x + self.dropout(self.out(padding.remove(attended.transpose(1, 2).flatten(2)))))
        return fed


class DecoderBlock(nn.Module):
    """Attention to the codes before, attention to the history, and a feed-forward layer."""

    def __init__(self, config: TIGERConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dropout = config.heads, config.head_dim, Dropout(config.dropout)
        dim, width = config.dim, config.heads * config.head_dim
        self.norm, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.qkv, self.out = nn.Linear(dim, 3 * width, bias=False), nn.Linear(width, dim, bias=False)
        self.ask, self.offer = nn.Linear(dim, width, bias=False), nn.Linear(dim, 2 * width, bias=False)
        self.out2, self.feed = nn.Linear(width, dim, bias=False), FeedForward(config)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, readable: Tensor) -> Tensor:
        """All codes of an id at once: [B, C, dim] to states, each reading those before it."""
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        own = attend(q, k, v, None, self._share).transpose(1, 2).flatten(2)
        return self._close(x, own, keys, values, readable)

    def step(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, readable: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One code of each of N prefixes: [B, N, dim] to states, and keys and values with this code's behind those of `past`."""
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, 1, self.head_dim)).unbind(2)
        if past is not None:
            k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
        # Written out: there are far more prefixes than a fused kernel has places for in a batch, and each reads but a few codes.
        weights = ((q * k).sum(4) / self.head_dim**0.5).softmax(3)
        own = (weights[..., None] * v).sum(3).flatten(2)
        return self._close(x, own, keys, values, readable), (k, v)

    @property
    def _share(self) -> float:
        return self.dropout.share if self.training else 0.0

    def _close(self, x: Tensor, own: Tensor, keys: Tensor, values: Tensor, readable: Tensor) -> Tensor:
        """The block's output [B, N, dim] of its input and what was attended to among its own codes."""
        x = x + self.dropout(self.out(own))
        q = self.ask(self.norm2(x)).unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)
        read = attend(q, keys, values, readable, self._share).transpose(1, 2).flatten(2)
        fed: Tensor = self.feed(x + self.dropout(self.out2(read)))
        return fed


class TIGERNetwork(nn.Module):
    """Codes in, codes out. Both sides share one table of code vectors, and each level has its own output layer.

    Places are learned: in a history counted from its latest item, so that the latest is at the same place in all. The start token of a
    sequence has codes of its own.
    """

    codes: Tensor
    first: Tensor

    def __init__(self, config: TIGERConfig, ids: SemanticIds) -> None:
        super().__init__()
        self.config, self.trie, self.n_codes = config, Trie(ids), ids.levels
        sizes = torch.tensor(ids.sizes)
        # Each level has one code more in the table, the start token's.
        self.register_buffer("first", (sizes + 1).cumsum(0) - sizes - 1, persistent=False)
        self.register_buffer("codes", torch.cat([ids.codes, sizes[None]]), persistent=False)
        self.table = _vectors(int((sizes + 1).sum()), config.dim)
        self.places = _vectors(config.max_length + 1, config.dim)
        self.begin, self.users = _vectors(1, config.dim), _vectors(config.users, config.dim)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.decoder = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.encoded, self.decoded = nn.RMSNorm(config.dim, eps=1e-6), nn.RMSNorm(config.dim, eps=1e-6)
        self.heads = nn.ModuleList(nn.Linear(config.dim, size, bias=False) for size in ids.sizes)

    def read(self, batch: SequenceBatch) -> Memory:
        """What the decoder reads of B sequences of items behind their start tokens."""
        count = self.n_codes
        spread = replace(
            batch, tokens=(self.codes[batch.tokens] + self.first).flatten(), offsets=batch.offsets * count, longest=batch.longest * count
        )
        items, padding = Padding(batch), Padding(spread)
        rows = batch.rows.clamp(max=len(batch) - 1)
        from_end = (items.lengths[rows] - 1 - items.positions).clamp(min=0)
        x = functional.embedding(spread.tokens, self.table).view(-1, count, self.config.dim)
        x = x + functional.embedding(from_end, self.places)[:, None]
        if len(self.users):
            user = batch.users[rows]
            own = functional.embedding(user.clamp(min=0) % len(self.users), self.users)
            x = x + torch.where(((user >= 0) & (items.positions == 0))[:, None], own, 0.0)[:, None]
        x = self.dropout(x.flatten(0, 1))
        # A row of padding reads its first place, which holds zeros, so that nothing is divided by 0.
        readable = padding.filled
        readable = readable | (torch.arange(readable.shape[1], device=readable.device) == 0)
        readable = readable[:, None, None]
        for block in self.encoder:
            x = block(x, padding, readable)
        x = self.dropout(self.encoded(x))
        layers = []
        for block in self.decoder:
            assert isinstance(block, DecoderBlock)
            keys, values = padding.heads(block.offer(x), 2, block.heads)
            layers.append((keys, values))
        return Memory(layers, readable)

    def forward(self, batch: SequenceBatch, items: Tensor) -> Tensor:
        """Log-probabilities [B, C] of the codes of items [B], each behind the codes before it."""
        memory, codes = self.read(batch), self.codes[items]
        before = functional.embedding((codes + self.first)[:, :-1], self.table)
        x = self.dropout(torch.cat([self.begin.expand(len(items), 1, -1), before], 1))
        for block, (keys, values) in zip(self.decoder, memory.layers, strict=True):
            x = block(x, keys, values, memory.readable)
        states = self.dropout(self.decoded(x))
        found = [
            self.log_shares(depth, states[:, depth], self.trie.member(depth)[items]).gather(1, codes[:, depth : depth + 1])
            for depth in range(self.n_codes)
        ]
        return torch.cat(found, 1)

    def step(self, depth: int, codes: Tensor | None, past: Cache, memory: Memory) -> tuple[Tensor, Cache]:
        """States [B, N, dim] behind prefixes of `depth` codes, and their keys and values.

        codes: [B, N] or [1, N] int64, the last code of each prefix, None for the empty one; past: of the codes before it.
        """
        x = self.begin[None] if codes is None else functional.embedding(codes + self.first[depth - 1], self.table)
        x = x.expand(len(memory.readable), -1, -1)
        kept: Cache = []
        for n, block in enumerate(self.decoder):
            assert isinstance(block, DecoderBlock)
            x, held = block.step(x, past[n] if past else None, *memory.layers[n], memory.readable)
            kept.append(held)
        return self.decoded(x), kept

    def log_shares(self, depth: int, states: Tensor, nodes: Tensor) -> Tensor:
        """Log-probabilities [.., K] of the codes of a level behind prefixes: their states [.., dim], and their nodes of the trie [..]."""
        logits = self.heads[depth](states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.config.softmax == "children":
            logits = logits.masked_fill(self.trie.child(depth)[nodes] < 0, -torch.inf)
        shares: Tensor = logits.log_softmax(-1)
        return shares


def _vectors(rows: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, dim) / dim**0.5)
