"""Softmax cross-entropy of a target among sampled negatives, as in HSTU's training."""

from kernels.sampled_softmax.op import sampled_softmax

__all__ = ["sampled_softmax"]
