"""How a kernel becomes an operator of PyTorch: known to the dispatcher, to torch.compile by its fake, and to autograd by its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

_LIBRARY = torch.library.Library("workbench", "FRAGMENT")  # type: ignore[no-untyped-call]
# Types of inputs that nobody watches, and nearly all there are.
_PLAIN = {Tensor, Parameter, int, float, bool, type(None)}


class Operator:
    """`workbench::name` of a schema such as "name(Tensor x, int n) -> Tensor".

    run: the implementation for tensors on a GPU, or on a processor where Triton's interpreter is on; it reads its inputs only and returns
    new tensors. fake: what it returns for tensors without data: shapes, strides and types. A backward is added by `differentiable`, where
    it calls an operator of its own.

    A call goes past the dispatcher where that would only come back here, once for autograd and once for the implementation, each time
    through Python: together that takes longer than a launch. The dispatcher's way is for whoever watches it.
    """

    def __init__(self, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name = schema[: schema.index("(")]
        self.run = run
        self.function: Callable[..., Any] | None = None
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        for device in ("CUDA", "CPU"):
            _LIBRARY.impl(self.name, run, device)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"workbench::{self.name}", fake, lib=_LIBRARY)
        self.registered: Callable[..., Any] = getattr(torch.ops.workbench, self.name).default

    def __call__(self, *inputs: Any) -> Any:
        if _watched(inputs):
            return self.registered(*inputs)
        if not torch.is_grad_enabled():
            return self.run(*inputs)
        if self.function is None:
            # Without a backward, autograd knows whom to warn.
            return self.registered(*inputs)
        return self.function(*inputs)


operator = Operator


def differentiable(operator: Operator, save: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Gives an operator whose schema has no defaults its backward, as `torch.library.register_autograd` does.

    save(context, inputs, output) keeps what backward(context, *gradients of the outputs) needs, which returns those of all inputs. Of a
    call's time on the processor, PyTorch's own spends a part on looking for defaults that grows with the square of the arguments: 35 us
    for ten of them, as much as a launch. A second derivative is an error.
    """

    def below(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator.registered(*inputs)

    operator.function = _function(operator.run, save, backward)
    _LIBRARY.impl(operator.name, _function(below, save, backward), "Autograd")  # type: ignore[no-untyped-call]


def shaped_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Unwritten tensors of the shapes and types of others, row after row, as gradients of them are."""
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


def _function(run: Callable[..., Any], save: Callable[..., None], backward_: Callable[..., Any]) -> Callable[..., Any]:
    """run, known to autograd, which looks at each argument for long and is therefore shown only those that learn."""

    class Generated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: tuple[Any, ...], places: list[int], *_: Tensor) -> Any:
            output = run(*inputs)
            save(ctx, inputs, output)
            ctx.places = places
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> Any:
            found = backward_(ctx, *grads)
            return None, None, *(found[place] for place in ctx.places)

    def function(*inputs: Any) -> Any:
        places = [place for place, x in enumerate(inputs) if getattr(x, "requires_grad", False)] if torch.is_grad_enabled() else []
        if not places:
            return run(*inputs)
        return Generated.apply(inputs, places, *(inputs[place] for place in places))  # type: ignore[no-untyped-call]

    return function


def _watched(inputs: tuple[Any, ...]) -> bool:
    """Whether a translation, a mode, a transform or a tensor's own class takes part in what is called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(issubclass(kind, Tensor) for kind in set(map(type, inputs)) - _PLAIN)
    )
