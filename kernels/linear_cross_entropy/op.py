"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.linear_cross_entropy.reference import losses_by_pieces


def linear_cross_entropy(states: Tensor, targets: Tensor, items: Tensor, *, scale: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """The cross-entropy [T] float32 of each position's target among all items: cross_entropy(scale * states @ items.T, targets).

    states: [T, D] and items: [I, D], of one floating type; targets: [T] int64; scale: above 0, such as 1 / temperature. valid: [T] bool;
    other positions lose 0, have no gradient, and their target may be anything.

    The kernels never hold the scores [T, I]: a block of them at a time becomes a part of a running sum of exponentials, and the backward
    makes the blocks again, once for the states and once for the items, in a fixed order, so that results repeat to the last bit. Of
    vectors wider than 256, whose blocks fill a multiprocessor, PyTorch's matrix products make the scores of some thousand items at a time
    (`chunked`). Scores and sums are float32, and products of float32 vectors as exact (`pieces`). float64 runs the reference. Under
    autocast, both become its type. Differentiable in states and items. Raises ValueError for shapes, types and settings that do not fit.
    """
    device = states.device.type
    if torch.is_autocast_enabled(device) and states.dtype != torch.float64:
        states, items = states.to(torch.get_autocast_dtype(device)), items.to(torch.get_autocast_dtype(device))
    _check(states, targets, items, scale, valid)
    if states.dtype == torch.float64 or not compiled(states):
        with torch.autocast(device, enabled=False):
            return losses_by_pieces(states, targets, items, scale, valid)
    from kernels.linear_cross_entropy.operators import losses_and_sums

    losses: Tensor = losses_and_sums(states, targets, items, scale, valid)[0]
    return losses


def _check(states: Tensor, targets: Tensor, items: Tensor, scale: float, valid: Tensor | None) -> None:
    if states.ndim != 2 or items.ndim != 2 or states.shape[1] != items.shape[1] or not len(items):
        raise ValueError(f"states {list(states.shape)} and items {list(items.shape)} need the shapes [T, D] and [I, D], I at least 1")
    if states.dtype != items.dtype or not states.is_floating_point():
        raise ValueError(f"states and items are {states.dtype} and {items.dtype}; convert both to one floating type")
    tokens = states.shape[0]
    if targets.shape != (tokens,) or targets.dtype != torch.int64:
        raise ValueError(f"targets {list(targets.shape)} {targets.dtype} need the shape [{tokens}] and the type int64")
    if valid is not None and (valid.shape != (tokens,) or valid.dtype != torch.bool):
        raise ValueError(f"valid {list(valid.shape)} {valid.dtype} needs the shape [{tokens}] and the type bool")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it needs to be above 0")
