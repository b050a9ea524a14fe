# mypy: ignore-errors
"""Block sizes, by what was measured on an H100, and how work is divided among programs."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton

PROGRAMS = 264
"""As many as keep a GPU of 132 multiprocessors busy."""


class Plan(NamedTuple):
    """Block sizes of positions and items, and the warps of a program."""

    BT: int
    BI: int
    warps: int
    stages: int = 3


@cache
def plan(dim: int, dtype: torch.dtype) -> tuple[Plan, Plan, Plan]:
    """Of the sums, the gradient by states and the gradient by items."""
    if dtype == torch.float32:
        if dim <= 64:
            return Plan(128, 64, 4), Plan(64, 64, 4), Plan(64, 128, 4)
        if dim <= 128:
            return Plan(128, 64, 8), Plan(64, 64, 4, 2), Plan(64, 64, 4, 2)
        return Plan(64, 64, 4, 2), Plan(64, 32, 4, 2), Plan(32, 64, 4, 2)
    if dim <= 64:
        return Plan(128, 64, 4), Plan(64, 64, 4), Plan(64, 128, 4, 2)
    if dim <= 128:
        return Plan(128, 128, 8, 2), Plan(64, 64, 4), Plan(64, 64, 4)
    return Plan(128, 64, 8), Plan(128, 64, 8), Plan(64, 128, 8)


def split(owned: int, walked: int, block: int) -> tuple[int, int]:
    """Into how many parts a walk is split, and the rows of each: a whole number of blocks."""
    blocks = triton.cdiv(walked, block)
    parts = min(max(PROGRAMS // max(owned, 1), 1), blocks)
    span = triton.cdiv(blocks, parts)
    return triton.cdiv(blocks, span), span * block


@cache
def settings(dim: int, dtype: torch.dtype, of: Plan) -> dict[str, Any]:
    """A kernel's constants."""
    width = max(triton.next_power_of_2(dim), 16)
    split = dtype == torch.float32
    return {
        "D": width if split else dim, "BD": width, "BT": of.BT, "BI": of.BI, "PIECES": 2 if split else 1,
        "num_warps": of.warps, "num_stages": of.stages,
    }  # fmt: skip
