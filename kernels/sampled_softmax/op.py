"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.sampled_softmax.reference import losses_by_table


def sampled_softmax(
    states: Tensor,
    targets: Tensor,
    negatives: Tensor,
    items: Tensor,
    *,
    temperature: float = 1.0,
    similarity: Literal["cosine", "dot"] = "cosine",
    eps: float = 1e-12,
    valid: Tensor | None = None,
) -> Tensor:
    """The cross-entropy [T] float32 of each position's target among its negatives (the loss of Zhai et al. 2024, arXiv 2402.17152).

    For position t with the score s(i) = similarity(states[t], items[i]) / temperature:

        loss[t] = log(exp(s(targets[t])) + sum over negatives i that are not targets[t] of exp(s(i))) - s(targets[t])

    states: [T, D] and items: [I, D], floating; targets: [T] int64; negatives: int64 ids, [T, N] each position's own, or [N] shared by all
    positions. A negative drawn twice counts twice; one that is the target by accident does not count. similarity: the inner product, for
    `cosine` of both vectors divided by max(L2 norm, eps). valid: [T] bool; other positions lose 0, have no gradient, and their target may
    be anything. Scores, sums and norms are float32, under autocast too.

    The kernels never write the vectors [T, N, D], nor for shared negatives the scores [T, N]; the gradient by items is summed in a float32
    [I, D], by atomic additions in no fixed order. Where `torch.use_deterministic_algorithms` asks for one, own negatives are sorted by item
    first, and shared ones run the reference. So do float64, and shared negatives of vectors too wide (`shared.fits`). Differentiable in
    states and items. Raises ValueError for shapes, types and settings that do not fit.
    """
    _check(states, targets, negatives, items, temperature, eps, valid)
    cosine = _cosine(similarity)
    ordered = torch.are_deterministic_algorithms_enabled()
    if torch.float64 in (states.dtype, items.dtype) or not compiled(states) or not _can(states, items, negatives, ordered):
        with torch.autocast(states.device.type, enabled=False):
            return losses_by_table(states, targets, negatives, items, temperature, cosine, eps, valid)
    from kernels.sampled_softmax.operators import losses_and_sums

    losses: Tensor = losses_and_sums(states, targets, negatives, items, temperature, cosine, eps, valid, ordered)[0]
    return losses


def _can(states: Tensor, items: Tensor, negatives: Tensor, ordered: bool) -> bool:
    """Whether the kernels do it."""
    if negatives.ndim == 2:
        return True
    from kernels.sampled_softmax.shared import fits

    return not ordered and fits(states, items)


def _cosine(similarity: str) -> bool:
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity is {similarity!r}; give 'cosine' or 'dot'")
    return similarity == "cosine"


def _check(states: Tensor, targets: Tensor, negatives: Tensor, items: Tensor, temperature: float, eps: float, valid: Tensor | None) -> None:
    if states.ndim != 2 or items.ndim != 2 or states.shape[1] != items.shape[1]:
        raise ValueError(f"states {list(states.shape)} and items {list(items.shape)} need the shapes [T, D] and [I, D]")
    if not states.is_floating_point() or not items.is_floating_point():
        raise ValueError(f"states and items are {states.dtype} and {items.dtype}; both need a floating type")
    tokens = states.shape[0]
    if targets.shape != (tokens,) or targets.dtype != torch.int64:
        raise ValueError(f"targets {list(targets.shape)} {targets.dtype} need the shape [{tokens}] and the type int64")
    if negatives.ndim not in (1, 2) or negatives.dtype != torch.int64 or (negatives.ndim == 2 and negatives.shape[0] != tokens):
        raise ValueError(f"negatives {list(negatives.shape)} {negatives.dtype} need the shape [{tokens}, N] or [N] and the type int64")
    if valid is not None and (valid.shape != (tokens,) or valid.dtype != torch.bool):
        raise ValueError(f"valid {list(valid.shape)} {valid.dtype} needs the shape [{tokens}] and the type bool")
    if not temperature > 0 or not eps > 0:
        raise ValueError(f"temperature is {temperature} and eps is {eps}; both need to be above 0")
