"""Causal HSTU attention on Hopper GPUs: which calls the kernels take, and how they are launched."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.hstu_attention.hopper_backward import backward_kernel
from kernels.hstu_attention.hopper_bias import BUCKETS, MARGIN, prepare_kernel
from kernels.hstu_attention.hopper_buckets import pair_buckets, tiles
from kernels.hstu_attention.hopper_forward import forward_kernel
from kernels.hstu_attention.hopper_tables import collect_kernel
from kernels.launching import launch
from kernels.library import shaped_like

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32, torch.int32: gl.int32}
_BLOCK = 128
MOST_BUCKETS = int(BUCKETS.value)
# Key tiles that the forward holds in shared memory, and whether its two groups of warps take turns, without a time bias and with one, by
# width: as was fastest on an H100.
_FORWARD = {64: (3, True, False), 128: (2, False, True)}


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
        and _generation(q.device) == 9
    )


def bytes_of_buckets(sequences: int, longest: int) -> int:
    """Of one order of the words that `pair_buckets` makes."""
    return sequences * tiles(longest) * _BLOCK * _BLOCK


def forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float,
    position_bias: Tensor | None = None, time_bias: Tensor | None = None, key_times: Tensor | None = None,
    query_times: Tensor | None = None, by_query: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`hstu_attention` [T, H, D] of an eligible call; by_query: its `pair_buckets`, found here where not given."""
    tokens, heads, width = q.shape
    (out,) = shaped_like(v)
    sequences = offsets.shape[0] - 1
    positions, by_pair, words, room = None, None, None, 0
    if position_bias is None:
        counter = torch.zeros(1, dtype=torch.int32, device=v.device)
    else:
        counter = torch.empty(1, dtype=torch.int32, device=v.device)
        positions, by_pair, room = _prepare(position_bias, time_bias, counter, True)
    if time_bias is not None:
        words = _words(by_query, key_times, query_times, offsets, max_seq_len, time_bias.shape[1], False)
    blocks = -(-max_seq_len // _BLOCK)
    programs = _programs(q, blocks * heads * sequences)
    stages, *turns = _FORWARD[width]
    launch(
        forward_kernel, programs, _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), out, offsets, counter, positions, by_pair, words,
        room, tokens, sequences, blocks, heads, q.stride(1), k.stride(1), v.stride(1), alpha / 2, 1 / normalizer,
        WIDTH=width, STAGES=stages, TURNS=turns[time_bias is not None], num_warps=4, maxnreg=168,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float,
    position_bias: Tensor | None = None, time_bias: Tensor | None = None, key_times: Tensor | None = None,
    query_times: Tensor | None = None, by_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k, v and the tables. That of q and the tables' are sums in no certain order: last bits differ from run to run."""
    tokens, heads, width = q.shape
    if not _copyable(grad):
        grad = grad.contiguous()
    dq, dk, dv = shaped_like(q, k, v)
    sequences = offsets.shape[0] - 1
    blocks = -(-max_seq_len // _BLOCK)
    # What starts at zero: float32 sums of the tables' gradients; the number of the next job, and how many programs have added to each
    # block of queries. Parts are of whole lines, so that the next starts where a kernel reads fast.
    room = 0 if position_bias is None else _room(position_bias)
    timed = 0 if time_bias is None else BUCKETS.value * _BLOCK
    sizes = [heads * timed, -(-heads * room // 4) * 4, 1 + sequences * heads * blocks]
    times, positions, added = torch.zeros(sum(sizes), dtype=torch.float32, device=q.device).split_with_sizes(sizes)
    added = added.view(torch.int32)
    # Sums of q's gradient; whole blocks are written, so that sequences have room behind them.
    total = torch.empty(tokens + _BLOCK * sequences, heads, width, dtype=torch.float32, device=q.device)
    biases: tuple[Any, ...] = (None, None, None, None, None, 0)
    if position_bias is not None:
        table, by_bucket, _ = _prepare(position_bias, time_bias, added)
        words = None
        if time_bias is not None:
            found = _words(by_key, key_times, query_times, offsets, max_seq_len, time_bias.shape[1], True)
            # The copy engine takes the 128 rows of a tile at a time.
            words = _Matrix(found, [found.numel() // 16, 16], [16, 1], _BLOCK, 16)
        biases = (table, by_bucket, words, positions, times if timed else None, room)
    programs = _programs(q, blocks * heads * sequences)
    launch(
        backward_kernel, programs, _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), _matrix(grad, 64), _matrix(total, 64),
        added, dq, dk, dv, offsets, *biases, tokens, sequences, blocks, heads,
        q.stride(1), k.stride(1), v.stride(1), grad.stride(1), alpha / 2, alpha / 2 / normalizer, 1 / normalizer,
        WIDTH=width, STAGES=2, num_warps=8, maxnreg=168 if position_bias is None else 128,
    )  # fmt: skip
    position_grad = time_grad = v.new_empty(0)
    if position_bias is not None:
        (position_grad,), buckets = shaped_like(position_bias), 0
        if time_bias is not None:
            (time_grad,), buckets = shaped_like(time_bias), time_bias.shape[1]
        launch(
            collect_kernel, (heads, max(-(-position_bias.shape[1] // 512), -(-buckets // 8))),
            positions, times if timed else None, position_grad, time_grad if timed else None, room, position_bias.shape[1], buckets,
        )  # fmt: skip
    return dq, dk, dv, position_grad, time_grad


def _words(
    given: Tensor | None, key_times: Tensor | None, query_times: Tensor | None, offsets: Tensor, longest: int, count: int, by_key: bool
) -> Tensor:
    """What `pair_buckets` makes for the backward (by_key) or the forward: as given, or found here."""
    if given is None:
        assert key_times is not None
        assert query_times is not None
        given = pair_buckets(key_times, query_times, offsets, longest, count, not by_key, by_key)[by_key]
        assert given is not None
    sequences = offsets.shape[0] - 1
    if (size := 4 * given.numel()) != (wanted := bytes_of_buckets(sequences, longest)):
        raise ValueError(
            f"pair_buckets of {size} bytes are not of this call's offsets [{sequences + 1}] and max_seq_len {longest}, which "
            f"need {wanted}; make them with the same"
        )
    return given


def _room(position_bias: Tensor) -> int:
    """Numbers by distance that the kernels want for a head: pairs that are masked or absent read and add something too."""
    return int(position_bias.shape[1] + 3 * MARGIN.value)


def _prepare(position_bias: Tensor, time_bias: Tensor | None, counter: Tensor, paired: bool = False) -> tuple[Tensor, Tensor | None, int]:
    """What the kernels read of the tables, and how many numbers the first has for a head; see `prepare_kernel`. Zeros the counter.

    paired: as pairs, where there is a time bias.
    """
    heads, width = position_bias.shape
    if position_bias.stride(1) != 1:
        position_bias = position_bias.contiguous()
    room, second = _room(position_bias), 0
    paired = paired and time_bias is not None
    if time_bias is not None:
        if time_bias.stride(1) != 1:
            time_bias = time_bias.contiguous()
        second = BUCKETS.value**2 if paired else BUCKETS.value
    # The second starts where a kernel reads fast.
    sizes = [-(-heads * room // 4) * 4, heads * second]
    dtype = torch.int32 if paired else torch.float32
    positions, table = torch.empty(sum(sizes), dtype=dtype, device=position_bias.device).split_with_sizes(sizes)
    by_bucket, by_pair = (None, table) if paired else (None if time_bias is None else table, None)
    launch(
        prepare_kernel, (heads, -(-max(room, second) // 512)), position_bias, time_bias, positions, by_bucket, by_pair, counter,
        width, room, 0 if time_bias is None else time_bias.shape[1],
        position_bias.stride(0), 0 if time_bias is None else time_bias.stride(0),
    )  # fmt: skip
    return positions, by_pair if paired else by_bucket, room


class _Matrix(TensorDescriptor):  # type: ignore[misc]
    """A descriptor, for `launch`, of a matrix of which the copy engine takes `rows` by `columns` at a time.

    It has what every launch reads; the rest, which is for Triton to compile for, follows from its kind. Its facts are not checked again:
    `eligible` has done that.
    """

    def __init__(self, base: Tensor, shape: list[int], strides: list[int], rows: int, columns: int) -> None:
        self.base, self.shape, self.strides, self.kind = base, shape, strides, (rows, columns, base.dtype)

    @property
    def block_shape(self) -> list[int]:
        return list(self.kind[:2])

    @property
    def layout(self) -> Any:
        rows, columns, dtype = self.kind
        return gl.NVMMASharedLayout.get_default_for([rows, columns], _TYPES[dtype])


def _matrix(x: Tensor, rows: int) -> _Matrix:
    """x [T, H, D] as a matrix of T rows, of which the copy engine takes `rows` by D at a time."""
    tokens, heads, width = x.shape
    row, head, _ = x.stride()
    return _Matrix(x, [tokens, (heads - 1) * head + width], [row, 1], rows, width)


def _copyable(x: Tensor) -> bool:
    """Whether the copy engine can read x [T, H, D] as a matrix of T rows."""
    row, head, element = x.stride()
    return element == 1 and row % 8 == 0 and 0 <= (x.shape[1] - 1) * head <= row - x.shape[2] and x.data_ptr() % 16 == 0


def _programs(q: Tensor, jobs: int) -> int:
    """One for each multiprocessor that has a job."""
    return max(min(_processors(q.device), jobs), 1)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]
