"""Pointwise SiLU attention over ragged sequences, as in HSTU."""

from kernels.hstu_attention.op import hstu_attention, pair_buckets
from kernels.hstu_attention.reference import bucket

__all__ = ["bucket", "hstu_attention", "pair_buckets"]
