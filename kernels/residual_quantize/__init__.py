"""Residual quantization: the nearest code of each level and what is left, in one pass."""

from kernels.residual_quantize.op import residual_quantize

__all__ = ["residual_quantize"]
