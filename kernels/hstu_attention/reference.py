"""HSTU attention in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

# silu and its derivative are exactly 0 here in every type, so one addition both biases and masks; -inf would give NaN.
_MASKED = -3e4
# Gradients of a time table are summed in this many copies first, so that few threads add to the same number at once.
_COPIES = 256


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_seq_len: int,
    alpha: float,
    normalizer: float,
    num_targets: Tensor | None,
    max_attn_len: int,
    contextual_len: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    key_times: Tensor | None,
    query_times: Tensor | None,
) -> Tensor:
    """`kernels.hstu_attention.hstu_attention`, by tables [B, H, L, L]; memory O(B * H * max_seq_len ** 2)."""
    if q.shape[0] == 0:
        return torch.zeros_like(v)
    position_bias = None if position_bias is None else position_bias.to(q.dtype)
    time_bias = None if time_bias is None else time_bias.to(q.dtype)
    longest = max_seq_len
    if q.device.type == "cpu" and not torch.compiler.is_exporting():
        # Asking a GPU for the longest sequence would wait for it; asking the processor costs nothing.
        longest = max(int(offsets.diff().max()), 1)
    batch, slot = offsets.shape[0] - 1, slots(offsets, q.shape[0], longest)

    def padded(x: Tensor) -> Tensor:
        table = x.new_zeros(batch * longest + 1, *x.shape[1:]).index_copy(0, slot, x)
        return table[:-1].view(batch, longest, *x.shape[1:])

    scores = padded(q * alpha).transpose(1, 2) @ padded(k).permute(0, 2, 3, 1)
    if num_targets is None and not max_attn_len and not contextual_len:
        scores = scores + causal(position_bias, longest, q)
    else:
        if position_bias is not None:
            scores = scores + position_bias[:, distances(offsets.diff(), longest, num_targets)].transpose(0, 1)
        seen = visible(offsets.diff(), longest, num_targets, max_attn_len, contextual_len)
        scores = scores.masked_fill(~seen[:, None], _MASKED)
    if time_bias is not None and key_times is not None and query_times is not None:
        passed = padded(query_times)[:, :, None] - padded(key_times)[:, None, :]
        buckets = bucket(passed, time_bias.shape[1])
        scores = scores + _TableLookup.apply(time_bias, buckets).transpose(0, 1)  # type: ignore[no-untyped-call]
    out = (functional.silu(scores) @ padded(v / normalizer).transpose(1, 2)).transpose(1, 2).reshape(batch * longest, *v.shape[1:])
    return torch.cat([out, out.new_zeros(1, *v.shape[1:])]).index_select(0, slot)


def slots(offsets: Tensor, tokens: int, longest: int) -> Tensor:
    """The place [T] int64 of each token in a [B, longest] table; padding tokens share the one behind it."""
    token = torch.arange(tokens, device=offsets.device)
    row = torch.searchsorted(offsets[1:], token, right=True)
    batch = offsets.shape[0] - 1
    return torch.where(row < batch, row * longest + token - offsets[row.clamp(max=batch)], batch * longest)


def causal(position_bias: Tensor | None, longest: int, like: Tensor) -> Tensor:
    """position_bias[h, i - j] at [h, i, j], and the mask's value where j > i: [H or 1, longest, longest]."""
    by_distance = like.new_zeros(1, longest) if position_bias is None else position_bias[:, :longest]
    if torch.compiler.is_exporting():
        # ONNX has no windows of a length that is open.
        place = torch.arange(longest, device=like.device)
        distance = place[:, None] - place
        return torch.where(distance >= 0, by_distance[:, distance.clamp(min=0)], _MASKED)
    # Place m holds the bias of distance longest - 1 - m, so row i of the matrix is the window that starts at longest - 1 - i. As windows,
    # the gradient is a plain sum; looked up by index it would be a scatter.
    line = torch.cat([by_distance.flip(1), by_distance.new_full((len(by_distance), longest - 1), _MASKED)], 1)
    return line.unfold(1, longest, 1).flip(1)


def distances(lengths: Tensor, longest: int, num_targets: Tensor | None) -> Tensor:
    """How far token j stands before token i, [B or 1, longest, longest] int64: 0 where it does not, and all targets share one place."""
    place = torch.arange(longest, device=lengths.device)[None]
    if num_targets is not None:
        place = place.minimum((lengths - num_targets)[:, None])
    return (place[:, :, None] - place[:, None, :]).clamp(min=0)


def visible(lengths: Tensor, longest: int, num_targets: Tensor | None, max_attn_len: int, contextual_len: int) -> Tensor:
    """Whether token i sees token j, [B or 1, longest, longest] bool; see `hstu_attention` for the rule. lengths: [B] int64."""
    token = torch.arange(longest, device=lengths.device)
    history = lengths if num_targets is None else lengths - num_targets
    shift = max(contextual_len - 1, 0)
    # Context tokens share the rank 0, history tokens follow it, and targets share the rank behind the history.
    rank = (token - shift).clamp(min=0)[None].minimum((history - shift).clamp(min=0)[:, None])
    apart = rank[:, :, None] - rank[:, None, :]
    seen = apart > 0
    if max_attn_len:
        seen = seen & (apart <= max_attn_len)
    if contextual_len:
        seen = seen | ((rank == 0)[:, :, None] & (token < history[:, None])[:, None, :])
    return seen | torch.eye(longest, dtype=torch.bool, device=lengths.device)


def bucket(passed: Tensor, count: int) -> Tensor:
    """The bucket, 0 to count - 1, of times [...] int64 seconds, whatever their sign: floor(ln(max(|t|, 1)) / 0.301), the last one open.

    As in the published implementation of Zhai et al. 2024; 0.301 makes a bucket 35% longer than the one before, so 64 of them reach five
    and a half years. In float64, so that it is the same number everywhere.
    """
    return (passed.abs().clamp(min=1).double().log() / 0.301).long().clamp(max=count - 1)


@cache
def thresholds(count: int) -> tuple[int, ...]:
    """The first whole second of each of `count` buckets: 0, then ceil(exp(0.301 b)), for kernels that compare instead of computing."""
    return (0, *(min(math.ceil(math.exp(0.301 * b)), 2**62) for b in range(1, count)))


class _TableLookup(torch.autograd.Function):
    """table [H, K] at buckets [...] as [H, ...]; its gradient is a histogram, which a plain index would compute by sorting."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, table: Tensor, buckets: Tensor) -> Tensor:
        ctx.save_for_backward(buckets)
        ctx.width = table.shape[1]  # type: ignore[attr-defined]
        return table.index_select(1, buckets.flatten()).view(len(table), *buckets.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (buckets,) = ctx.saved_tensors  # type: ignore[attr-defined]
        width: int = ctx.width  # type: ignore[attr-defined]
        flat = buckets.flatten()
        place = flat + width * (torch.arange(len(flat), device=flat.device) % _COPIES)
        sums = grad.new_zeros(len(grad), _COPIES * width, dtype=torch.float32).index_add_(1, place, grad.flatten(1).float())
        return sums.view(len(grad), _COPIES, width).sum(1).to(grad.dtype), None
