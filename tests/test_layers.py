"""Imports run one way: app -> workbench -> simulators -> agents -> recsys_core -> kernels. The two lowest need almost nothing installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("app", "workbench", "simulators", "agents", "recsys_core", "kernels")
LIGHT = {"torch", "numpy", "pyarrow", "pydantic", "safetensors"}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def files(layer: str) -> list[Path]:
    return [ROOT / "app.py"] if layer == "app" else sorted((ROOT / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_it(layer: str) -> None:
    above = set(LAYERS[: LAYERS.index(layer)])
    assert files(layer)
    for path in files(layer):
        assert not imported(path) & above, f"{path.relative_to(ROOT)} imports upwards"


def test_the_dashboard_talks_to_workbench_only() -> None:
    assert imported(ROOT / "app.py") & set(LAYERS) == {"workbench"}


@pytest.mark.parametrize("layer", ["recsys_core", "kernels"])
def test_the_core_needs_five_packages(layer: str) -> None:
    own = set(LAYERS)
    for path in files(layer):
        assert imported(path) - own - set(sys.stdlib_module_names) <= LIGHT | {"triton"}, path


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("recsys_core.data", {"torch", "transformers", "langchain_core"}),
        ("agents.chat", {"torch", "transformers", "langchain_core", "openai"}),
        ("workbench.store", {"torch", "alembic", "transformers"}),
        ("workbench.cli.main", {"transformers", "langchain_core", "streamlit", "alembic"}),
    ],
)
def test_heavy_packages_load_where_they_are_used(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
