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
    `differentiable`, where it calls an operator of its own.
    """
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    for device in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"workbench::{name}", fake, lib=_LIBRARY)
    found: Callable[..., Any] = getattr(torch.ops.workbench, name).default
    return found


def differentiable(operator: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Gives an operator whose schema has no defaults its backward, as `torch.library.register_autograd` does.

    save(context, inputs, output) keeps what backward(context, *gradients of the outputs) needs, which returns those of all inputs. Of a
    call's time on the processor, PyTorch's own spends a part on looking for defaults that grows with the square of the arguments: 35 us
    for ten of them, as much as a launch.
    """

    class Generated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def run(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
            return Generated.apply(*inputs)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs)

    _LIBRARY.impl(operator.name().split("::")[1].split(".")[0], run, "Autograd")  # type: ignore[attr-defined,no-untyped-call]
