"""Launches kernels at little cost to the processor.

At every call Triton looks at each argument anew, and builds and compares texts, to find what it compiled for arguments of their kinds. For
short sequences that takes longer than the kernel runs. Here what it found is kept by the kinds themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

Grid = int | tuple[int, int]
"""How many programs there are, along one axis or two."""
_Launcher = Callable[[Grid, list[Any]], None]
_known: dict[tuple[Any, ...], _Launcher] = {}


class Descriptor(Protocol):
    """An argument that says itself what of it a kernel is compiled for: a tensor's descriptor."""

    @property
    def kind(self) -> Hashable: ...


def launch(kernel: Any, grid: Grid, *arguments: Tensor | int | float | Descriptor | None, **options: Any) -> None:
    """Runs a Triton kernel.

    arguments: its own but the constants, which stand last in its signature, in its order; options: the constants, always named in one
    order, and `num_warps`, `num_stages`, `maxnreg`. At least one argument is a tensor, and all tensors lie on the current device.
    """
    kinds: list[Any] = []
    values: list[Any] = []
    pointers = 0
    tensor: Tensor
    for x in arguments:
        if type(x) is int:
            # What whole numbers are compiled for: 1, multiples of 16, and whether they need 64 bits.
            kinds.append(x if x == 1 else 2 * (x % 16 == 0) + 4 * (x >> 31))
            values.append(x)
        elif isinstance(x, Tensor):
            tensor, pointer = x, x.data_ptr()
            pointers |= pointer
            kinds.append(x.dtype)
            values.append(pointer)
        else:
            kinds.append(getattr(x, "kind", type(x)))
            values.append(x)
    key = (kernel.fn, tensor.get_device(), *kinds, *options.values())
    if pointers % 16:
        # Loads may be wide where a pointer is a multiple of 16 bytes, as nearly all are.
        key += tuple(x % 16 == 0 for x in values if type(x) is int)
    if ready := _known.get(key):
        ready(grid, values)
        return
    compiled = kernel[(grid,) if isinstance(grid, int) else grid](*arguments, **options)
    if compiled is not None:
        _known[key] = _launcher(compiled, len(kernel.params) - len(arguments))


def _launcher(compiled: Any, constants: int) -> _Launcher:
    """Launches what Triton compiled, whose launcher wants a place for each constant, whatever is there."""
    run, function, metadata, rest = compiled.run, compiled.function, compiled.packed_metadata, (None,) * constants
    device, stream = torch.cuda.current_device(), torch._C._cuda_getCurrentRawStream

    def ready(grid: Grid, values: list[Any]) -> None:
        x, y = (grid, 1) if isinstance(grid, int) else grid
        # No metadata and no hooks, which only Triton's own profiler reads.
        run(x, y, 1, stream(device), function, metadata, None, None, None, *values, *rest)

    return ready
