"""Plain causal HSTU attention on Hopper GPUs: which calls the kernels take, and how they are launched."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels.hstu_attention.hopper_backward import backward_kernel
from kernels.hstu_attention.hopper_forward import forward_kernel

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.float32: gl.float32}
_BLOCK = 128
# Key tiles that the forward holds in shared memory, and whether its two groups of warps take turns, by width: with 64 columns the special
# function unit is as busy as the tensor cores, and neither should wait for both groups at once.
_FORWARD = {64: (3, True), 128: (2, False)}


def eligible(q: Tensor, k: Tensor, v: Tensor, max_seq_len: int) -> bool:
    """Whether `forward` and `backward` take such a call: no targets, window, context or bias, which the caller checks."""
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


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float) -> Tensor:
    """`hstu_attention` [T, H, D] of an eligible call."""
    tokens, heads, width = q.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    counter = torch.zeros(1, dtype=torch.int32, device=v.device)
    sequences = offsets.shape[0] - 1
    blocks = -(-max_seq_len // _BLOCK)
    programs = max(min(_processors(q.device), blocks * heads * sequences), 1)
    stages, turns = _FORWARD[width]
    forward_kernel[(programs,)](
        _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), out, offsets, counter, tokens, sequences, blocks, heads,
        q.stride(1), k.stride(1), v.stride(1), alpha / 2, 1 / normalizer, width, stages, turns, num_warps=4, maxnreg=168,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_seq_len: int, alpha: float, normalizer: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. That of q is a sum in no certain order: its last bits differ from run to run."""
    tokens, heads, width = q.shape
    if not _copyable(grad):
        grad = grad.contiguous()
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    sequences = offsets.shape[0] - 1
    blocks = -(-max_seq_len // _BLOCK)
    # The gradient of q in float32, and how many programs have added to it all they had, by sequence and head.
    zeros = torch.zeros(q.numel() + sequences * heads, dtype=torch.float32, device=q.device)
    total, ends = zeros[: q.numel()].view(q.shape), zeros[q.numel() :].view(torch.int32)
    backward_kernel[(blocks * heads * (sequences + 1),)](
        _matrix(q, 64), _matrix(k, _BLOCK), _matrix(v, _BLOCK), _matrix(grad, 64), _matrix(total, 64), total, ends, dq, dk, dv,
        offsets, tokens, sequences, blocks, heads, q.stride(1), k.stride(1), v.stride(1), grad.stride(1),
        alpha / 2, alpha / 2 / normalizer, 1 / normalizer, width, 2, num_warps=8, maxnreg=168,
    )  # fmt: skip
    return dq, dk, dv


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
