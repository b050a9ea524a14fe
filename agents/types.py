"""What passes between an agent and the world: a persona, a page, a decision, and the policy that maps one to the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

FEELINGS = ("delighted", "satisfied", "indifferent", "bored", "annoyed")
Feeling = Literal["delighted", "satisfied", "indifferent", "bored", "annoyed"]


@dataclass(frozen=True)
class Persona:
    """A user as the training log shows them.

    activity, conformity, diversity: tiers 1 (low) to 3 (high), thirds of the population, as in Agent4Rec (Zhang et al. 2024, sec. 3.1).
    tastes: favourite genres, well-rated titles and the latest ones, in words; mean_rating and rating_std in the dataset's rating units.
    """

    user: int
    activity: int
    conformity: int
    diversity: int
    liked_tags: tuple[str, ...]
    disliked_tags: tuple[str, ...]
    liked_titles: tuple[str, ...]
    recent_titles: tuple[str, ...]
    mean_rating: float
    rating_std: float


@dataclass(frozen=True)
class PageItem:
    """One slot of a page, numbered from 1 for the agent. mean_rating and count are over the training log."""

    number: int
    item: int
    title: str
    tags: tuple[str, ...]
    mean_rating: float
    count: int


@dataclass(frozen=True)
class PageContext:
    """All that a policy may look at when it decides on one page."""

    persona: Persona
    page: int
    items: tuple[PageItem, ...]
    memory: str
    history: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Watch:
    """One item taken from a page: its number, the rating given in the dataset's units, and the feeling it left."""

    number: int
    rating: float
    feeling: Feeling


@dataclass(frozen=True)
class Decision:
    """What an agent did on a page.

    preference: a number an item in page order, higher is more wanted, where the policy has one (fidelity measures it).
    fallback: why the configured policy could not answer and another one did; empty when it answered itself.
    """

    watched: tuple[Watch, ...]
    leave: bool
    feeling: Feeling
    preference: tuple[float, ...] = ()
    fallback: str = ""
    calls: tuple[str, ...] = field(default=())


class Policy(Protocol):
    """Decides for a batch of agents at once. A decision depends on its context alone, never on its neighbours in the batch."""

    name: str

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        """One decision a context, in order."""
        ...
