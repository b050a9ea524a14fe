"""How long a call takes: on the GPU alone, from a CUDA graph of it, and with what Python and the launches add.

The caches are warm, as they are in a layer, whose inputs the kernel before it has just written.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_SAMPLES = 20
_AT_LEAST_MS, _CALLS_AT_LEAST_MS = 1.0, 4.0
"""Of a sample: calls wait for the processor, whose times vary more."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds: quantiles of the kernels' time, and the median of the call's."""

    p20: float
    p50: float
    p80: float
    call: float

    def minus(self, other: Timing) -> Timing:
        """What a pass of two takes, of which the first takes `other`, by medians."""
        return Timing(self.p20 - other.p50, self.p50 - other.p50, self.p80 - other.p50, self.call - other.call)


def time_calls(run: Callable[[], Any]) -> Timing:
    """Times `run`, which must be ready to be captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    once = min(_events(run, 1, 3))
    call = statistics.median(_events(run, max(1, int(_CALLS_AT_LEAST_MS / once)), 10))
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        run()
    captured.replay()
    torch.cuda.synchronize()
    repeats = max(1, int(_AT_LEAST_MS / min(_events(captured.replay, 1, 3))))
    samples = sorted(_events(captured.replay, repeats, _SAMPLES))
    return Timing(*(samples[int(share * (_SAMPLES - 1))] for share in (0.2, 0.5, 0.8)), call)


def _events(run: Callable[[], Any], repeats: int, samples: int) -> list[float]:
    found = []
    for _ in range(samples):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / repeats)
    return found
