"""Training speed of HSTU on the lengths of MovieLens-1M: seconds an epoch, tokens a second, memory, and where a GPU's time goes.

One epoch is a pass over each user's latest 200 items (47 steps of 128 sequences) or, with windows `all`, over everything. The first
epoch, which records the CUDA graph and translates, is left out; the rest are given by their median and extremes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import recsys_core
from benchmarks.common import arguments, report
from recsys_core.data import Dataset, load_dataset
from recsys_core.recommender import FitOptions
from recsys_core.training import Trainer

VARIANTS: dict[str, dict[str, Any]] = {
    "float32, kernel by kernel": {"capture": False},
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
    "bfloat16, own negatives a position": {"precision": "bfloat16", "sampling": "uniform"},
    "bfloat16, compiled, own negatives a position": {"precision": "bfloat16", "compile": True, "sampling": "uniform"},
    "bfloat16, windows of everything": {"precision": "bfloat16", "windows": "all"},
}
GROUPS = {
    "matrix products": ("gemm", "cutlass", "xmma", "nvjet"),
    "optimizer": ("adam", "multi_tensor"),
    "copies and fills": ("memcpy", "memset", "copy", "fill", "cat"),
    "gather and scatter": ("index", "gather", "scatter", "embedding", "radix", "sort", "topk"),
    "norms and softmax": ("norm", "softmax", "reduce", "logsumexp"),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--variants", default="", help="names, separated by |; default all")
    parser.add_argument("--profile", default="bfloat16", help="the variant whose kernels are listed, empty for none")
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


def trained(dataset: Dataset, epochs: int, config: dict[str, Any]) -> list[Any]:
    """The reports of the epochs of one training."""
    model = recsys_core.create(
        "hstu",
        **{"size": "base", "batch_size": 128, "negatives": 128, "learning_rate": 1e-3, "windows": "latest", "epochs": epochs, **config},
    )
    torch.manual_seed(0)
    model.items, model.n_users = dataset.items, len(dataset.users)
    model._initialize(dataset)  # type: ignore[attr-defined]
    return Trainer(model._learner(dataset), model.config, FitOptions(), lambda share, text: None).run()  # type: ignore[attr-defined, arg-type]


def measure(name: str, dataset: Dataset, epochs: int, config: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    start = time.perf_counter()
    reports = trained(dataset, epochs, config)
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
        group = next((g for g, words in GROUPS.items() if any(w in event.key.lower() for w in words)), "elementwise and the rest")
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
