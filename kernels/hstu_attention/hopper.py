"""Causal HSTU attention on Hopper GPUs: which calls the kernels take, and how they are launched."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.hstu_attention.hopper_backward import backward_kernel
from kernels.hstu_attention.hopper_bias import CELLS, MARGIN, prepare_kernel
from kernels.hstu_attention.hopper_forward import forward_kernel
from kernels.hstu_attention.hopper_tables import BUCKETS
from kernels.hstu_attention.reference import thresholds

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}
_BLOCK = 128
# Key tiles that the forward holds in shared memory, and whether its two groups of warps take turns, by width: with 64 columns the special
# function unit is as busy as the tensor cores, and neither should wait for both groups at once.
_FORWARD = {64: (3, True), 128: (2, False)}


def eligible(q: Tensor, k: Tensor, v: Tensor, max_seq_len: int) -> bool:
    """Whether `forward` and `backward` take such a call: no targets, window or context, and no time bias alone, which the caller checks."""
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[2] == v.shape[2]
        and q.shape[2] in _FORWARD
        and q.shape[0] > 0
        and max_seq_len > 0
        and _copyable(q)
        and _copyable(k)
        and _copyable(v)
        and torch.cuda.get_device_capability(q.device)[0] == 9
    )


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float,
    position_bias: Tensor | None = None, time_bias: Tensor | None = None, key_times: Tensor | None = None,
    query_times: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`hstu_attention` [T, H, D] of an eligible call."""
    tokens, heads, width = q.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    biases: tuple[Any, ...]
    if position_bias is None:
        counter = torch.zeros(1, dtype=torch.int32, device=v.device)
        biases = (None, None, None, None, None, None, None, 0, 0)
    else:
        counter = torch.empty(1, dtype=torch.int32, device=v.device)
        biases = _prepare(offsets, max_seq_len, position_bias, time_bias, key_times, query_times, counter)
    sequences = offsets.shape[0] - 1
    blocks = -(-max_seq_len // _BLOCK)
    programs = max(min(_processors(q.device), blocks * heads * sequences), 1)
    stages, turns = _FORWARD[width]
    forward_kernel[(programs,)](
        _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), out, offsets, counter, *biases, tokens, sequences, blocks, heads,
        q.stride(1), k.stride(1), v.stride(1), alpha / 2, 1 / normalizer, width, stages, turns, num_warps=4, maxnreg=168,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float,
    position_bias: Tensor | None = None, time_bias: Tensor | None = None, key_times: Tensor | None = None,
    query_times: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k, v and the tables. That of q and the tables' are sums in no certain order: last bits differ from run to run."""
    tokens, heads, width = q.shape
    if not _copyable(grad):
        grad = grad.contiguous()
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    sequences = offsets.shape[0] - 1
    blocks = -(-max_seq_len // _BLOCK)
    # What is summed in float32: the gradients of q and of the tables; and by sequence and head, how many programs have added all they had
    # to that of q. All parts but the last are of whole lines, so that the next starts where a kernel reads fast.
    room = 0 if position_bias is None else _room(position_bias)
    timed = 0 if time_bias is None else BUCKETS.value * _BLOCK
    sizes = [q.numel(), heads * timed, -(-heads * room // 4) * 4, sequences * heads]
    total, times, positions, ends = torch.zeros(sum(sizes), dtype=torch.float32, device=q.device).split(sizes)  # type: ignore[no-untyped-call]
    total = total.view(q.shape)
    biases: tuple[Any, ...] = (None, None, None, None, None, None, None, 0, 0)
    if position_bias is not None:
        counter = torch.empty(1, dtype=torch.int32, device=v.device)
        table, key_seconds, query_seconds, _, _, by_bucket, _, _, buckets = _prepare(
            offsets, max_seq_len, position_bias, time_bias, key_times, query_times, counter
        )
        pairs = _pairs(buckets, q.device) if timed else None
        biases = (table, key_seconds, query_seconds, pairs, by_bucket, positions, times if timed else None, room, buckets)
    backward_kernel[(blocks * heads * (sequences + 1),)](
        _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), _matrix(grad, 64), _matrix(total, 64), total,
        ends.view(torch.int32), dq, dk, dv, offsets, *biases, tokens, sequences, blocks, heads,
        q.stride(1), k.stride(1), v.stride(1), grad.stride(1), alpha / 2, alpha / 2 / normalizer, 1 / normalizer, width, 2,
        num_warps=8, maxnreg=168 if position_bias is None else 128,
    )  # fmt: skip
    by_distance = by_bucket = v.new_empty(0)
    if position_bias is not None:
        by_distance = positions[: heads * room].view(heads, room)[:, : position_bias.shape[1]].contiguous().to(position_bias.dtype)
    if time_bias is not None:
        found = times.view(heads, BUCKETS.value, _BLOCK).sum(2)[:, : time_bias.shape[1]]
        # No time reaches more buckets.
        by_bucket = functional.pad(found, (0, time_bias.shape[1] - found.shape[1])).to(time_bias.dtype)
    return dq, dk, dv, by_distance, by_bucket


@cache
def _pairs(buckets: int, device: torch.device) -> Tensor:
    """Of each cell, where a bucket starts inside and the bucket that it starts in, side by side."""
    cells, _ = _cells(buckets, device)
    return cells.view(2, CELLS.value).t().flatten()


def _room(position_bias: Tensor) -> int:
    """Numbers by distance that the kernels want for a head: pairs that are masked or absent read and add something too."""
    return int(position_bias.shape[1] + 3 * MARGIN.value)


def _prepare(
    offsets: Tensor, longest: int, position_bias: Tensor, time_bias: Tensor | None, key_times: Tensor | None, query_times: Tensor | None,
    counter: Tensor,
) -> tuple[Any, ...]:  # fmt: skip
    """What the kernels read of the biases; see `prepare_kernel`. Zeros the counter, which the forward takes jobs by, on the way."""
    heads, width = position_bias.shape
    device = position_bias.device
    if position_bias.stride(1) != 1:
        position_bias = position_bias.contiguous()
    room = _room(position_bias)
    if time_bias is None or key_times is None or query_times is None:
        positions = torch.empty(heads * room, dtype=torch.float32, device=device)
        found = (positions, None, None, None, None, None, None, room, 0)
        prepare_kernel[(heads,)](
            position_bias, None, None, None, offsets, None, positions, None, None, None, None, counter,
            width, room, 0, position_bias.stride(0), 0, heads, 1,
        )  # fmt: skip
        return found
    if time_bias.stride(1) != 1:
        time_bias = time_bias.contiguous()
    buckets = time_bias.shape[1]
    sizes = [heads * room, heads * buckets, heads * 2 * CELLS.value]
    positions, by_bucket, by_cell = torch.empty(sum(sizes), dtype=torch.float32, device=device).split(sizes)  # type: ignore[no-untyped-call]
    key_seconds, query_seconds = torch.empty(2, *key_times.shape, dtype=torch.int32, device=device)
    cells, firsts = _cells(buckets, device)
    chunks = -(-longest // 512)
    prepare_kernel[(heads + (offsets.shape[0] - 1) * chunks,)](
        position_bias, time_bias, key_times.contiguous(), query_times.contiguous(), offsets, cells, positions, by_bucket, by_cell,
        key_seconds, query_seconds, counter, width, room, buckets, position_bias.stride(0), time_bias.stride(0), heads, chunks,
    )  # fmt: skip
    return positions, key_seconds, query_seconds, cells, firsts, by_bucket, by_cell, room, buckets


@cache
def _cells(buckets: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each quarter of an octave of seconds, where a bucket starts inside, and the bucket it starts in; and where all buckets start."""
    firsts = thresholds(buckets)
    starts = [-(-((4 + cell % 4) << cell // 4) // 4) for cell in range(CELLS.value + 1)]
    lows = [max(b for b, first in enumerate(firsts) if first <= start) for start in starts[:-1]]
    never = 2**31 - 1
    cuts = [
        min(never, firsts[low + 1]) if low + 1 < buckets and firsts[low + 1] < end else never
        for low, end in zip(lows, starts[1:], strict=True)
    ]
    whole = torch.tensor([*cuts, *lows, *(min(never, first) for first in firsts)], dtype=torch.int32, device=device)
    return whole[: 2 * CELLS.value], whole[2 * CELLS.value :]


class _Matrix(TensorDescriptor):  # type: ignore[misc]
    """A descriptor without the checks of its facts, which `eligible` has made."""

    def __post_init__(self) -> None:
        pass


def _matrix(x: Tensor, rows: int) -> _Matrix:
    """x [T, H, D] as a matrix of T rows, of which the copy engine takes `rows` by D at a time."""
    tokens, heads, width = x.shape
    row, head, _ = x.stride()
    return _Matrix(x, [tokens, (heads - 1) * head + width], [row, 1], [rows, width], _layout(rows, width, x.dtype))


def _copyable(x: Tensor) -> bool:
    """Whether the copy engine can read x [T, H, D] as a matrix of T rows."""
    row, head, element = x.stride()
    return element == 1 and row % 8 == 0 and 0 <= (x.shape[1] - 1) * head <= row - x.shape[2] and x.data_ptr() % 16 == 0


@cache
def _layout(rows: int, width: int, dtype: torch.dtype) -> Any:
    return gl.NVMMASharedLayout.get_default_for([rows, width], _TYPES[dtype])


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
