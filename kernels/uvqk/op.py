"""The public function: what it computes, what it refuses, and which implementation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import compiled
from kernels.layer.learned import Learned
from kernels.layer.plan import product_type
from kernels.uvqk.operators import project
from kernels.uvqk.reference import project as project_plainly


def uvqk(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    heads: int,
    dim_qk: int,
    dim_v: int,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What goes into an HSTU layer's attention and its gate (Zhai et al. 2024, arXiv 2402.17152, equation 1):

        u, v, q, k = split(silu(layer_norm(x) weight^T + bias))

    x: [T, C]; norm_weight, norm_bias: [C]; weight: [heads * (2 dim_v + 2 dim_qk), C] with the rows of u, v, q and k in this order; bias:
    its number of rows. Returns u [T, heads * dim_v], v [T, heads, dim_v], q and k [T, heads, dim_qk]. From the kernels each is a tensor of
    its own: of views of one, autograd would join the gradients in one more pass over memory.

    The product is computed in autocast's type where autocast is on, else in that of x, and so are the results typed; parameters may have
    another type, float32 as a rule. The norm, SiLU and all sums are float32. Products of float32 have float32's precision unless
    torch.backends.cuda.matmul.allow_tf32 is set; those of float64 are the reference's. Backward keeps the arguments alone, computes the
    rest again, and sums in a fixed order. Differentiable in all tensors. Raises ValueError for shapes that do not fit.
    """
    if x.ndim != 2:
        raise ValueError(f"x {list(x.shape)} needs the shape [T, C]")
    learned = Learned(norm_weight, norm_bias, weight, bias)
    learned.check(x.shape[1], heads * (2 * dim_v + 2 * dim_qk))
    dtype = product_type(x)
    if compiled(x) and dtype != torch.float64:
        found: tuple[Tensor, Tensor, Tensor, Tensor] = project(x, *learned, heads, dim_qk, dim_v, eps, dtype)
        return found
    return project_plainly(x, learned, heads, dim_qk, dim_v, eps)
