"""Packages that only some uses need, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from recsys_core.errors import missing_extra


def optional(package: str, extra: str, purpose: str) -> Any:
    """An optional package's module; raises UnavailableError that says what needs it and how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise missing_extra(package.partition(".")[0], extra, purpose) from error
