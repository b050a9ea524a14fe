"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from recsys_core.errors import DataError, unknown_name
from workbench.prompts.optimizer import Optimizer
from workbench.prompts.proposing import Proposer

_WITHOUT_PROPOSER = {"components": "Components"}
_WITH_PROPOSER = {"recprompt": "RecPrompt", "po4isr": "PO4ISR", "gepa": "Gepa", "dspy": "DSPy"}
OPTIMIZERS = (*_WITHOUT_PROPOSER, *_WITH_PROPOSER)


def needs_proposer(name: str) -> bool:
    """Whether an optimizer asks a model for templates; raises UnknownNameError that lists the names."""
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    return name in _WITH_PROPOSER


def create_optimizer(name: str, proposer: Proposer | None = None, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Optimizer:
    """An optimizer with its own settings, the arguments of its class.

    Raises UnknownNameError for an unknown name, DataError for unknown settings and for a missing proposer, and UnavailableError where its
    package is not installed.
    """
    asks = needs_proposer(name)
    if asks and proposer is None:
        raise DataError(f"optimizer {name!r} asks a model for templates; give it a proposer, or use 'components', which needs none")
    made: Callable[..., Optimizer] = getattr(
        import_module(f"workbench.prompts.optimizers.{name}"), _WITH_PROPOSER.get(name) or _WITHOUT_PROPOSER[name]
    )
    try:
        return made(*((proposer,) if asks else ()), seed=seed, **(settings or {}))
    except TypeError as error:
        raise DataError(f"settings {dict(settings or {})} of optimizer {name!r}: {error}; see the arguments of {made.__name__}") from None
