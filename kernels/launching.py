"""Launches kernels at little cost to the processor.

At every call Triton looks at each argument anew, and builds and compares texts, to find what it compiled for arguments of their kinds. For
short sequences that takes longer than the kernel runs. Here what it found is kept by the kinds themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Grid = int | tuple[int, int]
"""How many programs there are, along one axis or two."""
_Launcher = Callable[[Grid, list[Any]], None]
_known: dict[tuple[Any, ...], _Launcher] = {}


def launch(kernel: Any, grid: Grid, *arguments: Tensor | float | None, **options: Any) -> None:
    """Runs a Triton kernel.

    arguments: its own but the constants, which stand last in its signature, in its order; options: the constants, always named in one
    order, and `num_warps`, `num_stages`, `maxnreg`. At least one argument is a tensor, and all tensors lie on the current device.
    """
    kinds: list[Any] = []
    values: list[Any] = []
    pointers = device = 0
    for x in arguments:
        if isinstance(x, Tensor):
            pointer = x.data_ptr()
            pointers |= pointer
            device = x.get_device()
            kinds.append(x.dtype)
            values.append(pointer)
        else:
            # What whole numbers are compiled for: multiples of 16, 1, and whether they need 64 bits.
            kinds.append((x % 16 == 0) + 2 * (x == 1) + 4 * (x >> 31) if type(x) is int else type(x))
            values.append(x)
    key = (kernel.fn, device, *kinds, *options.values())
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
