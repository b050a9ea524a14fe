"""Dropout and attention whose random masks cost a processor little."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# A mask's elements are 16-bit numbers, of which each 64-bit draw gives four.
_LEVELS, _A_DRAW = 2**16, 4


class Dropout(nn.Module):
    """In training zeroes each element with probability `share` and divides the rest by 1 - share; the identity otherwise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.share if self.training else 0.0)


def dropout(x: Tensor, share: float) -> Tensor:
    """`x` with each element zeroed with probability `share` (0 <= share < 1), the rest divided by 1 - share.

    On a processor torch draws one random number an element, one after the other, which takes as long as a small model's products do.
    Here four elements share a draw, so the share is rounded to 1 / 65536. On a GPU, and in a graph that is compiled, it is torch's own.
    """
    if not share:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.dropout(x, share)
    dropped = min(round(share * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // _A_DRAW), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[: x.numel()].view(x.shape)
    # A comparison written as 0.0 and 1.0 is several times faster than one written as a boolean and converted.
    kept = torch.ge(levels, dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))
    return x * kept.mul_(_LEVELS / (_LEVELS - dropped))


def attend(q: Tensor, k: Tensor, v: Tensor, readable: Tensor | None, share: float) -> Tensor:
    """Softmax attention [B, H, M, D] of queries [B, H, M, D] to keys and values [B, H, L, D], weights dropped with probability `share`.

    readable: bool, broadcast to [B, H, M, L], the places each query may look at, at least one; None for those up to its own.
    """
    if not share or q.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.scaled_dot_product_attention(q, k, v, readable, share, is_causal=readable is None)
    if readable is None:
        readable = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    bias = torch.zeros(readable.shape, dtype=q.dtype).masked_fill_(~readable, -torch.inf)
    scores = (q / math.sqrt(q.shape[3])) @ k.transpose(2, 3) + bias
    return dropout(scores.softmax(3), share) @ v
