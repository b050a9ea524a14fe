"""What a simulation reports while it runs: one record a page, complete and final, so a run can stop at any point and go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agents.chat.types import CallRecord
from agents.types import Feeling, Persona


@dataclass(frozen=True)
class Exposure:
    """One item shown. position counts from 0 on its page.

    propensity: the probability that the arm shows this item there, 1 for a deterministic list.
    """

    position: int
    item: int
    score: float
    propensity: float


@dataclass(frozen=True)
class Action:
    """One item taken, by its position on the page; rating in the dataset's units."""

    position: int
    item: int
    rating: float
    feeling: Feeling


@dataclass(frozen=True)
class PageRecord:
    """One page of one agent. exit: empty while the agent goes on, else why the session ended here:
    `policy` (the agent left), `hazard` (fatigue), `pages` (the limit), `catalogue` (nothing left to show).
    """

    user: int
    page: int
    arm: str
    policy: str
    exposures: tuple[Exposure, ...]
    actions: tuple[Action, ...]
    feeling: Feeling
    exit: str
    fallback: str
    calls: tuple[str, ...]


class EventSink(Protocol):
    """Where a simulation writes. `pages` is one transaction: all of its records are kept or none."""

    def agents(self, personas: list[Persona], policy: str) -> None:
        """Registers the agents of the run; those already there are left as they are."""
        ...

    def pages(self, records: list[PageRecord]) -> None:
        """Appends pages; a page that is already stored raises, it is never written twice."""
        ...

    def finished_pages(self, user: int) -> list[PageRecord]:
        """What is already stored of an agent, in page order: the state to resume from."""
        ...

    def calls(self, records: list[CallRecord]) -> None:
        """Appends model calls."""
        ...
