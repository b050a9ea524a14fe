"""Launches the attention kernels: their shapes, the order of their programs, and the gradients' buffers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kernels.hstu_attention.backward import backward_kernel
from kernels.hstu_attention.forward import forward_kernel
from kernels.hstu_attention.reference import thresholds
from kernels.launching import launch
from kernels.library import shaped_like

# Keys and values that may wait in the L2 cache for the next block of queries.
_CACHED = 16 << 20


@dataclass(frozen=True)
class Shape:
    """Of a kernel: the tokens a program owns, the tokens of a step, its warps, its loads' depth, and a bound on a thread's registers."""

    block: int
    step: int
    warps: int
    stages: int
    registers: int | None = None


def forward_shape(dtype: torch.dtype, wide: int, longest: int, biased: bool, timed: bool) -> Shape:
    """What was fastest on an H100, by the wider of a head's dimensions."""
    if dtype == torch.float32 or (timed and longest <= 256):
        return Shape(32, 32, 4, 2)
    if wide > 128:
        return Shape(64, 32, 4, 2)
    if timed or (longest <= 256 and wide <= 64):
        return Shape(64, 64, 4, 2)
    if wide <= 64:
        return Shape(128, 64, 4, 3)
    return Shape(64, 32, 4, 3, registers=168) if biased else Shape(128, 32, 8, 3, registers=128)


def backward_shape(dtype: torch.dtype, wide: int, longest: int, timed: bool) -> Shape:
    """What was fastest on an H100, by the wider of a head's dimensions."""
    if dtype == torch.float32:
        return Shape(32, 32, 4, 1)
    if timed and longest <= 256:
        return Shape(32, 32, 4, 2)
    if wide > 128:
        return Shape(64, 32, 8, 1)
    if timed or (longest <= 256 and wide <= 64):
        return Shape(64, 32, 4, 2)
    if wide <= 64:
        return Shape(64, 64, 4, 3)
    return Shape(64, 32, 4, 3) if longest > 512 else Shape(64, 64, 4, 2)


@cache
def _firsts(count: int, device: torch.device) -> Tensor:
    """`thresholds` for the kernels: int32, and one more that no time reaches."""
    return torch.tensor([*(min(t, 2**31 - 1) for t in thresholds(count)), 2**31 - 1], dtype=torch.int32, device=device)


def _pad(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _precision(q: Tensor, tf32: bool) -> str:
    return "tf32" if tf32 or q.dtype != torch.float32 else "ieee"


def _group(q: Tensor, v: Tensor, longest: int, blocks: int, pairs: int) -> int:
    """How many (sequence, head) pairs go together: as many as fit the cache, and enough of them for a full GPU."""
    fit = _CACHED // max(1, longest * (q.shape[2] + v.shape[2]) * q.element_size())
    return min(pairs, max(fit, -(-264 // blocks), 1))


def _blocks(longest: int, shape: Shape) -> int:
    return max(1, -(-longest // shape.block))


def _inner(x: Tensor) -> Tensor:
    """x with its last dimension in order, which is all that the kernels ask for."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _inner_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _inner(x)


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, alpha: float, normalizer: float, num_targets: Tensor | None,
    window: int, context: int, position_bias: Tensor | None, time_bias: Tensor | None, key_times: Tensor | None,
    query_times: Tensor | None, tf32: bool, deterministic: bool, shape: Shape | None = None,
) -> Tensor:  # fmt: skip
    tokens, heads, dim = q.shape
    out = torch.empty(tokens, heads, v.shape[2], dtype=v.dtype, device=v.device)
    if out.numel() == 0:
        return out
    q, k, v = _inner(q), _inner(k), _inner(v)
    position_bias, time_bias = _inner_or_none(position_bias), _inner_or_none(time_bias)
    shape = shape or forward_shape(q.dtype, max(dim, v.shape[2]), longest, position_bias is not None, time_bias is not None)
    pairs, blocks = offsets.shape[0] * heads, _blocks(longest, shape)
    buckets = 0 if time_bias is None else time_bias.shape[1]
    launch(
        forward_kernel, pairs * blocks, q, k, v, out, offsets, num_targets, position_bias, time_bias, key_times, query_times,
        None if time_bias is None else _firsts(buckets, q.device),
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        0 if position_bias is None else position_bias.stride(0), 0 if time_bias is None else time_bias.stride(0),
        tokens, blocks, pairs, _group(q, v, longest, blocks, pairs), alpha, 1 / normalizer, window or None, context or None, buckets,
        H=heads, D=dim, E=v.shape[2], PAD_D=_pad(dim), PAD_E=_pad(v.shape[2]), NATIVE=q.is_cuda, PRECISION=_precision(q, tf32),
        ROWS=shape.block, COLS=shape.step, num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, alpha: float, normalizer: float,
    num_targets: Tensor | None, window: int, context: int, position_bias: Tensor | None, time_bias: Tensor | None,
    key_times: Tensor | None, query_times: Tensor | None, tf32: bool, deterministic: bool, shape: Shape | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tokens, heads, dim = q.shape
    value_dim = v.shape[2]
    shape = shape or backward_shape(q.dtype, max(dim, value_dim), longest, time_bias is not None)
    pairs, blocks = offsets.shape[0] * heads, _blocks(longest, shape)
    # Alone with its copy, a program adds to it in one order.
    copies = max((offsets.shape[0] - 1) * blocks, 1) if deterministic else 1
    dq, dk, dv = shaped_like(q, k, v)
    buckets = 0 if time_bias is None else time_bias.shape[1]
    positions = times = None
    if position_bias is not None:
        positions = torch.zeros(heads, copies, position_bias.shape[1], dtype=torch.float32, device=q.device)
    if time_bias is not None:
        times = torch.zeros(heads, copies, buckets, shape.block, dtype=torch.float32, device=q.device)
    if tokens:
        grad, q, k, v = _inner(grad), _inner(q), _inner(k), _inner(v)
        position_bias, time_bias = _inner_or_none(position_bias), _inner_or_none(time_bias)
        launch(
            backward_kernel, 2 * pairs * blocks, grad, q, k, v, dq, dk, dv, offsets, num_targets, position_bias, time_bias,
            positions, times, key_times, query_times, None if time_bias is None else _firsts(buckets, q.device),
            grad.stride(0), grad.stride(1), q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            0 if position_bias is None else position_bias.stride(0), 0 if time_bias is None else time_bias.stride(0),
            tokens, blocks, pairs, _group(q, v, longest, blocks, pairs), alpha, 1 / normalizer, window or None, context or None, buckets,
            0 if position_bias is None else position_bias.shape[1], copies,
            H=heads, D=dim, E=value_dim, PAD_D=_pad(dim), PAD_E=_pad(value_dim),
            NATIVE=q.is_cuda, PRECISION=_precision(q, tf32), DETERMINISTIC=deterministic,
            BLOCK=shape.block, STEP=shape.step, num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers,
        )  # fmt: skip
    # An operator returns tensors only: an empty one for no table.
    by_distance = by_bucket = v.new_empty(0)
    if position_bias is not None and positions is not None:
        by_distance = (positions[:, 0] if copies == 1 else positions.sum(1)).to(position_bias.dtype)
    if time_bias is not None and times is not None:
        by_bucket = times.sum((1, 3)).to(time_bias.dtype)
    return dq, dk, dv, by_distance, by_bucket
