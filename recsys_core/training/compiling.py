"""torch.compile, asked for its compiler before it needs one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import cast

import torch
from torch import nn

from recsys_core.errors import UnavailableError


def compiled(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with a translated forward and backward pass, for batches of any size; raises UnavailableError without a compiler."""
    check_compiler(device)
    return cast(nn.Module, torch.compile(module, dynamic=True))


def check_compiler(device: torch.device) -> None:
    """Raises UnavailableError where torch.compile would find no compiler for a device."""
    language, variable, usual = ("C", "CC", "gcc clang") if device.type == "cuda" else ("C++", "CXX", "g++ clang++")
    names = os.environ.get(variable, usual).split()
    if not any(map(shutil.which, names)):
        raise UnavailableError(f"compile=true needs a {language} compiler ({' or '.join(names)}); install one, or leave compile off")
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise UnavailableError("compile=true needs the package 'triton' on a GPU; install it, or leave compile off")
