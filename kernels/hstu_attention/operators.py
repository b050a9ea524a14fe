"""HSTU attention as an operator of PyTorch, and its backward as another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.hstu_attention import launch
from kernels.library import differentiable, operator

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? num_targets, Tensor? position_bias, Tensor? time_bias, Tensor? key_times, "
    "Tensor? query_times, Tensor? by_query, Tensor? by_key, SymInt max_seq_len, float alpha, float normalizer, SymInt max_attn_len, "
    "SymInt contextual_len, bool tf32, bool deterministic"
)
# How many of them are tensors, which come first, and how many are not.
_TENSORS, _OTHERS = 11, 7

# From how many tokens a sequence on the kernels for Hopper are the faster ones, by a head's width. With a time bias, for which the general
# kernels look each pair's bucket up again in every head, it is half as many.
_LONG = {64: 512, 128: 256}


# The most bytes that a batch's buckets by pairs may take. Beyond, the general kernels find them as they go.
_ROOM = 4 << 30


def _hopper(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, buckets: int) -> Any:
    """The module that has kernels for Hopper, where it takes q, k, v and, with a time bias, so many buckets."""
    longest = 2 * max_seq_len if buckets else max_seq_len
    if not q.is_cuda or longest < _LONG.get(q.shape[2], longest + 1):
        return None
    from kernels.hstu_attention import hopper

    if buckets > hopper.MOST_BUCKETS or (buckets and hopper.bytes_of_buckets(offsets.shape[0] - 1, max_seq_len) > _ROOM):
        return None
    return hopper if hopper.eligible(q, k, v, max_seq_len) else None


def _for_hopper(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, num_targets: Tensor | None, window: int, context: int,
    position_bias: Tensor | None, time_bias: Tensor | None,
) -> Any:  # fmt: skip
    """That module, where it takes a call: one without targets, window and context."""
    # A time bias alone is not worth a kernel of its own.
    if num_targets is not None or window or context or (position_bias is None and time_bias is not None):
        return None
    return _hopper(q, k, v, offsets, max_seq_len, 0 if time_bias is None else time_bias.shape[1])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, num_targets: Tensor | None, position_bias: Tensor | None, time_bias: Tensor | None,
    key_times: Tensor | None, query_times: Tensor | None, by_query: Tensor | None, by_key: Tensor | None, max_seq_len: int, alpha: float,
    normalizer: float, window: int, context: int, tf32: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    given = q, k, v, offsets, max_seq_len
    biases = position_bias, time_bias, key_times, query_times
    if hopper := _for_hopper(*given, num_targets, window, context, position_bias, time_bias):
        out: Tensor = hopper.forward(*given, alpha, normalizer, *biases, by_query)
        return out
    return launch.forward(*given, alpha, normalizer, num_targets, window, context, *biases, tf32, deterministic)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, num_targets: Tensor | None, position_bias: Tensor | None,
    time_bias: Tensor | None, key_times: Tensor | None, query_times: Tensor | None, by_query: Tensor | None, by_key: Tensor | None,
    max_seq_len: int, alpha: float, normalizer: float, window: int, context: int, tf32: bool, deterministic: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    given = q, k, v, offsets, max_seq_len
    biases = position_bias, time_bias, key_times, query_times
    if not deterministic and (hopper := _for_hopper(*given, num_targets, window, context, position_bias, time_bias)):
        found: tuple[Tensor, ...] = hopper.backward(grad, *given, alpha, normalizer, *biases, by_key)
        return found
    return launch.backward(grad, *given, alpha, normalizer, num_targets, window, context, *biases, tf32, deterministic)


def pair_buckets(
    q: Tensor, offsets: Tensor, max_seq_len: int, key_times: Tensor, query_times: Tensor, count: int
) -> tuple[Tensor | None, Tensor | None]:
    """Buckets of all pairs by query and, where its kernels will run backward, by key, if the kernels of a call with q would read them."""
    if hopper := _hopper(q, q, q, offsets, max_seq_len, count):
        backward = torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
        found: tuple[Tensor | None, Tensor | None] = hopper.pair_buckets(
            key_times, query_times, offsets, max_seq_len, count, by_key=backward
        )
        return found
    return None, None


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return v.new_empty(v.shape)


def _fake_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    q, k, v, _, _, *biases = inputs[:7]
    tables = (v.new_empty(0) if table is None else table.new_empty(table.shape) for table in biases)
    return (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *tables)


attention = operator(f"hstu_attention({_INPUTS}) -> Tensor", _forward, _fake)
attention_backward = operator(
    f"hstu_attention_backward(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)", _backward, _fake_backward
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.others = inputs[_TENSORS:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv, *tables = attention_backward(grad, *ctx.saved_tensors, *ctx.others)
    return dq, dk, dv, None, None, *tables, *[None] * (_TENSORS + _OTHERS - 7)


differentiable(attention, _save, _differentiate)
