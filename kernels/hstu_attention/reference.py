"""HSTU attention in plain PyTorch: what every faster version is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# silu and its derivative are exactly 0 here in float32 and bfloat16, so one addition both biases and masks; -inf would give NaN.
_MASKED = -1e30
# Gradients of a time table are summed in this many copies first, so that few threads add to the same number at once.
_COPIES = 256


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    normalizer: float,
    position_bias: Tensor | None = None,
    scale: float = 1.0,
    *,
    time_bias: Tensor | None = None,
    buckets: Tensor | None = None,
    longest: int | None = None,
) -> Tensor:
    """Causal attention whose weights are silu(score) / N in place of a softmax (Zhai et al. 2024, arXiv 2402.17152, equation 2).

    For token i of a sequence and head h, over the tokens j <= i of the same sequence:

        score = scale * <q[i, h], k[j, h]> + position_bias[h, i - j] + time_bias[h, bucket(i, j)]
        out[i, h] = sum_j silu(score) * v[j, h] / normalizer

    q, k: [T, H, D]; v: [T, H, E]; offsets: [B + 1] int64, sequence b is rows offsets[b] to offsets[b + 1], which may be none, and rows
    from offsets[B] on are padding, whose output is 0; position_bias: [H, M], M at least the longest sequence, or None for 0; time_bias:
    [H, K] and buckets: [B, longest, longest] int64 from `time_buckets`, or both None; normalizer: the N of the paper, one constant for
    all sequences, so that how sequences are batched changes nothing; longest: a bound on the tokens of a sequence; without it the device
    is asked. Returns [T, H, E]. Differentiable in q, k, v and both biases. Memory O(B * H * longest ** 2).
    """
    if q.shape[0] == 0:
        return torch.zeros_like(v)
    batch, longest = offsets.shape[0] - 1, int(offsets.diff().max()) if longest is None else longest
    if position_bias is not None and position_bias.shape[1] < longest:
        raise ValueError(
            f"position_bias covers {position_bias.shape[1]} positions, the longest sequence has {longest}; give one a distance"
        )
    slot = slots(offsets, q.shape[0], longest)

    def padded(x: Tensor) -> Tensor:
        table = x.new_zeros(batch * longest + 1, *x.shape[1:]).index_copy(0, slot, x)
        return table[:-1].view(batch, longest, *x.shape[1:]).transpose(1, 2)

    bias = causal(position_bias, longest, q)
    if time_bias is not None and buckets is not None:
        bias = bias + _TableLookup.apply(time_bias, buckets).transpose(0, 1)  # type: ignore[no-untyped-call]
    scores = padded(q * scale) @ padded(k).transpose(2, 3) + bias
    out = (functional.silu(scores) @ padded(v / normalizer)).transpose(1, 2).reshape(batch * longest, *v.shape[1:])
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


def time_buckets(offsets: Tensor, key_times: Tensor, query_times: Tensor, count: int, longest: int | None = None) -> Tensor:
    """Which of `count` logarithmic buckets the time from token j to the question of token i is in: [B, longest, longest] int64.

    See `bucket`. key_times, query_times: [T] int64 seconds.
    """
    batch, longest = offsets.shape[0] - 1, int(offsets.diff().max()) if longest is None else longest
    slot = slots(offsets, key_times.shape[0], longest)

    def padded(x: Tensor) -> Tensor:
        return x.new_zeros(batch * longest + 1).index_copy(0, slot, x)[:-1].view(batch, longest)

    return bucket(padded(query_times)[:, :, None] - padded(key_times)[:, None, :], count)


def bucket(passed: Tensor, count: int) -> Tensor:
    """The bucket, 0 to count - 1, of times [...] int64 seconds: floor(ln(max(|t|, 1)) / 0.301), the last one open.

    As in the published implementation of Zhai et al. 2024; 0.301 makes a bucket 35% longer than the one before, so 64 of them reach seven
    years.
    """
    return (passed.abs().clamp(min=1).float().log() / 0.301).long().clamp(max=count - 1)


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
