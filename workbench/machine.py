"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


@cache
def processor() -> str:
    """The processor and its cores, such as `Intel(R) Xeon(R) Processor, 2 cores`."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"


def machine(device: str) -> str:
    """What computes for a device setting (`cpu`, `cuda`, `cuda:1`, `auto`), with torch's version."""
    import torch

    on_gpu = device != "cpu" and torch.cuda.is_available()
    what = torch.cuda.get_device_name(device if device.startswith("cuda") else None) if on_gpu else processor()
    return f"{what}, torch {torch.__version__}"
