"""HSTU: a causal sequence model with pointwise SiLU attention (Zhai et al. 2024, arXiv 2402.17152), in plain PyTorch."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from kernels.hstu_attention import hstu_attention
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Ints, Jagged
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender


class HSTUConfig(ModelConfig):
    """Settings of HSTU.

    The defaults were chosen on the validation part of MovieLens-100K (leave-one-out, NDCG@10, seeds 0 to 2; no choice used the test part).
    They were picked for short training: 8 epochs give 0.098 to 0.100, and 10 gave 0.101 with seed 0.
    """

    seed: int = 0
    """Seed of the initial weights, windows, dropout and negatives."""
    dim: int = Field(64, ge=1)
    """Width of item embeddings and of the residual stream."""
    heads: int = Field(1, ge=1)
    """Attention heads; they share `dim`, so it must be a multiple."""
    blocks: int = Field(1, ge=1)
    """HSTU layers."""
    max_length: int = Field(64, ge=2)
    """Tokens of context: the start token and the latest max_length - 1 items. Longer training sequences are cut into windows."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Share of embedding and layer outputs dropped in training."""
    temperature: float = Field(0.05, ge=0.025)
    """Divides cosine similarities before the softmax; below the bound exp(-2 / temperature) would leave float32."""
    negatives: int = Field(1024, ge=1)
    """Distinct items drawn uniformly for each batch as negatives of all its positions; at most the whole catalogue."""
    epochs: int = Field(8, ge=1)
    """Passes over the log."""
    batch_tokens: int = Field(1024, ge=1)
    """Positions a step, about."""
    learning_rate: float = Field(0.014, gt=0)
    """Peak of AdamW's learning rate, which rises for a tenth of training and then falls along a cosine."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        return self


class HSTUBlock(nn.Module):
    """One layer: u, v, q, k from one projection and SiLU; the attention's layer norm, gated by u, is projected and added to the input."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.heads, self.length = config.heads, config.max_length
        self.norm_in, self.norm_out = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.uvqk, self.out = nn.Linear(config.dim, 4 * config.dim), nn.Linear(config.dim, config.dim)
        self.position_bias = nn.Parameter(torch.zeros(config.heads, config.max_length))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        u, v, q, k = functional.silu(self.uvqk(self.norm_in(x))).chunk(4, dim=1)
        v, q, k = (t.view(len(t), self.heads, t.shape[1] // self.heads) for t in (v, q, k))
        attended = hstu_attention(q, k, v, offsets, self.length, self.position_bias).flatten(1)
        update: Tensor = self.out(self.dropout(self.norm_out(attended) * u))
        return x + update


class HSTUNetwork(nn.Module):
    """Tokens [T] and offsets [B + 1] to states [T, dim]; token ids are dense item ids, and `n_items` is the start token."""

    def __init__(self, config: HSTUConfig, n_items: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_items + 1, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(HSTUBlock(config) for _ in range(config.blocks))

    def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
        x: Tensor = self.dropout(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, offsets)
        return x

    def item_vectors(self, items: Tensor) -> Tensor:
        """Unit vectors [N, dim] of dense item ids [N]."""
        return functional.normalize(self.embedding(items), dim=1)


class HSTU(Recommender):
    """Next-item prediction with a sampled softmax over cosine similarities; item order is used, timestamps are not.

    Each history is read behind a learned start token, so an empty one gets a trained score too. Fitting is deterministic for a seed on one
    machine and thread count.
    """

    name = "hstu"
    Config = HSTUConfig
    config: HSTUConfig
    network: HSTUNetwork

    @property
    def training(self) -> str:
        return "sampled softmax, shared uniform negatives, order, no timestamps"

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        config, n_items = self.config, len(dataset.items)
        sequences = dataset.sequences()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            rng = np.random.default_rng(config.seed)
            self.network = HSTUNetwork(config, n_items).train()
            optimizer = torch.optim.AdamW(
                self.network.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay, fused=True
            )
            epochs = (batches(sequences, config.max_length, config.batch_tokens, rng) for _ in range(config.epochs))
            steps_an_epoch = -(-len(dataset) // config.batch_tokens)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle((step + 0.5) / (config.epochs * steps_an_epoch)))
            for epoch, windows in enumerate(epochs):
                total = 0.0
                for targets in windows:
                    loss = self._loss(targets, n_items)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach()) * len(targets.values)
                progress((epoch + 1) / config.epochs, f"epoch {epoch + 1}/{config.epochs}, loss {total / len(dataset):.3f}")
        self.network.eval()

    def _loss(self, targets: Jagged, n_items: int) -> Tensor:
        """Mean softmax loss of windows of target items, each position against its target and the batch's shared negatives."""
        tokens, wanted = torch.from_numpy(shifted(targets, n_items)), torch.from_numpy(targets.values)
        states = functional.normalize(self.network(tokens, torch.from_numpy(targets.offsets)), dim=1)
        negatives = torch.randperm(n_items)[: self.config.negatives]
        positives, others = self.network.item_vectors(wanted), self.network.item_vectors(negatives)
        return sampled_softmax(states, positives, others, torch.isin(wanted, negatives), self.config.temperature)

    @torch.inference_mode()
    def _score(self, histories: Histories) -> NDArray:
        n_items = len(self._catalogue())
        kept = latest(histories.items, self.config.max_length - 1)
        ends = kept.offsets + np.arange(len(kept) + 1)
        tokens = np.full(ends[-1], n_items, np.int64)
        tokens[np.arange(len(kept.values)) + kept.row_ids + 1] = kept.values
        states = self.network(torch.from_numpy(tokens), torch.from_numpy(ends))[ends[1:] - 1]
        scores: NDArray = (functional.normalize(states, dim=1) @ self.network.item_vectors(torch.arange(n_items)).T).numpy()
        return scores

    def _state(self) -> dict[str, NDArray]:
        return {name: tensor.numpy() for name, tensor in self.network.state_dict().items()}

    def _load_state(self, state: dict[str, NDArray]) -> None:
        self.network = HSTUNetwork(self.config, len(self._catalogue())).eval()
        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def sampled_softmax(states: Tensor, positives: Tensor, negatives: Tensor, drawn: Tensor, temperature: float) -> Tensor:
    """Mean over positions of -log softmax of the target among itself and the negatives, by cosine / temperature.

    states, positives: [T, d] unit vectors, a position's state and its target; negatives: [N, d] unit vectors of distinct items, the same
    for all positions; drawn: [T] bool, whether the target is one of them, in which case it counts once.
    """
    # A cosine is at most 1. Taking off this bound, and not each row's maximum as logsumexp does, saves passes over [T, N].
    bound = 1 / temperature
    target = (states * positives).sum(1) / temperature - bound
    total = torch.addmm(states.new_full((), -bound), states / temperature, negatives.T).exp_().sum(1)
    return (torch.where(drawn, total, total + target.exp()).log() - target).mean()


def batches(sequences: Jagged, max_length: int, batch_tokens: int, rng: np.random.Generator) -> list[Jagged]:
    """Cuts sequences into windows of at most `max_length` items and groups windows of like length into batches, in random order.

    Where a sequence is cut first is drawn anew each time, so that a position is seen behind contexts of all lengths.
    """
    place = np.arange(len(sequences.values)) - np.repeat(sequences.offsets[:-1], sequences.lengths)
    phase = np.repeat(rng.integers(0, max_length, len(sequences)), sequences.lengths)
    starts = np.flatnonzero((place == 0) | (place % max_length == phase))
    windows = Jagged(sequences.values, np.append(starts, len(place)).astype(np.int64))
    order = np.argsort(windows.lengths + rng.random(len(windows)), kind="stable")
    batch = np.cumsum(windows.lengths[order]) // batch_tokens
    groups = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [windows.take(groups[g]) for g in rng.permutation(len(groups))]


def shifted(targets: Jagged, start: int) -> Ints:
    """The input token before each target [T]: the start token at the head of a row, else the item before."""
    tokens = np.roll(targets.values, 1)
    tokens[targets.offsets[:-1][targets.lengths > 0]] = start
    return tokens


def latest(rows: Jagged, count: int) -> Jagged:
    """The last `count` values of each row."""
    from_end = np.repeat(rows.offsets[1:], rows.lengths) - np.arange(len(rows.values))
    offsets = np.concatenate([[0], np.cumsum(np.minimum(rows.lengths, count))]).astype(np.int64)
    return Jagged(rows.values[from_end <= count], offsets)


def one_cycle(share: float) -> float:
    """Learning rate, as a share of its peak, after a share of training: up a line for a tenth, then down a cosine."""
    return min(share / 0.1, 1.0) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
