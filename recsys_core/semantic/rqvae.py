"""The RQ-VAE of TIGER: an autoencoder with a residual quantizer in its middle (Rajput et al. 2023, arXiv 2305.05065, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from kernels.residual_quantize import residual_quantize
from recsys_core.semantic.kmeans import residual_kmeans
from recsys_core.training import Learner

HIDDEN = (512, 256, 128)
"""Widths between the vectors and the middle."""
DIM = 32
"""Width of the middle, where codes are."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """A batch of vectors [B, D]; all batches of a training are of one size."""

    x: Tensor

    def load(self, batch: Vectors) -> bool:
        """Takes over a batch of the same size."""
        if batch.x.shape != self.x.shape:
            return False
        self.x.copy_(batch.x)
        return True


class RQVAE(nn.Module):
    """Encoder and decoder, and codebooks [L, K, 32]."""

    def __init__(self, width: int, levels: int, size: int) -> None:
        super().__init__()
        widths = (width, *HIDDEN, DIM)
        self.encoder, self.decoder = _layers(widths), _layers(widths[::-1])
        self.codebooks = nn.Parameter(torch.zeros(levels, size, DIM))

    def losses(self, x: Tensor, beta: float) -> Tensor:
        """|x - decoded|^2 + sum over levels of |sg(r) - e|^2 + beta |r - sg(e)|^2, the loss [B] of vectors [B, D].

        r is what is left before a level and e the code chosen there. The decoder reads the sum of the codes, and its gradient passes
        straight through to the encoder.
        """
        z = self.encoder(x).float()
        codes, residual = residual_quantize(z.detach(), self.codebooks)
        chosen = torch.stack([book[code] for book, code in zip(self.codebooks, codes.T, strict=True)], 1)
        # What is left before level l: z less the codes before it, which to the encoder are constants.
        before = (chosen.cumsum(1) - chosen).detach()
        left = z[:, None] - before
        codebook = (left.detach() - chosen).square().sum((1, 2))
        commitment = (left - chosen.detach()).square().sum((1, 2))
        decoded = self.decoder(z - residual.detach())
        losses: Tensor = (x - decoded).square().sum(1) + codebook + beta * commitment
        return losses


class RQVAELearner(Learner[Vectors]):
    """An RQ-VAE with the vectors it learns from."""

    def __init__(self, network: RQVAE, x: Tensor, batch_size: int, beta: float) -> None:
        super().__init__()
        self.network, self.beta = network, beta
        self.size = min(batch_size, len(x))
        self.register_buffer("x", x, persistent=False)
        with torch.no_grad():
            # "k-means clustering on the first training batch" (section 3.1).
            first = network.encoder(x[torch.randperm(len(x))[: self.size]])
            network.codebooks.copy_(residual_kmeans(first, *network.codebooks.shape[:2]))

    def epoch(self, rng: np.random.Generator, device: torch.device) -> Sequence[Vectors]:
        x = self.get_buffer("x")
        self._revive(rng)
        steps = -(-len(x) // self.size)
        # The last batch is filled up with the first vectors, so that all are of one size.
        order = torch.from_numpy(np.resize(rng.permutation(len(x)), steps * self.size)).to(device)
        return [Vectors(x[rows]) for rows in torch.split(order, self.size)]

    @torch.no_grad()
    def _revive(self, rng: np.random.Generator) -> None:
        """Moves each code that no vector takes to what is left of some vector before the code's level."""
        books = self.network.codebooks
        left = self.network.encoder(self.get_buffer("x")).float()
        for book in books:
            codes, after = residual_quantize(left, book[None])
            dead = (torch.bincount(codes[:, 0], minlength=len(book)) == 0).nonzero()[:, 0]
            if len(dead) < len(book) and len(left) > len(book):
                book[dead] = left[torch.from_numpy(rng.integers(0, len(left), len(dead))).to(left.device)]
            left = after

    def weight(self, batch: Vectors) -> float:
        return float(len(batch.x))

    def shard(self, batch: Vectors, rank: int, world: int) -> Vectors:
        return Vectors(batch.x[len(batch.x) * rank // world : len(batch.x) * (rank + 1) // world])

    def static(self, batches: Sequence[Vectors]) -> Vectors:
        return Vectors(batches[0].x.clone())

    def forward(self, batch: Vectors) -> Tensor:
        return self.network.losses(batch.x, self.beta).sum()


def _layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [module for a, b in pairwise(widths) for module in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
