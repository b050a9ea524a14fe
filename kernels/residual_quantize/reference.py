"""Residual quantization in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import torch
from torch import Tensor

_ROOM = 2**24
"""Distances held at once, in numbers."""


def quantize_by_level(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.residual_quantize.residual_quantize`, a level at a time; 16-bit inputs are computed in float32."""
    wide = torch.promote_types(torch.promote_types(x.dtype, codebooks.dtype), torch.float32)
    residual, codebooks = x.to(wide), codebooks.to(wide)
    codes = []
    for codebook in codebooks:
        norms = codebook.square().sum(1)
        rows = torch.split(residual, max(_ROOM // len(codebook), 1))
        # |r - c|^2 less |r|^2, which is the same for all codes.
        codes.append(torch.cat([(norms - 2 * row @ codebook.T).argmin(1) for row in rows]))
        residual = residual - codebook[codes[-1]]
    return torch.stack(codes, 1), residual
