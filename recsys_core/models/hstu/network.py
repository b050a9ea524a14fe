"""The HSTU layer and the network of several."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kernels.backend import compiled
from kernels.hstu_attention import hstu_attention, pair_buckets
from kernels.hstu_attention.reference import slots
from kernels.hstu_output import hstu_output
from kernels.uvqk import uvqk
from recsys_core.models.hstu.config import HSTUConfig
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.dropout import Dropout
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.recommender import SequenceNetwork


@dataclass(frozen=True, eq=False)
class Layout:
    """What all layers share of a batch. offsets: [B + 1] int64; longest: a bound on a sequence's tokens; times: [T] int64 seconds of each
    token, and asked: [T], from when on their age counts; both None for a model without time."""

    offsets: Tensor
    longest: int
    times: Tensor | None = None
    asked: Tensor | None = None
    _found: list[tuple[Tensor | None, Tensor | None]] = field(default_factory=list, init=False)

    def pair_buckets(self, q: Tensor, time_bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """For `hstu_attention`, found for the first layer; time_bias: [H, K], of one K in all."""
        if time_bias is None or self.times is None or self.asked is None:
            return None, None
        if not self._found:
            self._found.append(
                pair_buckets(
                    q, self.offsets, max_seq_len=self.longest, key_times=self.times, query_times=self.asked, buckets=time_bias.shape[1]
                )
            )
        return self._found[0]


class HSTUBlock(nn.Module):
    """One layer: u, v, q, k from one projection and SiLU; the attention's layer norm, gated by u, is projected and added to the input."""

    def __init__(self, config: HSTUConfig, length: int) -> None:
        super().__init__()
        self.heads, self.length = config.heads, length
        self.norm_in, self.norm_out = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.uvqk, self.out = nn.Linear(config.dim, 4 * config.dim), nn.Linear(config.dim, config.dim)
        self.position_bias = nn.Parameter(torch.zeros(config.heads, length))
        timed = config.time != "none"
        self.time_bias = nn.Parameter(torch.zeros(config.heads, config.time_buckets)) if timed else None
        self.dropout = Dropout(config.dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u [T, dim], and v, q, k [T, H, dim / H], of tokens [T, dim]."""
        dim, norm, linear = x.shape[1] // self.heads, self.norm_in, self.uvqk
        return uvqk(x, norm.weight, norm.bias, linear.weight, linear.bias, heads=self.heads, dim_qk=dim, dim_v=dim, eps=norm.eps)

    def close(self, x: Tensor, attended: Tensor, u: Tensor, seed: Tensor | None = None) -> Tensor:
        """The layer's output [T, dim] of its input, what was attended to and the gate; seed: of dropout, one int64, drawn if missing."""
        norm, linear, share = self.norm_out, self.out, self.dropout.share
        if not compiled(x):
            # Cheaper masks on a processor than those that the kernels draw.
            update: Tensor = linear(self.dropout(norm(attended) * u))
            return x + update
        return hstu_output(
            attended, u, x, norm.weight, norm.bias, linear.weight, linear.bias,
            dropout=share, training=self.training, seed=seed, eps=norm.eps,
        )  # fmt: skip

    def forward(self, x: Tensor, layout: Layout, seed: Tensor | None = None) -> Tensor:
        u, v, q, k = self.project(x)
        return self.close(x, self.attend(q, k, v, layout).flatten(1), u, seed)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """What each token [T, H, dim / H] takes from those it sees."""
        return hstu_attention(
            q, k, v, layout.offsets, max_seq_len=layout.longest, normalizer=self.length, position_bias=self.position_bias,
            time_bias=self.time_bias, key_times=layout.times, query_times=layout.asked,
            pair_buckets=layout.pair_buckets(q, self.time_bias),
        )  # fmt: skip


class HSTUNetwork(SequenceNetwork):
    """Token vectors through the layers. With `config.actions` a rating's token stands behind each item's (see `interleave`)."""

    asks_device = False

    def __init__(self, config: HSTUConfig, embedding: TokenEmbedding, levels: int) -> None:
        super().__init__()
        self.config, self.embedding = config, embedding
        self.length = config.max_length * (2 if config.actions else 1)
        self.places = nn.Parameter(0.02 * torch.randn(self.length, config.dim)) if config.positions else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(HSTUBlock(config, self.length) for _ in range(config.blocks))
        # One vector a rating level, and a last one for an unknown rating.
        self.actions = nn.Embedding(levels + 1, config.dim) if config.actions else None
        self.tasks = nn.Linear(config.dim, len(config.tasks)) if config.actions else None
        if self.actions is not None:
            nn.init.normal_(self.actions.weight, std=config.dim**-0.5)
        self.register_buffer("levels", torch.zeros(levels))
        self.register_buffer("bounds", torch.tensor(config.tasks), persistent=False)

    def forward(self, batch: SequenceBatch) -> Tensor:
        if self.actions is not None:
            return self.interleaved(batch)[0]
        return self.run(self.embedding(batch), batch.offsets, batch.longest, batch.times, batch.next_times)

    def run(self, x: Tensor, offsets: Tensor, longest: int, times: Tensor | None, asked: Tensor | None) -> Tensor:
        """States [T, dim] of token vectors [T, dim]; times: [T] of each token, asked: [T] when what follows it happens."""
        if self.places is not None:
            x = x + self.places[slots(offsets, x.shape[0], longest) % longest]
        x = self.dropout(x)
        layout = self.layout(offsets, longest, times, asked)
        count = len(self.blocks)
        # One draw for the masks of all layers.
        seeds = torch.randint(2**63 - 1, (count,), device=x.device) if self.training and compiled(x) else [None] * count
        for block, seed in zip(self.blocks, seeds, strict=True):
            x = block(x, layout, seed)
        return x

    def layout(self, offsets: Tensor, longest: int, times: Tensor | None, asked: Tensor | None) -> Layout:
        """What the layers are told of a batch, by `config.time`."""
        if self.config.time == "none":
            return Layout(offsets, longest)
        return Layout(offsets, longest, times, asked if self.config.time == "target" else times)

    def interleaved(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Retrieval states [T, dim], which predict the items, and ranking states [T, dim], which predict their ratings.

        A sequence reads start, item 1, rating 1, item 2, rating 2, ...: the state of the start or of a rating predicts the next item, that
        of an item its rating. Where a batch has no targets, the slot of the unknown item is the start token, and nothing reads it.
        """
        offsets, both, times, asked = self.interleave(batch)
        states = self.run(both, offsets, 2 * batch.longest, times, asked).view(-1, 2, both.shape[1])
        return states[:, 0], states[:, 1]

    def interleave(self, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Offsets [B + 1], vectors [2 T, dim], times [2 T] and question times [2 T] of the doubled sequences."""
        x, start = self.embedding(batch), batch.tokens == self.embedding.n_items
        spoken = torch.where(start[:, None], x, self.action_vectors(batch.ratings))
        following = batch.targets if batch.targets is not None else batch.tokens.roll(-1)
        named = self.embedding.items(following.clamp(max=self.embedding.n_items - 1))
        both = torch.stack([spoken, named], 1).flatten(0, 1)
        times = next_times = None
        if batch.times is not None and batch.next_times is not None:
            times = torch.stack([batch.times, batch.next_times], 1).flatten()
            next_times = torch.stack([batch.next_times, batch.next_times], 1).flatten()
        return 2 * batch.offsets, both, times, next_times

    def action_vectors(self, ratings: Tensor | None) -> Tensor:
        """Vectors [T, dim] of ratings [T], NaN for unknown ones: each is read as the nearest level seen in training."""
        assert self.actions is not None
        assert ratings is not None
        levels = self.get_buffer("levels")
        nearest = (ratings.nan_to_num()[:, None] - levels).abs().argmin(1)
        vectors: Tensor = self.actions(torch.where(ratings.isnan(), len(levels), nearest))
        return vectors
