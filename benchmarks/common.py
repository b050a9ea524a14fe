"""What every benchmark prints beside its figures."""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from workbench.machine import processor
from workbench.store import code_version


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    return parser


def environment() -> dict[str, Any]:
    """Hardware and versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cpu": processor(),
        "gpu": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "code": code_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def report(title: str, rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Prints the rows as a Markdown table under the environment, and appends them to a CSV where asked."""
    facts = environment()
    print(f"\n{title}\n" + ", ".join(f"{k} {v}" for k, v in facts.items()) + "\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    sys.stdout.flush()
    if file:
        new = not file.exists()
        with file.open("a", newline="") as out:
            writer = csv.DictWriter(out, ["benchmark", *names, *facts])
            if new:
                writer.writeheader()
            writer.writerows({"benchmark": title, **row, **facts} for row in rows)
