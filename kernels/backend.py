"""The one switch between the GPU kernels and their PyTorch references."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
"""`triton`: the kernels; `reference`: plain PyTorch; `auto`: the kernels for tensors on a GPU where Triton is installed."""
_NAMES = get_args(Backend)

_INSTALLED = importlib.util.find_spec("triton") is not None
_DEFAULT = os.environ.get("WORKBENCH_KERNELS", "auto")
# A plain variable, which torch.compile can read and guard.
_chosen: str | None = None


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Decides for the whole process while inside; outside, the environment variable WORKBENCH_KERNELS does, and without it `auto`."""
    global _chosen
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def compiled(like: Tensor) -> bool:
    """Whether a call on such tensors runs the Triton kernels.

    Raises RuntimeError where they are demanded and cannot run, and ValueError for an unknown name in WORKBENCH_KERNELS.
    """
    asked = _DEFAULT if _chosen is None else _chosen
    if asked not in _NAMES:
        raise ValueError(f"WORKBENCH_KERNELS is {asked!r}; set it to one of {', '.join(_NAMES)}, or leave it out")
    if asked == "reference":
        return False
    on_gpu = like.device.type == "cuda"
    # Triton's interpreter runs kernels on a processor: for tests.
    able = _INSTALLED and (on_gpu or os.environ.get("TRITON_INTERPRET") == "1")
    if asked == "triton" and not able:
        lack = f"the tensors are on {like.device}; move them to a GPU" if _INSTALLED else "Triton is missing; install the extra kernels"
        raise RuntimeError(f"the Triton kernels were asked for, but {lack}")
    return able and (on_gpu or asked == "triton")
