"""What a ranker is and what it gives back: a ranking a row, the answers behind it, and how many of these were of use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from workbench.prompts.answers import Status
from workbench.prompts.positions import PositionCurve, position_curve
from workbench.prompts.tasks import Ranking, Row
from workbench.prompts.templates import Template


@dataclass(frozen=True)
class Reply:
    """One question about a row and what came of it.

    shown: candidate ids in the order of the prompt; ranking: of these, everything tied where the answer was invalid; text: the last answer;
    scores: by candidate id, where the model gave likelihoods; duplicates, unknown, missing: see RankingAnswer;
    retries: further questions after unusable answers; keys: content addresses of all questions; error: why no answer came.
    """

    shown: tuple[str, ...]
    ranking: Ranking
    status: Status
    text: str = ""
    scores: Mapping[str, float] | None = None
    duplicates: int = 0
    unknown: int = 0
    missing: int = 0
    retries: int = 0
    keys: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Ranked:
    """A row's id, its ranking, and the replies that it was made from."""

    row: str
    ranking: Ranking
    replies: tuple[Reply, ...]


class Ranker(Protocol):
    """Ranks rows by a filled template. The candidates are shown in the order in which a row has them, and grades are never read."""

    @property
    def template(self) -> Template: ...

    def calls(self, row: Row) -> int:
        """The most questions about a row, retries of unusable answers among them: for an estimate before anything is spent."""
        ...

    async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
        """One result a row, in their order; the client bounds how many questions are in flight.

        repeat: tells wanted repetitions apart, from 0; equal ones are answered from the cache. Raises BudgetExceeded and UnavailableError
        once what is in flight has come back, so that the cache keeps it; a question that fails alone leaves its candidates tied.
        """
        ...


@dataclass(frozen=True)
class Rates:
    """Counts over replies. complete, partial, invalid: of them; retried: further questions; duplicates, unknown: ids and titles."""

    complete: int = 0
    partial: int = 0
    invalid: int = 0
    retried: int = 0
    duplicates: int = 0
    unknown: int = 0

    @property
    def replies(self) -> int:
        return self.complete + self.partial + self.invalid

    def __str__(self) -> str:
        shares = (f"{n / max(self.replies, 1):.0%} {what}" for n, what in ((self.complete, "complete"), (self.partial, "partial")))
        return f"{self.replies} replies: {', '.join(shares)}, {self.invalid / max(self.replies, 1):.0%} invalid; {self.retried} retries"


def rates(results: Iterable[Ranked]) -> Rates:
    """How many replies were of use."""
    replies = [reply for result in results for reply in result.replies]
    counts = {status: sum(r.status == status for r in replies) for status in ("complete", "partial", "invalid")}
    return Rates(
        **counts,
        retried=sum(r.retries for r in replies),
        duplicates=sum(r.duplicates for r in replies),
        unknown=sum(r.unknown for r in replies),
    )


def positions(results: Iterable[Ranked]) -> PositionCurve:
    """How often what was shown at each position came first, over all usable replies."""
    return position_curve((reply.shown, reply.ranking) for result in results for reply in result.replies if reply.status != "invalid")
