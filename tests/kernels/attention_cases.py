"""Inputs of HSTU attention, and its definition written out element by element in float64: the oracle of every implementation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch


def case(
    lengths: list[int],
    heads: int = 2,
    dim: int = 3,
    value_dim: int = 4,
    *,
    targets: list[int] | None = None,
    position: bool = True,
    times: bool = False,
    buckets: int = 20,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    strided: bool = False,
    padding: int = 0,
    **rest: Any,
) -> dict[str, Any]:
    """Keyword arguments of `hstu_attention`. strided: q, k, v are views of one projection; padding: tokens behind the last sequence."""
    generator = torch.Generator().manual_seed(seed)
    total, longest = sum(lengths) + padding, max([1, *lengths])

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    q, k, v = normal(total, heads, dim), normal(total, heads, dim), normal(total, heads, value_dim)
    if strided:
        widths = [heads * dim, heads * dim, heads * value_dim]
        both = torch.cat([x.flatten(1) for x in (q, k, v)], 1)
        q, k, v = (x.unflatten(1, (heads, -1)) for x in both.split(widths, 1))
    found: dict[str, Any] = {"q": q, "k": k, "v": v, "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)}
    found["max_seq_len"] = longest + 2
    if position:
        found["position_bias"] = normal(heads, longest + 2).float()
    if times:
        gaps = torch.randint(0, 10**6, (total,), generator=generator)
        found["key_times"] = 10**9 + gaps.cumsum(0)
        found["query_times"] = found["key_times"] + torch.randint(0, 10**4, (total,), generator=generator)
        found["time_bias"] = normal(heads, buckets).float()
    if targets is not None:
        found["num_targets"] = torch.tensor(targets, dtype=torch.int64)
    return found | rest


def sees(i: int, j: int, length: int, targets: int, window: int, context: int) -> bool:
    """Whether token i of a sequence sees token j, by cases."""
    history = length - targets
    if i == j:
        return True
    if j >= history:
        return False
    if i < context:
        return True
    # The rank of a token: 0 for context, then 1, 2, ... for history, and one behind for all targets.
    rank = [0 if t < context else min(t, history) - max(context - 1, 0) for t in (i, j)]
    if context == 0:
        rank = [min(t, history) for t in (i, j)]
    return rank[1] < rank[0] and (window == 0 or rank[0] - rank[1] <= window)


def by_element(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    *,
    max_seq_len: int,
    alpha: float = 1.0,
    normalizer: float | None = None,
    num_targets: torch.Tensor | None = None,
    max_attn_len: int = 0,
    contextual_len: int = 0,
    position_bias: torch.Tensor | None = None,
    time_bias: torch.Tensor | None = None,
    key_times: torch.Tensor | None = None,
    query_times: torch.Tensor | None = None,
) -> np.ndarray:
    """The output [T, H, E] in float64."""
    Q, K, V = (x.detach().double().numpy() for x in (q, k, v))
    out = np.zeros(V.shape)
    for b, (start, stop) in enumerate(pairwise(offsets.tolist())):
        targets = 0 if num_targets is None else int(num_targets[b])
        history = stop - start - targets
        for i in range(stop - start):
            for j in range(stop - start):
                if not sees(i, j, stop - start, targets, max_attn_len, contextual_len):
                    continue
                score = alpha * (Q[start + i] * K[start + j]).sum(1)
                if position_bias is not None:
                    score = score + position_bias.detach().double().numpy()[:, max(min(i, history) - min(j, history), 0)]
                if time_bias is not None and key_times is not None and query_times is not None:
                    passed = abs(int(query_times[start + i]) - int(key_times[start + j]))
                    place = min(math.floor(math.log(max(passed, 1)) / 0.301), time_bias.shape[1] - 1)
                    score = score + time_bias.detach().double().numpy()[:, place]
                weight = score / (1 + np.exp(-score)) / (max_seq_len if normalizer is None else normalizer)
                out[start + i] += weight[:, None] * V[start + j]
    return out
