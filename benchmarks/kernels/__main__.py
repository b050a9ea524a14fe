"""Checks, then times; see the package's docstring."""

from __future__ import annotations

import gc
import subprocess
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import arguments, report
from benchmarks.kernels import attention, gate, layer, losses
from benchmarks.kernels.cases import REGISTRY, Case
from benchmarks.kernels.timing import Timing, time_calls

_MODULES = (attention, layer, losses)
"""Imported for their cases."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", default=",".join(REGISTRY), help=f"operators, separated by commas, of {', '.join(REGISTRY)}")
    parser.add_argument("--shapes", default="", help="only shapes that contain this")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("the kernels are timed on a GPU, and there is none here")
    checked = gate.check()
    worst = max(checked, key=lambda row: row["forward"] / max(row["forward bound"], 1e-30))
    print(f"gate: {len(checked)} cases within their bounds; closest to its bound: {worst}", flush=True)
    ceilings = _ceilings()
    print(f"a copy moves {ceilings[0] / 1e12:.2f} TB/s, a bfloat16 matrix product runs at {ceilings[1] / 1e12:.0f} TFLOP/s", flush=True)
    rows = []
    for operator in options.only.split(","):
        for case in REGISTRY[operator]():
            if options.shapes in case.shape:
                rows += _rows(case, ceilings)
                print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    report(f"kernels, {_versions()}", _compared(rows), options.csv)


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds how many times as fast as PyTorch a row is, on the GPU and by calls, and the share of a part in its HSTU layer's time."""
    times = {(row["operator"], row["shape"], row["implementation"], row["pass"]): (row["ms p50"], row["call ms"]) for row in rows}
    unknown = (float("nan"),) * 2
    for row in rows:
        plain = times.get((row["operator"], row["shape"], "PyTorch", row["pass"]), unknown)
        whole = times.get(("hstu_layer", row["shape"], row["implementation"], row["pass"]), unknown)
        row |= {"x PyTorch": plain[0] / row["ms p50"], "x PyTorch, call": plain[1] / row["call ms"], "of layer": row["ms p50"] / whole[0]}
    return rows


def _rows(case: Case, ceilings: tuple[float, float]) -> list[dict[str, Any]]:
    """The forward and, where there is one, the backward pass of a case, and both."""
    timings, memory = _timings(case)
    work = {"forward": case.flops, "backward": case.backward_flops}
    floors = {
        "forward": max(case.flops / ceilings[1], case.bytes / ceilings[0]),
        "backward": max(case.backward_flops / ceilings[1], case.backward_bytes / ceilings[0]),
    }
    work["both"], floors["both"] = sum(work.values()), sum(floors.values())
    gc.collect()
    torch.cuda.empty_cache()
    return [_row(case, part, timing, work[part], floors[part], memory) for part, timing in timings.items()]


def _timings(case: Case) -> tuple[dict[str, Timing], float]:
    """Times by pass, and the MiB that both take beside their inputs."""
    run, learned = case.prepare()
    timings = {"forward": time_calls(_without_gradients(run))}
    if not learned:
        return timings, 0.0
    both = partial(_both, run, learned)
    timings["both"] = time_calls(both)
    return timings | {"backward": timings["both"].minus(timings["forward"])}, _peak(both)


def _row(case: Case, part: str, timing: Timing, flops: float, floor: float, memory: float) -> dict[str, Any]:
    return {
        "operator": case.operator,
        "shape": case.shape,
        "implementation": case.implementation,
        "pass": part,
        "ms p20": timing.p20,
        "ms p50": timing.p50,
        "ms p80": timing.p80,
        "call ms": timing.call,
        "TFLOP/s": flops / timing.p50 / 1e9,
        "floor ms": 1e3 * floor,
        "x floor": timing.p50 / (1e3 * floor) if floor else float("nan"),
        "peak MiB": memory,
    }


def _without_gradients(run: Any) -> Any:
    def forward() -> Any:
        with torch.no_grad():
            return run()

    return forward


def _both(run: Any, learned: list[Tensor]) -> Any:
    """A pass forward and one backward; the slopes are made of the result, so that nothing is known beforehand."""
    found = run()
    results = list(found) if isinstance(found, tuple) else [found]
    return torch.autograd.grad(results, learned, [x.detach() for x in results])


def _peak(run: Any) -> float:
    """MiB that a pass forward and backward takes beside its inputs."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _ceilings() -> tuple[float, float]:
    """Bytes a second of a large copy, reads and writes counted, and operations a second of a large bfloat16 product."""
    source = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    copy = time_calls(partial(torch.empty_like(source).copy_, source)).p50
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = time_calls(partial(torch.mm, a, b)).p50
    return 2 * 2**30 / copy * 1e3, 2 * 8192**3 / product * 1e3


def _versions() -> str:
    return f"{torch.cuda.get_device_name()}, driver {_driver()}, torch {torch.__version__}, triton {version('triton')}"


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
