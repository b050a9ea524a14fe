"""How a kernel becomes an operator of PyTorch: known to the dispatcher, to torch.compile by its fake, and to autograd by its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("workbench", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Registers `workbench::name` of a schema such as "name(Tensor x, int n) -> Tensor" and returns it.

    run: the implementation for tensors on a GPU, or on a processor where Triton's interpreter is on; it reads its inputs only and returns
    new tensors. fake: what it returns for tensors without data: shapes, strides and types. A backward is added by
    `torch.library.register_autograd("workbench::name", backward, setup_context=...)`, where it calls an operator of its own.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for device in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"workbench::{name}", fake, lib=_LIBRARY)
    found: Callable[..., Any] = getattr(torch.ops.workbench, name).default
    return found
