"""What sequence models are trained by: an objective over one positive and its negatives, and where the negatives come from.

The two choices are independent. Objectives: `softmax` (cross-entropy; over all items, or sampled), `bce` (Kang & McAuley 2018), `gbce`
(Petrov & Macdonald 2023, arXiv 2308.07192), `bpr` (Rendle et al. 2009), `top1` (Hidasi et al. 2016, arXiv 1511.06939). Negatives: `all`
items, `shared` by the batch or `uniform` for each position, both drawn uniformly, and `in-batch`, targets of the batch's positions.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Objective = Literal["softmax", "bce", "gbce", "bpr", "top1"]
Negatives = Literal["all", "shared", "uniform", "in-batch"]


def full_softmax(states: Tensor, targets: Tensor, items: Tensor) -> Tensor:
    """Cross-entropy over the catalogue [T]; states: [T, D], scaled by 1 / temperature; targets: [T] int64; items: [I, D]."""
    return functional.cross_entropy(states @ items.T, targets, reduction="none")


class SoftmaxSum(torch.autograd.Function):
    """The sum of `full_softmax`, a scalar, whose gradients are made with it, some rows at a time.

    A piece of the [T, I] scores stays in a processor's cache and becomes its own gradient in place; no table as large as all scores is
    ever written, where the plain formula writes four. Same arguments as `full_softmax`; differentiable once.
    """

    rows = 128

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        total = states.new_zeros(())
        to_states, to_items = torch.empty_like(states), torch.zeros_like(items)
        room = states.new_empty(min(SoftmaxSum.rows, len(states)), len(items))
        parts = (torch.split(tensor, SoftmaxSum.rows) for tensor in (states, targets, to_states))
        for part, target, to_part in zip(*parts, strict=True):
            scores, target = torch.mm(part, items.T, out=room[: len(part)]), target[:, None]
            scores -= scores.amax(1, keepdim=True)
            total -= scores.gather(1, target).sum()
            norm = scores.exp_().sum(1, keepdim=True)
            total += norm.log().sum()
            # The gradient by the scores: their softmax, less 1 at the target.
            scores /= norm
            scores.scatter_add_(1, target, -torch.ones_like(norm))
            torch.mm(scores, items, out=to_part)
            to_items.addmm_(scores.T, part)
        ctx.save_for_backward(to_states, to_items)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, Tensor]:
        to_states, to_items = ctx.saved_tensors
        return slope * to_states, None, slope * to_items


def softmax_sum(states: Tensor, targets: Tensor, items: Tensor, real: Tensor) -> Tensor:
    """The sum of `full_softmax` over the positions that are real, bool [T], a scalar; by `SoftmaxSum` where that is faster.

    A GPU's own kernels are, a compiler fuses the plain formula itself, and autocast chooses the types of its products.
    """
    if states.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return torch.where(real, full_softmax(states, targets, items), 0.0).sum()
    total: Tensor = SoftmaxSum.apply(states[real], targets[real], items)  # type: ignore[no-untyped-call]
    return total


def sampled_loss(
    objective: Objective, positive: Tensor, negative: Tensor, hit: Tensor | None, share: float = 1.0, calibration: float = 0.0
) -> Tensor:
    """The loss [T] of scores of each position's target [T] against those of its N negatives [T, N].

    hit: [T, N] bool, negatives that are the target by accident and do not count; None where there are none. bce and gbce sum over the
    negatives, bpr and top1 average over them. share: N / (I - 1), and calibration: the `t` of gBCE, 0 (as bce) to 1.
    """
    if objective == "softmax":
        if hit is not None:
            negative = negative.masked_fill(hit, -torch.inf)
        return torch.logaddexp(negative.logsumexp(1), positive) - positive
    counts = torch.ones_like(negative) if hit is None else (~hit).to(negative.dtype)
    if objective in ("bce", "gbce"):
        power = share * (calibration * (1 - 1 / share) + 1 / share) if objective == "gbce" else 1.0
        return -power * functional.logsigmoid(positive) - (functional.logsigmoid(-negative) * counts).sum(1)
    margin = positive[:, None] - negative
    each = -functional.logsigmoid(margin) if objective == "bpr" else torch.sigmoid(-margin) + torch.sigmoid(negative.square())
    return (each * counts).sum(1) / counts.sum(1).clamp(min=1)


def log_q(scores: Tensor, log_frequency: Tensor) -> Tensor:
    """Scores [T, N] of negatives drawn by frequency, corrected for the softmax (Bengio & Senecal 2008).

    log_frequency: [N], of each negative. With q its frequency, an item is among N draws N q times on average. Taking off log(N q) makes the
    sum over the negatives' exponentials an unbiased estimate of the sum over all items but the target, whose own score stays as it is.
    """
    return scores - log_frequency - math.log(scores.shape[1])


def distinct_uniform(n_items: int, count: int, device: torch.device) -> Tensor:
    """Distinct uniform item ids [min(count, n_items)] int64, without asking the device for an answer."""
    if count >= n_items:
        return torch.arange(n_items, device=device)
    return torch.rand(n_items, device=device).topk(count, sorted=False).indices
