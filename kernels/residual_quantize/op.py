"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.residual_quantize.reference import quantize_by_level


@torch.no_grad()
def residual_quantize(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, L] int64 of vectors x [N, D] and the residual [N, D] float32 (Rajput et al. 2023, arXiv 2305.05065, section 3.1).

    Starting from residual = x, for each level l in turn:

        codes[n, l] = argmin over k of |residual[n] - codebooks[l, k]|^2, the first of equals
        residual[n] = residual[n] - codebooks[l, codes[n, l]]

    codebooks: [L, K, D]. So x - residual is the sum of the chosen codes. Everything is computed in float32, as exact as float32 products
    are: where two codes are as near to within float32 rounding, either may be chosen. float64 is computed in float64, by the reference.

    No gradients pass: the choice has none, and how to go around it is the caller's. The straight-through estimate is
    `x - residual.detach()` for a gradient by x; for one by the codebooks, look the codes up in them again. Raises ValueError for shapes
    and types that do not fit.
    """
    if x.ndim != 2 or codebooks.ndim != 3 or codebooks.shape[2] != x.shape[1]:
        raise ValueError(f"x {list(x.shape)} and codebooks {list(codebooks.shape)} need the shapes [N, D] and [L, K, D]")
    if not codebooks.shape[0] or not codebooks.shape[1]:
        raise ValueError(f"codebooks {list(codebooks.shape)} hold no codes; give at least one level of one code")
    if not x.is_floating_point() or not codebooks.is_floating_point():
        raise ValueError(f"x and codebooks are {x.dtype} and {codebooks.dtype}; both need a floating type")
    if torch.float64 in (x.dtype, codebooks.dtype) or not compiled(x):
        with torch.autocast(x.device.type, enabled=False):
            return quantize_by_level(x, codebooks)
    from kernels.residual_quantize.operators import quantize

    found: tuple[Tensor, Tensor] = quantize(x, codebooks)
    return found
