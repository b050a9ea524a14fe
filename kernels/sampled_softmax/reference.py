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
    # Each vector is made a unit one once: before it is picked, where more are picked than there are.
    picked = negatives.numel() + targets.numel() < len(items)
    if cosine:
        states = functional.normalize(states, dim=1, eps=eps)
        items = items if picked else functional.normalize(items, dim=1, eps=eps)

    def vectors(rows: Tensor) -> Tensor:
        found = functional.embedding(rows, items)
        return functional.normalize(found, dim=-1, eps=eps) if cosine and picked else found

    states = states / temperature
    if valid is not None:
        targets = torch.where(valid, targets, 0)
    positive = (states * vectors(targets)).sum(1)
    if negatives.ndim == 1:
        losses = _shared(states @ vectors(negatives).T, positive, _times(negatives, len(items))[targets])
    else:
        negative = torch.einsum("td,tnd->tn", states, vectors(negatives)).masked_fill(negatives == targets[:, None], -torch.inf)
        losses = torch.logaddexp(negative.logsumexp(1), positive) - positive
    return losses if valid is None else torch.where(valid, losses, 0.0)


def _times(rows: Tensor, count: int) -> Tensor:
    """How often each number below `count` is among rows: where there are few of them, a table is less work than to compare all."""
    return torch.zeros(count, dtype=torch.float32, device=rows.device).index_add(0, rows, torch.ones(len(rows), device=rows.device))


def _shared(scores: Tensor, positive: Tensor, times: Tensor) -> Tensor:
    """The losses of scores [T, N] that hold the target's own `times` over; it is to count once, and no mask [T, N] is needed for that."""
    total = scores.logsumexp(1)
    # exp(total) holds times * exp(positive); the last is at most the first wherever the target is among them.
    once = total + torch.log1p((1 - times).clamp(max=0) * (positive - total).clamp(max=0).exp())
    return torch.where(times > 0, once, torch.logaddexp(total, positive)) - positive
