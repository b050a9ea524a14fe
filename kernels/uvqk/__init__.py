"""What goes into the attention of an HSTU layer: layer norm, one projection and SiLU, parted into u, v, q and k."""

from kernels.uvqk.op import uvqk

__all__ = ["uvqk"]
