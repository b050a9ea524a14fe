"""The sampled softmax in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def losses_by_table(
    states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, cosine: bool, eps: float, valid: Tensor | None
) -> Tensor:
    """`kernels.sampled_softmax.sampled_softmax`, by the vectors [T, N, D] of all negatives; 16-bit inputs are computed in float32."""
    if states.dtype != torch.float64:
        states, items = states.float(), items.float()
    if cosine:
        states, items = functional.normalize(states, dim=1, eps=eps), functional.normalize(items, dim=1, eps=eps)
    states = states / temperature
    if valid is not None:
        targets = torch.where(valid, targets, 0)
    positive = (states * items[targets]).sum(1)
    drawn = items[negatives]
    negative = states @ drawn.T if negatives.ndim == 1 else torch.einsum("td,tnd->tn", states, drawn)
    negative = negative.masked_fill(negatives == targets[:, None], -torch.inf)
    losses = torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive
    return losses if valid is None else torch.where(valid, losses, 0.0)
