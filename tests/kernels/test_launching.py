"""Launches that remember what Triton compiled: for which arguments, and with what they are launched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kernels import launching
from kernels.launching import launch


class Compiled:
    """Stands for what Triton compiles; keeps what it is launched with."""

    function, packed_metadata = 7, (4, 1, 0)

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def run(self, *given: Any) -> None:
        self.launches.append(given)


class Matrix:
    """Stands for a descriptor."""

    def __init__(self, *kind: int) -> None:
        self.kind = kind


class Kernel:
    """Stands for a kernel of three arguments and two constants; counts how often Triton is asked."""

    def __init__(self) -> None:
        self.fn, self.params, self.asked, self.compiled = object(), range(5), 0, Compiled()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **options: Any) -> Compiled:
            self.asked += 1
            return self.compiled

        return run


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 99, raising=False)
    monkeypatch.setattr(launching, "_known", {})
    return Kernel()


def test_the_second_launch_of_a_kind_goes_past_triton(kernel: Kernel) -> None:
    first, second = torch.zeros(64), torch.zeros(64)
    launch(kernel, 5, first, 17, None, A=1, B="x")
    launch(kernel, 6, second, 19, None, A=1, B="x")
    launch(kernel, (6, 2), second, 21, None, A=1, B="x")
    assert kernel.asked == 1
    fixed = (99, 7, (4, 1, 0), None, None, None)
    assert kernel.compiled.launches == [
        (6, 1, 1, *fixed, second.data_ptr(), 19, None, None, None),
        (6, 2, 1, *fixed, second.data_ptr(), 21, None, None, None),
    ]


def test_a_descriptor_is_of_the_kind_it_says(kernel: Kernel) -> None:
    x, matrices = torch.zeros(64), [Matrix(64, 128), Matrix(64, 128), Matrix(128, 128)]
    for matrix in matrices:
        launch(kernel, 5, x, matrix, None, A=1, B="x")
    assert kernel.asked == 2
    assert [launched[-4] for launched in kernel.compiled.launches] == [matrices[1]]


@pytest.mark.parametrize(
    "other",
    [
        ((torch.zeros(64, dtype=torch.float16), 17, 0.5), {"A": 1, "B": "x"}),
        ((torch.zeros(64)[1:], 17, 0.5), {"A": 1, "B": "x"}),
        ((torch.zeros(64), 1, 0.5), {"A": 1, "B": "x"}),
        ((torch.zeros(64), 32, 0.5), {"A": 1, "B": "x"}),
        ((torch.zeros(64), 2**31 + 1, 0.5), {"A": 1, "B": "x"}),
        ((torch.zeros(64), 17, None), {"A": 1, "B": "x"}),
        ((torch.zeros(64), 17, 0.5), {"A": 2, "B": "x"}),
    ],
    ids=["type", "alignment", "one", "multiple of 16", "64 bits", "nothing", "constant"],
)
def test_another_kind_is_compiled_anew(kernel: Kernel, other: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    for arguments, options in (((torch.zeros(64), 17, 0.5), {"A": 1, "B": "x"}), other) * 2:
        launch(kernel, 1, *arguments, **options)
    assert kernel.asked == 2
    assert len(kernel.compiled.launches) == 2


@triton.jit
def _scale(x, out, shift, factor, count, N: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, N)
    value = tl.load(x + place, place < count, 0.0) * factor
    if shift is not None:
        value += tl.load(shift)
    tl.store(out + place, value, place < count)


@pytest.mark.gpu
def test_every_kind_of_argument_arrives() -> None:
    x = torch.randn(80, device="cuda")
    for _ in range(2):
        for start in (0, 1, 4):
            for count in (1, 16, 33):
                for shift in (None, x[3]):
                    for factor in (0.5, 2.0):
                        given, out = x[start:], torch.zeros(64, device="cuda")
                        launch(_scale, 1, given, out, shift, factor, count, N=64, num_warps=1)
                        expected = given[:count] * factor + (0 if shift is None else shift)
                        torch.testing.assert_close(out[:count], expected)
                        assert not out[count:].any()
