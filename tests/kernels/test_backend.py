"""The switch between kernels and references."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from kernels.backend import compiled, use

HERE = torch.zeros(1)


def test_a_processor_runs_the_reference_unless_kernels_are_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not compiled(HERE)
    with use("triton"):
        assert compiled(HERE)
        with use("reference"):
            assert not compiled(HERE)
        assert compiled(HERE)
    assert not compiled(HERE)


def test_kernels_demanded_where_none_can_run_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use("triton"), pytest.raises(RuntimeError, match="tensors are on cpu; move them to a GPU"):
        compiled(HERE)
    assert not compiled(HERE)


@pytest.mark.parametrize(("value", "said"), [("reference", "False"), ("turbo", "set it to one of auto, triton, reference")])
def test_the_environment_decides_where_the_code_does_not(value: str, said: str) -> None:
    code = "import torch; from kernels.backend import compiled; print(compiled(torch.zeros(1)))"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "WORKBENCH_KERNELS": value}, capture_output=True, text=True, check=False
    )
    assert said in found.stdout + found.stderr
