"""The one switch between the GPU kernels and their PyTorch references."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, cast, get_args

from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
"""`triton`: the kernels; `reference`: plain PyTorch; `auto`: the kernels for tensors on a GPU where Triton is installed."""

_chosen: ContextVar[Backend | None] = ContextVar("kernels", default=None)
_INSTALLED = importlib.util.find_spec("triton") is not None


@contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Decides for the code inside; outside, the environment variable WORKBENCH_KERNELS does, and without it `auto`."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Backend:
    """What was asked for. Raises ValueError for an unknown name in WORKBENCH_KERNELS."""
    if (inside := _chosen.get()) is not None:
        return inside
    asked = os.environ.get("WORKBENCH_KERNELS", "auto")
    for name in get_args(Backend):
        if asked == name:
            return cast(Backend, name)
    raise ValueError(f"WORKBENCH_KERNELS is {asked!r}; set it to one of {', '.join(get_args(Backend))}, or leave it out")


def compiled(like: Tensor) -> bool:
    """Whether a call on such tensors runs the Triton kernels. Raises RuntimeError where they are demanded and cannot run."""
    asked = chosen()
    if asked == "reference":
        return False
    # Triton's interpreter runs kernels on a processor: for tests.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    able = _INSTALLED and (like.device.type == "cuda" or interpreted)
    if asked == "triton" and not able:
        lack = f"the tensors are on {like.device}; move them to a GPU" if _INSTALLED else "Triton is missing; install the extra kernels"
        raise RuntimeError(f"the Triton kernels were asked for, but {lack}")
    return able and (like.device.type == "cuda" or asked == "triton")
