"""Cross-entropy over all items without the table of their scores."""

from kernels.linear_cross_entropy.op import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
