"""The linear cross-entropy in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_ROOM = 2**26
"""Scores held at once, in numbers."""


def losses_by_pieces(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> Tensor:
    """`kernels.linear_cross_entropy.linear_cross_entropy`, some positions at a time; 16-bit inputs are computed in float32."""
    if states.dtype != torch.float64:
        states, items = states.float(), items.float()
    if valid is not None:
        targets = torch.where(valid, targets, 0)
    rows = max(_ROOM // max(len(items), 1), 1)
    if len(states) <= rows:
        losses = _piece(states, targets, items, scale)
    else:
        # The scores of a piece are made again for its gradient, so those of one piece alone are held.
        pieces = [
            checkpoint(_piece, part, target, items, scale, use_reentrant=False)
            for part, target in zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
        ]
        losses = torch.cat(pieces)
    return losses if valid is None else torch.where(valid, losses, 0.0)


def _piece(states: Tensor, targets: Tensor, items: Tensor, scale: float) -> Tensor:
    return functional.cross_entropy(scale * (states @ items.T), targets, reduction="none")
