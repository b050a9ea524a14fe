"""An HSTU layer's output: the norm of what it attended to, gated, dropped out, projected and added to its input."""

from kernels.hstu_output.op import hstu_output

__all__ = ["hstu_output"]
