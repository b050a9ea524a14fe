"""Residual k-means: the codebook of each level is found by k-means over what the levels before it left."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.residual_quantize import residual_quantize

_ROWS = 2**16
"""Vectors that are summed at once."""


@torch.no_grad()
def residual_kmeans(x: Tensor, levels: int, size: int, iterations: int = 25) -> Tensor:
    """Codebooks [L, K, D] float32 of vectors x [N, D], on their device; random parts are drawn from torch's random state."""
    residual, codebooks = x.float(), []
    for _ in range(levels):
        codebooks.append(kmeans(residual, size, iterations))
        _, residual = residual_quantize(residual, codebooks[-1][None])
    return torch.stack(codebooks)


def kmeans(x: Tensor, size: int, iterations: int) -> Tensor:
    """Centres [K, D] of vectors x [N, D]: Lloyd's iterations behind a k-means++ start (Arthur & Vassilvitskii 2007).

    A centre without vectors moves to one that is far from its own; with fewer vectors than centres some stay without.
    """
    centres = _spread(x, size)
    for _ in range(iterations):
        codes, rest = residual_quantize(x, centres[None])
        counts, sums = torch.zeros(size, 1, device=x.device), torch.zeros_like(centres)
        # Sums as products: on a GPU they come out the same each time, and so do the codes of processes that train together.
        for rows, code in zip(torch.split(x, _ROWS), torch.split(codes[:, 0], _ROWS), strict=True):
            mine = functional.one_hot(code, size).float().T
            counts += mine.sum(1, keepdim=True)
            sums += mine @ rows
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        empty = (counts[:, 0] == 0).nonzero()[:, 0][: len(x)]
        centres[empty] = x[rest.square().sum(1).topk(len(empty)).indices]
    return centres


def _spread(x: Tensor, size: int) -> Tensor:
    """`size` of the vectors, each drawn with a probability that grows with its squared distance to those drawn before it."""
    chosen = torch.randint(len(x), (1,))
    centres = x[chosen.to(x.device)]
    nearest = (x - centres).square().sum(1)
    draws = torch.rand(size - 1).tolist()
    for draw in draws:
        # Where all distances are 0 the last vector is taken again.
        total = nearest.cumsum(0)
        place = torch.searchsorted(total, draw * total[-1:]).clamp(max=len(x) - 1)
        centres = torch.cat([centres, x[place]])
        nearest = torch.minimum(nearest, (x - x[place]).square().sum(1))
    return centres
