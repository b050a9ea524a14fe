"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.hstu_output.operators import close
from kernels.hstu_output.reference import close as close_plainly
from kernels.hstu_output.settings import LEVELS, Settings
from kernels.layer.learned import Learned
from kernels.layer.plan import product_type


def hstu_output(
    attended: Tensor,
    u: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dropout: float = 0.0,
    training: bool = False,
    seed: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """An HSTU layer's output from what it attended to, the gate and its input (Zhai et al. 2024, arXiv 2402.17152, equation 3):

        x + dropout(layer_norm(attended) * u) weight^T + bias

    attended, u: [T, D]; x: [T, C]; norm_weight, norm_bias: [D]; weight: [C, D]; bias: [C]. Returns [T, C] of the type of x, so a float32
    residual stays float32. dropout: the share of elements zeroed in training, rounded to 1 / 65536; seed: one int64 on the device, which
    decides the mask whatever computes it; drawn from PyTorch's generator if none is given. One of a batch of seeds, drawn for all layers
    at once, saves a launch a layer; both ways a CUDA graph draws anew when it is replayed.

    The product is computed in autocast's type where autocast is on, else in that of attended; parameters may have another type, float32
    as a rule. The norm and all sums are float32. Products of float32 have float32's precision unless
    torch.backends.cuda.matmul.allow_tf32 is set; those of float64 are the reference's. Backward keeps the arguments alone, draws the
    mask again, and sums in a fixed order. Differentiable in all tensors. Raises ValueError for shapes that do not fit and for a share
    outside 0 <= dropout < 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it must be at least 0 and less than 1")
    if attended.ndim != 2 or x.ndim != 2 or attended.shape[0] != x.shape[0]:
        raise ValueError(f"attended {list(attended.shape)} and x {list(x.shape)} need the shapes [T, D] and [T, C]")
    if u.shape != attended.shape:
        raise ValueError(f"u is {list(u.shape)}; beside attended it needs the shape {list(attended.shape)}")
    learned = Learned(norm_weight, norm_bias, weight, bias)
    learned.check(attended.shape[1], x.shape[1])
    dropped = min(round(dropout * LEVELS), LEVELS - 1) if training else 0
    if not dropped:
        seed = None
    elif seed is None:
        seed = torch.randint(2**63 - 1, (), device=x.device)
    settings = Settings(seed, dropped, eps, product_type(attended))
    if compiled(x) and settings.dtype != torch.float64:
        out: Tensor = close(attended, u, x, *learned, *settings)
        return out
    return close_plainly(attended, u, x, learned, settings)
