"""Pointwise SiLU attention over ragged sequences, as in HSTU."""

from kernels.hstu_attention.op import hstu_attention
from kernels.hstu_attention.reference import bucket

__all__ = ["bucket", "hstu_attention"]
