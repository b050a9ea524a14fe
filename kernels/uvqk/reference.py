"""The projection in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.layer.learned import Learned


def project(x: Tensor, learned: Learned, heads: int, dim_qk: int, dim_v: int, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`kernels.uvqk.uvqk`; all four are views of one projection."""
    normal = functional.layer_norm(x, x.shape[1:], learned.norm_weight, learned.norm_bias, eps)
    widths = [heads * dim_v, heads * dim_v, heads * dim_qk, heads * dim_qk]
    u, v, q, k = torch.split(functional.silu(functional.linear(normal, learned.weight, learned.bias)), widths, 1)
    tokens = x.shape[0]
    return u, v.view(tokens, heads, dim_v), q.view(tokens, heads, dim_qk), k.view(tokens, heads, dim_qk)
