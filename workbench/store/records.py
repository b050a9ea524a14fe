"""What the store is given and gives back: plain, typed, immutable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents.types import Feeling, Persona

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from recsys_core.data.jagged import Floats, Ints

Status = Literal["started", "resumed", "finished", "stopped", "failed"]
"""What a run event says."""


@dataclass(frozen=True)
class StatusEvent:
    """One change of a run's state; at: seconds since 1970 (UTC)."""

    status: Status
    at: float
    message: str


@dataclass(frozen=True)
class RunSummary:
    """A run with its present state and size. status: of its last event, but `interrupted` where that left it at work and nobody is: its
    process was killed, or lost its machine. created, updated: seconds since 1970 (UTC); dataset: its name, empty where none was used."""

    id: str
    kind: str
    name: str
    status: Status | Literal["interrupted"]
    message: str
    created: float
    updated: float
    config: dict[str, Any]
    dataset: str
    dataset_hash: str
    split_hash: str
    code_version: str
    seed: int
    agents: int
    pages: int


@dataclass(frozen=True)
class AgentRecord:
    """A simulated user with the external id; persona.user is the dense one."""

    persona: Persona
    policy: str
    external: str


@dataclass(frozen=True)
class ItemRecord:
    """What the dictionary of a dataset says of one item."""

    external: str
    title: str
    tags: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Interactions:
    """What the agents of a run took, ordered by user, page, and the order within the page.

    All columns have N rows: user, item, page, position, step [N] int64 (dense ids; step counts a user's interactions from 0),
    rating, propensity [N] float64; feeling, arm, policy: N strings.
    """

    user: Ints
    item: Ints
    page: Ints
    position: Ints
    step: Ints
    rating: NDArray
    propensity: NDArray
    feeling: tuple[Feeling, ...]
    arm: tuple[str, ...]
    policy: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class PageTotals:
    """What all agents of a run did on their page `page`, from 0.

    agents: those who reached it; shown, taken: items; rating: mean of those given, NaN without any; fallbacks: pages that the policy did
    not decide itself; exits: how many sessions ended with it, by reason.
    """

    page: int
    agents: int
    shown: int
    taken: int
    rating: float
    fallbacks: int
    exits: dict[str, int]


@dataclass(frozen=True)
class CallTotals:
    """Model calls of a run. Tokens, retries, seconds and cost are those of dispatched calls; an answer from the cache costs none.

    questions: different ones, however often they were asked, as a resumed run does with all of its beginning.
    """

    calls: int
    cached: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    retries: int
    seconds: float
    cost: float
    questions: int


@dataclass(frozen=True)
class PromptVersion:
    """One version of a named prompt; parent: the id it was made from."""

    id: str
    name: str
    text: str
    parent: str | None
    author: str
    created: float


@dataclass(frozen=True)
class Opening:
    """A look at the sealed test split of a ranking task.

    task_hash: of all its rows; test_hash: of the test rows alone; template: the prompt version that was tested, empty for none; who: a
    person or program; at: seconds since 1970 (UTC).
    """

    task: str
    task_hash: str
    test_hash: str
    template: str
    who: str
    reason: str
    at: float


@dataclass(frozen=True)
class PromptTrial:
    """What a prompt search measured: a prompt version on n rows of a part, mean of the metric and 95% interval.

    number: place in the search, from 0; at: seconds since 1970 (UTC).
    """

    number: int
    prompt_id: str
    part: str
    metric: str
    n: int
    mean: float
    low: float
    high: float
    at: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One metric of one model on one part (`valid`, `test`): mean, its interval, and the value of each user [n] float32.

    users_hash: `hash_users` of the user order; two evaluations may be paired only where it is equal.
    """

    model: str
    arm: str
    seed: int
    part: str
    metric: str
    mean: float
    low: float
    high: float
    per_user: Floats
    users_hash: str


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two arms of one model: mean difference (b - a), its interval and p-value."""

    model: str
    arm_a: str
    arm_b: str
    part: str
    metric: str
    difference: float
    low: float
    high: float
    p: float


def hash_users(users: Ints) -> str:
    """SHA-256 of an order of dense user ids [n] int64."""
    return hashlib.sha256(users.astype("<i8").tobytes()).hexdigest()
