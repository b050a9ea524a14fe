"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.hstu_attention.reference import attend

_COMPILED = (torch.float32, torch.float16, torch.bfloat16)


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    max_seq_len: int,
    alpha: float = 1.0,
    normalizer: float | None = None,
    num_targets: Tensor | None = None,
    max_attn_len: int = 0,
    contextual_len: int = 0,
    position_bias: Tensor | None = None,
    time_bias: Tensor | None = None,
    key_times: Tensor | None = None,
    query_times: Tensor | None = None,
    pair_buckets: tuple[Tensor | None, Tensor | None] = (None, None),
    deterministic: bool = False,
) -> Tensor:
    """Causal attention whose weights are silu(score) / N in place of a softmax (Zhai et al. 2024, arXiv 2402.17152, equation 2).

    For token i of a sequence and head h, over the tokens j of the same sequence that i sees:

        score = alpha * <q[i, h], k[j, h]> + position_bias[h, distance(i, j)] + time_bias[h, bucket(query_times[i] - key_times[j])]
        out[i, h] = sum_j silu(score) * v[j, h] / normalizer

    q, k: [T, H, D]; v: [T, H, E], of one floating type, with any strides; offsets: [B + 1] int64, sequence b is rows offsets[b] to
    offsets[b + 1], which may be none, and rows from offsets[B] on are padding, whose output is 0; max_seq_len: at least the longest
    sequence's tokens; normalizer: the N of the paper, max_seq_len by default; one constant for all sequences, so that how they are batched
    changes nothing.

    Who sees whom. Token i sees itself and the tokens before it. num_targets: [B] int64, the last tokens of each sequence, which are
    candidates: each sees the history and itself, and nobody sees it. max_attn_len: how far back a token sees, 0 for all the way, counted
    in tokens of history, where the contextual tokens count as one and so do the targets. contextual_len: the first tokens of each
    sequence, which describe the user: they see each other and the whole history.

    Biases. position_bias: [H, M], M at least max_seq_len; distance is i - j, 0 where j comes later, and all targets stand at the place
    right behind the history. time_bias: [H, K] with key_times and query_times: [T] int64 seconds; bucket is
    floor(ln(max(|t|, 1)) / 0.301), at most K - 1, as in the published implementation. Times lie within 34 years of those they are
    compared with; what is further apart counts as 34 years. pair_buckets: what `pair_buckets` made of the same offsets, max_seq_len, times
    and K; calls that are not given it make it for themselves where they need it.

    Returns [T, H, E]. Differentiable in q, k, v and both biases. deterministic: gradients repeat bit for bit, as they also do under
    `torch.use_deterministic_algorithms`; otherwise, and faster, some are summed in the order in which the GPU gets to them. Sums are
    float32. On a GPU float32 is multiplied exactly, or as TF32 if `torch.backends.cuda.matmul.allow_tf32` is set. Raises ValueError for
    shapes that do not fit.
    """
    _check(q, k, v, offsets, max_seq_len, position_bias, time_bias, key_times, query_times)
    normalizer = float(max_seq_len if normalizer is None else normalizer)
    biases = position_bias, time_bias, key_times, query_times
    if not compiled(q) or q.dtype not in _COMPILED:
        return attend(q, k, v, offsets, max_seq_len, alpha, normalizer, num_targets, max_attn_len, contextual_len, *biases)
    from kernels.hstu_attention.operators import attention

    tf32 = q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    fixed = deterministic or torch.are_deterministic_algorithms_enabled()
    out: Tensor = attention(
        q, k, v, offsets, num_targets, *biases, *pair_buckets, max_seq_len, alpha, normalizer, max_attn_len, contextual_len, tf32, fixed
    )
    return out


def pair_buckets(
    q: Tensor, offsets: Tensor, *, max_seq_len: int, key_times: Tensor, query_times: Tensor, buckets: int
) -> tuple[Tensor | None, Tensor | None]:
    """The time bucket of every pair of tokens, for the `pair_buckets` of several calls of `hstu_attention` with the same times.

    They depend on neither head nor layer. Only the kernels for Hopper read them (a byte a pair in the forward, and in the backward);
    (None, None) where those would not take a call with q: [T, H, D]. buckets: the K of the calls' time biases; all else is as there.
    """
    if not compiled(q) or q.dtype not in _COMPILED:
        return None, None
    from kernels.hstu_attention import operators

    return operators.pair_buckets(q, offsets, max_seq_len, key_times, query_times, buckets)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_seq_len: int,
    position_bias: Tensor | None,
    time_bias: Tensor | None,
    key_times: Tensor | None,
    query_times: Tensor | None,
) -> None:
    if q.shape != k.shape or q.shape[:2] != v.shape[:2]:
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: q and k need one shape [T, H, D], v needs [T, H, E]")
    if offsets.ndim != 1 or offsets.shape[0] < 1:
        raise ValueError(f"offsets {list(offsets.shape)} need the shape [B + 1]")
    for name, table in (("position_bias", position_bias), ("time_bias", time_bias)):
        if table is not None and (table.ndim != 2 or table.shape[0] != q.shape[1]):
            raise ValueError(f"{name} {list(table.shape)} needs one row for each of the {q.shape[1]} heads")
    if position_bias is not None and position_bias.shape[1] < max_seq_len:
        raise ValueError(
            f"position_bias covers {position_bias.shape[1]} distances and max_seq_len is {max_seq_len}; give one for each distance"
        )
    if time_bias is not None and (key_times is None or query_times is None):
        raise ValueError("time_bias needs key_times and query_times, [T] int64 seconds")
