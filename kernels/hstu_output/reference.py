"""The output in plain PyTorch: what the kernels are compared with, and what runs on a processor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.hstu_output.settings import LEVELS, Settings
from kernels.layer.learned import Learned

_ROUNDS = 10
_WORD = 2**32 - 1
_FACTORS, _STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def close(attended: Tensor, u: Tensor, x: Tensor, learned: Learned, settings: Settings) -> Tensor:
    """`kernels.hstu_output.hstu_output`."""
    seed, dropped, eps, _ = settings
    y = functional.layer_norm(attended, attended.shape[1:], learned.norm_weight, learned.norm_bias, eps) * u
    if seed is not None and dropped:
        y = y * (draws(seed, *y.shape) >= dropped).to(y.dtype) * (LEVELS / (LEVELS - dropped))
    return x + functional.linear(y, learned.weight, learned.bias)


def draws(seed: Tensor, rows: int, columns: int) -> Tensor:
    """Numbers [rows, columns] int64 from 0 to LEVELS - 1 of a seed, one int64, on its device: the kernels' own.

    Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the counter (row, column // 8, 0, 0).
    """
    groups = -(-columns // 8)
    zero = torch.zeros(rows, groups, dtype=torch.int64, device=seed.device)
    words = [zero + torch.arange(rows, device=seed.device)[:, None], zero + torch.arange(groups, device=seed.device), zero, zero]
    keys = [seed.reshape(()) & _WORD, (seed.reshape(()) >> 32) & _WORD]
    for _ in range(_ROUNDS):
        # The products are of 64 bits without a sign; what PyTorch calculates is the same bits.
        low, high = words[0] * _FACTORS[0], words[2] * _FACTORS[1]
        words = [
            (high >> 32) & _WORD ^ words[1] ^ keys[0],
            high & _WORD,
            (low >> 32) & _WORD ^ words[3] ^ keys[1],
            low & _WORD,
        ]
        keys = [(key + step) & _WORD for key, step in zip(keys, _STEPS, strict=True)]
    both = torch.stack([part for word in words for part in (word % LEVELS, word // LEVELS)], 2)
    return both.flatten(1)[:, :columns]
