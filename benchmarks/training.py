"""Training speed of HSTU on the lengths of MovieLens-1M: seconds an epoch, tokens a second, memory, and where a GPU's time goes.

One epoch is a pass over each user's latest 200 items (47 steps of 128 sequences) or, with windows `all`, over everything. The first
epoch, which records the CUDA graph and translates, is left out; the rest are given by their median and extremes.
"""

from __future__ import annotations

import gc
import subprocess
import time
from collections import defaultdict
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import recsys_core
from benchmarks.common import arguments, report
from kernels.backend import use
from recsys_core.data import Dataset, load_dataset
from recsys_core.progress import Progress, silent
from recsys_core.recommender import FitOptions
from recsys_core.training import Trainer
from recsys_core.training.journal import EpochReport

VARIANTS: dict[str, dict[str, Any]] = {
    "PyTorch, float32, no CUDA graph": {"kernels": "reference", "capture": False},
    "PyTorch, float32": {"kernels": "reference"},
    "PyTorch, bfloat16": {"kernels": "reference", "precision": "bfloat16"},
    "PyTorch, bfloat16, compiled": {"kernels": "reference", "precision": "bfloat16", "compile": True},
    "PyTorch, bfloat16, own negatives": {"kernels": "reference", "precision": "bfloat16", "sampling": "uniform"},
    "PyTorch, bfloat16, large": {"kernels": "reference", "precision": "bfloat16", "size": "large"},
    "kernels, float32": {},
    "kernels, bfloat16, no CUDA graph": {"precision": "bfloat16", "capture": False},
    "kernels, bfloat16": {"precision": "bfloat16"},
    "kernels, bfloat16, own negatives": {"precision": "bfloat16", "sampling": "uniform"},
    "kernels, bfloat16, large": {"precision": "bfloat16", "size": "large"},
    "kernels, bfloat16, windows of everything": {"precision": "bfloat16", "windows": "all"},
}
"""Settings of HSTU, and `kernels`, the backend; by default the GPU kernels."""
GROUPS = {
    "matrix products": ("gemm", "cutlass", "xmma", "nvjet"),
    "optimizer": ("adam", "multi_tensor"),
    "copies and fills": ("memcpy", "memset", "copy", "fill", "cat"),
    "gather and scatter": ("index", "gather", "scatter", "embedding", "radix", "sort", "topk"),
    "norms and softmax": ("norm", "softmax", "reduce", "logsumexp"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--variants", default="", help="names, separated by |; default all")
    parser.add_argument("--profile", default="kernels, bfloat16", help="the variant whose kernels are listed, empty for none")
    options = parser.parse_args()
    dataset = load_dataset("ml-1m-sequences")
    wanted = options.variants.split("|")
    rows = []
    for name, config in VARIANTS.items():
        if not options.variants or name in wanted:
            try:
                rows.append(measure(name, dataset, options.epochs, config))
            except Exception as error:
                # One variant that this machine cannot run should not cost the others' figures.
                rows.append({"variant": name, "s an epoch": f"failed: {' '.join(str(error).split())[:80]}"})
            print(rows[-1], flush=True)
    report("HSTU-base, ml-1m-sequences, length 200, batch 128, 128 negatives", [{**rows[0], **row} for row in rows], options.csv)
    if options.profile and torch.cuda.is_available():
        where(dataset, VARIANTS[options.profile])


def trained(dataset: Dataset, epochs: int, config: dict[str, Any], progress: Progress = silent) -> list[EpochReport]:
    """The reports of the epochs of one training."""
    given = {k: v for k, v in config.items() if k != "kernels"}
    base = {"size": "base", "batch_size": 128, "negatives": 128, "learning_rate": 1e-3, "windows": "latest", "epochs": epochs}
    model = recsys_core.create("hstu", **{**base, **given})
    torch.manual_seed(0)
    model.items, model.n_users = dataset.items, len(dataset.users)
    model._initialize(dataset)  # type: ignore[attr-defined]
    with use(config.get("kernels", "auto")):
        return Trainer(model._learner(dataset), model.config, FitOptions(), progress).run()  # type: ignore[attr-defined, arg-type]


class Utilization:
    """The share of time, percent, in which nvidia-smi sees a kernel run, sampled from the end of the first epoch on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, share: float, text: str) -> None:
        if self.process is None and "loss" in text and torch.cuda.is_available():
            asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
            self.process = subprocess.Popen(asked, stdout=subprocess.PIPE, text=True)

    def mean(self) -> float:
        """The mean of the samples but the first two, which look back at the first epoch."""
        if self.process is None:
            return float("nan")
        self.process.terminate()
        samples = [float(line) for line in self.process.communicate()[0].split()][2:]
        return sum(samples) / len(samples) if samples else float("nan")


def measure(name: str, dataset: Dataset, epochs: int, config: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    gc.collect()  # of the variant before, nothing counts as this one's memory
    start = time.perf_counter()
    watched = Utilization()
    reports = trained(dataset, epochs, config, watched)
    seconds = [r.seconds for r in reports[1:]]
    memory = max(r.peak_memory or 0 for r in reports) / 2**20
    return {
        "variant": name,
        "s an epoch": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "steps": reports[0].step,
        "tokens": round(reports[-1].samples_per_second * reports[-1].seconds),
        "tokens/s": median(r.samples_per_second for r in reports[1:]),
        "peak MiB": memory,
        "nvidia-smi %": watched.mean(),
        "first epoch s": reports[0].seconds,
        "loss": reports[-1].loss,
        "all s": time.perf_counter() - start,
    }


def where(dataset: Dataset, config: dict[str, Any]) -> None:
    """Prints what share of an epoch the GPU was busy, and with what."""
    trained(dataset, 1, config)
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        reports = trained(dataset, 6, config)
        torch.cuda.synchronize()
    busy: dict[str, float] = defaultdict(float)
    top: dict[str, tuple[float, int]] = {}
    for event in watched.key_averages():
        if event.device_type != DeviceType.CUDA:
            continue
        # A Triton kernel is named by its function, one of PyTorch by its C++ signature.
        other = "our kernels" if event.key.isidentifier() else "elementwise and the rest"
        group = next((g for g, words in GROUPS.items() if any(w in event.key.lower() for w in words)), other)
        busy[group] += event.self_device_time_total / 1e6
        top[event.key] = event.self_device_time_total / 1e6, event.count
    wall, total = sum(r.seconds for r in reports), sum(busy.values())
    print(
        f"\nGPU busy {total:.3f} s of {wall:.3f} s in 6 epochs ({total / wall:.0%}), {sum(n for _, n in top.values())} kernels and copies"
    )
    for group, seconds in sorted(busy.items(), key=lambda pair: -pair[1]):
        print(f"  {seconds / total:6.1%}  {group}")
    for key, (seconds, count) in sorted(top.items(), key=lambda pair: -pair[1][0])[:12]:
        print(f"  {seconds / total:6.1%}  {count:6d} x {key[:110]}")


if __name__ == "__main__":
    main()
