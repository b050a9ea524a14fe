"""The check before any timing: every operator against float64, and never much worse than the same formulas in PyTorch at its type.

Frozen: bounds and cases are written out here and know nothing of how a kernel is built. The error of a result is the norm of the
difference over the norm of the float64 result; the bound is twice PyTorch's own error for results and five times for gradients, and at
least a few units of the type's rounding where PyTorch happens to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, use
from kernels.hstu_attention import hstu_attention
from kernels.hstu_output import hstu_output
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.residual_quantize import residual_quantize
from kernels.sampled_softmax import sampled_softmax
from kernels.uvqk import uvqk

FORWARD, BACKWARD = 2.0, 5.0
FLOOR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}
"""Relative errors that are always allowed: about two units in the last place."""

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def check() -> list[dict[str, Any]]:
    """One row a case: its errors beside PyTorch's. Raises SystemExit, naming case and error, where a bound is broken."""
    rows = []
    for name, function, learned, fixed, dtype in _cases():
        exact, plain, ours = (
            _run(function, learned, fixed, kind, backend)
            for kind, backend in ((torch.float64, "reference"), (dtype, "reference"), (dtype, "triton"))
        )
        row: dict[str, Any] = {"case": name, "type": str(dtype).removeprefix("torch.")}
        for part, factor in (("forward", FORWARD), ("backward", BACKWARD)):
            errors = [_error(x, e) for x, e in zip(ours[part], exact[part], strict=True)]
            bounds = [max(factor * _error(x, e), FLOOR[dtype]) for x, e in zip(plain[part], exact[part], strict=True)]
            for place, (error, bound) in enumerate(zip(errors, bounds, strict=True)):
                if not error <= bound:
                    raise SystemExit(f"{name} in {dtype}: {part} {place} is off by {error:.2e}, allowed is {bound:.2e}; nothing was timed")
            row[part], row[f"{part} bound"] = max(errors, default=0.0), max(bounds, default=0.0)
        rows.append(row)
    rows.append(_codes())
    return rows


def _cases() -> Iterator[tuple[str, Function, dict[str, Tensor], dict[str, Any], torch.dtype]]:
    """Name, function, float64 inputs to differentiate in, other arguments, type."""
    generator = torch.Generator("cuda").manual_seed(20261122)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, device="cuda", dtype=torch.float64, generator=generator)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, device="cuda", generator=generator)

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for dim, lengths in (
            (128, [300, 0, 513, 1, 64]),
            (128, [1300, 257]),
            (64, [2048, 700, 1025]),
            (50, [200, 3, 108, 0, 77]),
            (25, [130, 31]),
        ):
            tokens, longest, heads = sum(lengths), max(lengths), 2
            offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], device="cuda")
            qkv = {"q": normal(tokens, heads, dim), "k": normal(tokens, heads, dim), "v": normal(tokens, heads, dim)}
            fixed: dict[str, Any] = {"offsets": offsets, "max_seq_len": longest, "alpha": dim**-0.5}
            yield f"hstu_attention D={dim} {lengths}", hstu_attention, qkv, fixed, dtype
            times = integers(10**6, tokens).cumsum(0)
            biased = qkv | {"position_bias": normal(heads, longest), "time_bias": normal(heads, 64)}
            timed = fixed | {"key_times": times, "query_times": times + 40}
            yield f"hstu_attention D={dim} {lengths}, position, time", hstu_attention, biased, timed, dtype
            targets = torch.tensor([min(n, 5) for n in lengths], device="cuda")
            yield f"hstu_attention D={dim} {lengths}, targets", hstu_attention, qkv, fixed | {"num_targets": targets}, dtype
            yield f"hstu_attention D={dim} {lengths}, window", hstu_attention, qkv, fixed | {"max_attn_len": 40}, dtype
        for tokens, width, heads in ((1000, 50, 2), (777, 256, 4)):
            inputs = {
                "x": normal(tokens, width), "norm_weight": normal(width), "norm_bias": normal(width),
                "weight": normal(4 * width, width, scale=width**-0.5), "bias": normal(4 * width),
            }  # fmt: skip
            sizes = {"heads": heads, "dim_qk": width // heads, "dim_v": width // heads}
            yield f"uvqk [{tokens}, {width}]", uvqk, inputs, sizes, dtype
            inputs |= {"attended": normal(tokens, width), "u": normal(tokens, width), "weight": normal(width, width, scale=width**-0.5)}
            yield f"hstu_output [{tokens}, {width}]", hstu_output, inputs | {"bias": normal(width)}, {}, dtype
        for tokens, width, items in ((500, 50, 1000), (300, 128, 5000)):
            table = {"states": normal(tokens, width), "items": normal(items, width, scale=width**-0.5)}
            picked = {"targets": integers(items, tokens)}
            yield f"linear_cross_entropy [{tokens}, {width}] x {items}", linear_cross_entropy, table, picked, dtype
            own = picked | {"negatives": integers(items, tokens, 64), "temperature": 0.05}
            yield f"sampled_softmax [{tokens}, {width}] x {items}", sampled_softmax, table, own, dtype
            shared = own | {"negatives": torch.randperm(items, device="cuda")[:128]}
            yield f"sampled_softmax [{tokens}, {width}] x {items}, shared", sampled_softmax, table, shared, dtype


def _run(
    function: Function, learned: dict[str, Tensor], fixed: dict[str, Any], dtype: torch.dtype, backend: Backend
) -> dict[str, list[Tensor]]:
    """Results and gradients, for inputs rounded to bfloat16 first, so that all types see the same numbers."""
    inputs = {n: x.bfloat16().to(dtype).requires_grad_() for n, x in learned.items()}
    with use(backend):
        found = function(**inputs, **fixed)
        results = list(found) if isinstance(found, tuple) else [found]
        slopes = [torch.linspace(-1, 1, x.numel(), device="cuda", dtype=torch.float64).view(x.shape).to(x.dtype) for x in results]
        grads = torch.autograd.grad(results, list(inputs.values()), slopes)
    return {"forward": [x.detach() for x in results], "backward": list(grads)}


def _error(found: Tensor, exact: Tensor) -> float:
    """The relative error; inf for anything that is no number."""
    error = float((found.double() - exact).norm() / exact.norm().clamp(min=1e-300))
    return error if error == error else float("inf")


def _codes() -> dict[str, Any]:
    """The quantizer picks the nearest code wherever float64 sees one that is nearest by more than rounding."""
    generator = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(5000, 48, device="cuda", generator=generator)
    books = torch.randn(3, 256, 48, device="cuda", generator=generator) * torch.tensor([1.0, 0.7, 0.5], device="cuda")[:, None, None]
    with use("triton"):
        codes = residual_quantize(x, books)[0]
    rest, wrong = x.double(), 0
    for level in range(3):
        distance = torch.cdist(rest, books[level].double())
        chosen = distance.gather(1, codes[:, level : level + 1])[:, 0]
        wrong += int((chosen > distance.amin(1) * (1 + 1e-6)).sum())
        rest = rest - books[level].double()[codes[:, level]]
    if wrong:
        raise SystemExit(f"residual_quantize chose a farther code {wrong} times; nothing was timed")
    return {
        "case": "residual_quantize [5000, 48]",
        "type": "float32",
        "forward": 0.0,
        "forward bound": 0.0,
        "backward": 0.0,
        "backward bound": 0.0,
    }
