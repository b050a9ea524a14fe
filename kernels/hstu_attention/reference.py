"""HSTU attention in plain PyTorch: what every faster version is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# silu and its derivative are exactly 0 here, so one addition both biases and masks; -inf would give NaN.
_MASKED = -1e30


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    normalizer: float,
    position_bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Causal attention whose weights are silu(score) / N in place of a softmax (Zhai et al. 2024, arXiv 2402.17152, equation 2).

    For token i of a sequence and head h, over the tokens j <= i of the same sequence:

        out[i, h] = sum_j silu(scale * <q[i, h], k[j, h]> + position_bias[h, i - j]) * v[j, h] / normalizer

    q, k: [T, H, D]; v: [T, H, E]; offsets: [B + 1] int64, sequence b is rows offsets[b] to offsets[b + 1], which may be none;
    position_bias: [H, M], M at least the longest sequence, or None for 0; normalizer: the N of the paper, one constant for all sequences,
    so that how sequences are batched changes nothing. Returns [T, H, E]. Differentiable in q, k, v and position_bias. Memory O(B * H *
    longest ** 2).
    """
    lengths = offsets.diff()
    if len(q) == 0:
        return torch.zeros_like(v)
    batch, longest = len(lengths), int(lengths.max())
    if position_bias is not None and position_bias.shape[1] < longest:
        raise ValueError(
            f"position_bias covers {position_bias.shape[1]} positions, the longest sequence has {longest}; give one a distance"
        )
    slot = torch.arange(len(q), device=q.device) + torch.repeat_interleave(
        torch.arange(batch, device=q.device) * longest - offsets[:-1], lengths
    )

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(batch * longest, *x.shape[1:]).index_copy(0, slot, x).view(batch, longest, *x.shape[1:]).transpose(1, 2)

    step = torch.arange(longest, device=q.device)
    distance = step[:, None] - step
    bias = q.new_zeros(1, longest, longest) if position_bias is None else position_bias[:, distance.clamp(min=0)]
    scores = (padded(q * scale) @ padded(k).transpose(2, 3)).add_(bias.masked_fill(distance < 0, _MASKED))
    out = (functional.silu(scores) @ padded(v / normalizer)).transpose(1, 2).reshape(batch * longest, *v.shape[1:])
    return out.index_select(0, slot)
