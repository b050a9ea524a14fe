"""How long work reports on itself."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the share done (0 .. 1) and a short text; raise from it to interrupt."""


def silent(share: float, text: str) -> None:
    """Reports to nobody."""
