"""What the output is told beside its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 2**16
"""Dropout draws 16 bits an element, so shares are whole multiples of 1 / LEVELS."""


class Settings(NamedTuple):
    """seed: of dropout, one int64 on the device, or None where nothing is dropped; dropped: of LEVELS; dtype: of products."""

    seed: Tensor | None
    dropped: int
    eps: float
    dtype: torch.dtype
