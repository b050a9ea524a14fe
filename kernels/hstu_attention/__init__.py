"""Pointwise SiLU attention over ragged sequences, as in HSTU."""

from kernels.hstu_attention.reference import hstu_attention, time_buckets

__all__ = ["hstu_attention", "time_buckets"]
