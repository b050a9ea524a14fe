"""Choices that the launchers of both operators make by shapes and types."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

NARROW = 64
"""Up to so many columns a whole weight matrix fits a program, and one kernel does all of an operator; above, products are kernels."""


def product_type(x: Tensor) -> torch.dtype:
    """The type in which products of x are computed: autocast's where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def precision(dtype: torch.dtype) -> str:
    """How the matrix units multiply: float32 in one pass of tf32 where PyTorch may, else in three, whose error is float32's."""
    if dtype != torch.float32:
        return "tf32"  # what Triton calls its default; other types have one way only
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def sigmoid_method(x: Tensor) -> str:
    """How a kernel whose results are typed as x computes a sigmoid (see `kernels.layer.rows.sigmoid`)."""
    if x.device.type != "cuda":
        return "plain"
    return "full" if x.dtype == torch.float32 else "short"


class Rows(NamedTuple):
    """How a kernel that works on whole rows is cut up: rows of a tile, warps, and programs a multiprocessor where these go on."""

    height: int
    warps: int
    share: int


def once(columns: int) -> Rows:
    """For kernels that take each row once."""
    return Rows(max(1, 4096 // columns), 4, 4)


def summing(columns: int) -> Rows:
    """For kernels that also sum over rows: a row a warp where it fits, so that warps do not wait for each other."""
    warps = min(max(1, columns // 512), 16)
    return Rows(max(1, 512 // columns), warps, max(1, 16 // warps))


def cdiv(length: int, size: int) -> int:
    """Tiles of a size that cover a length."""
    return -(-length // size)


def block(width: int) -> int:
    """Columns of the tile that holds `width`: a power of two, at least what matrix units take."""
    return max(16, 1 << (width - 1).bit_length())


def programs(x: Tensor, tiles: int, each: float) -> int:
    """Programs that share `tiles` tiles of work: `each` a multiprocessor, but none without work."""
    if x.device.type != "cuda":
        return min(tiles, 2)
    return min(tiles, int(each * multiprocessors(x.device.index)))


@cache
def multiprocessors(index: int) -> int:
    """How many the GPU has."""
    found: int = torch.cuda.get_device_properties(index).multi_processor_count
    return found
