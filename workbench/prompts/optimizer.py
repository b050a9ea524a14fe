"""What every optimizer is: a search through templates, which may spend what it is given and never sees the rows it will be judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials


@dataclass(frozen=True)
class Outcome:
    """What a search ended with.

    finalists: templates worth another look, the search's favourite first, without the start; empty if it found none.
    claimed: whether the loop itself says, by its own rule, that its favourite is better than the start. A paper's rule may say so of
    noise; what `optimize` reports is the paired test on rows that no search has seen.
    note: how it went, in a sentence; stopped: why it ended early, where a search that knows better what it has than its driver does gave
    up by itself.
    """

    finalists: tuple[Template, ...]
    claimed: bool
    note: str = ""
    stopped: str = ""


class Optimizer(Protocol):
    """A way to improve a template. Equal trials, seeds and answers give equal outcomes, so that a stopped search can be replayed."""

    @property
    def name(self) -> str:
        """Author of the templates it makes."""
        ...

    async def search(self, trials: Trials) -> Outcome:
        """Looks for templates better than `trials.start`, by `trials.measure` alone.

        Raises BudgetExceeded and UnavailableError as rankers do; what was tried until then is in `trials.tried`.
        """
        ...
