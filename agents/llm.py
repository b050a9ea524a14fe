"""Agents played by a language model, in one of two ways.

`answer`: one structured answer a page says what is taken, how it is rated, how the page felt and whether the agent goes on.
`likelihood`: what is taken is drawn from how much likelier each title becomes after the persona's latest ones (pointwise mutual
information), one structured answer gives ratings and feeling, and the session model alone decides about leaving. Small local models hold
a real preference signal in their likelihoods and hardly any in what they write (docs/agents.md has the measurement), so this is the
default where a model can score.

A page that a model cannot answer after its bounded retries is decided by the fallback policy, and the decision says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from agents import prompts
from agents.chat import Answer, CallFailed, ChatClient, ChatRequest, Message, ScoreRequest
from agents.ratings import feeling_about
from agents.seeding import stream
from agents.types import FEELINGS, Decision, Feeling, PageContext, PageItem, Policy, Watch
from recsys_core.errors import DataError

Elicitation = Literal["answer", "likelihood"]
ACTIVITY_RATE = {1: 0.7, 2: 1.0, 3: 1.3}
"""Share of the average take rate by activity tier in `likelihood` mode; a setting, since logs without exposures cannot tell it."""


Parse = Callable[[str], "Parsed"]


@dataclass(frozen=True)
class Parsed:
    """One structured answer, checked against the page it is about."""

    taken: tuple[tuple[int, float], ...]
    feeling: Feeling
    go_on: bool


class LLMPolicy:
    """A page decision by a chat model. levels: the rating values allowed; take_rate: average share of a page taken in `likelihood` mode."""

    name = "llm"

    def __init__(
        self,
        client: ChatClient,
        fallback: Policy,
        levels: prompts.Levels,
        elicit: Elicitation | None = None,
        take_rate: float = 0.3,
        temperature: float = 0.7,
    ) -> None:
        if elicit == "likelihood" and not client.can_score:
            raise DataError(f"model {client.model_id!r} cannot score continuations, which elicit='likelihood' needs; use elicit='answer'")
        self.client, self.fallback, self.levels = client, fallback, levels
        self.elicit: Elicitation = elicit or ("likelihood" if client.can_score else "answer")
        self.take_rate, self.temperature = take_rate, temperature

    async def decide(self, contexts: list[PageContext]) -> list[Decision]:
        """Asks about all pages at once; the client bounds how many are in flight."""
        return list(await asyncio.gather(*(self._decide(c) for c in contexts)))

    async def _decide(self, context: PageContext) -> Decision:
        if self.elicit == "answer":
            return await self._by_answer(context)
        return await self._by_likelihood(context)

    async def _by_answer(self, context: PageContext) -> Decision:
        numbers = tuple(i.number for i in context.items)
        schema = prompts.decision_schema(numbers, self.levels, len(numbers))
        prompt = prompts.decision_prompt(context, self.levels)
        answer = await self._ask(context, prompt, schema, 24 + 12 * len(numbers), lambda text: parse_answer(text, numbers, self.levels))
        if answer.value is None:
            return await self._fall_back(context, answer.error, answer.keys)
        taken = dict(answer.value.taken)
        return _decision(context, answer.value, tuple(float(i.number in taken) for i in context.items), answer.keys)

    async def _by_likelihood(self, context: PageContext) -> Decision:
        titles = tuple(f" {prompts.one_line(i.title)}" for i in context.items)
        try:
            scored = await self.client.score(ScoreRequest(prompts.taste_prompt(context.persona), titles, prompts.EMPTY_TASTE))
        except CallFailed as failed:
            return await self._fall_back(context, str(failed), ())
        preference = np.array(scored.scores)
        taken = self._draw(context, preference)
        schema = prompts.reaction_schema(len(taken), self.levels)
        numbers = tuple(i.number for i in taken)
        prompt = prompts.reaction_prompt(context, taken, self.levels)
        answer = await self._ask(context, prompt, schema, 24 + 4 * len(taken), lambda text: parse_reaction(text, numbers, self.levels))
        keys = (scored.key, *answer.keys)
        if answer.value is None:
            return await self._fall_back(context, answer.error, keys)
        return _decision(context, answer.value, tuple(float(x) for x in preference), keys)

    def _draw(self, context: PageContext, preference: np.ndarray) -> tuple[PageItem, ...]:
        """Takes each item with a probability that rises with its standing on the page and averages the persona's rate."""
        rate = min(self.take_rate * ACTIVITY_RATE[context.persona.activity], 0.9)
        z = (preference - preference.mean()) / max(float(preference.std()), 1e-6)
        probability = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + z)))
        probability *= rate / probability.mean()
        draws = stream(context.seed, "likelihood", context.persona.user, context.page).random(len(z))
        return tuple(item for item, p, u in zip(context.items, probability, draws, strict=True) if u < p)

    async def _ask(self, context: PageContext, prompt: str, schema: dict[str, Any], max_tokens: int, parse: Parse) -> Answer[Parsed]:
        request = ChatRequest(
            (Message("system", prompts.SYSTEM), Message("user", prompt)),
            schema=schema,
            max_tokens=max_tokens,
            temperature=self.temperature,
            seed=int(stream(context.seed, "ask", context.persona.user, context.page).integers(2**31)),
        )
        return await self.client.ask_json(request, parse)

    async def _fall_back(self, context: PageContext, why: str, keys: tuple[str, ...]) -> Decision:
        (decision,) = await self.fallback.decide([context])
        return replace(decision, fallback=f"{self.fallback.name}: {why}", calls=keys)


def parse_answer(text: str, numbers: tuple[int, ...], levels: prompts.Levels) -> Parsed:
    """Reads a whole page decision; raises ValueError, KeyError or TypeError that says what is wrong with it.

    numbers: those on the page. A repeated number counts once, the first wins.
    """
    body = _object(text)
    if not isinstance(body["next"], bool):
        raise ValueError(f"next is {body['next']!r}, not true or false")
    return Parsed(_ratings([(entry["n"], entry["rating"]) for entry in body["take"]], numbers, levels), _feeling(body), body["next"])


def parse_reaction(text: str, numbers: tuple[int, ...], levels: prompts.Levels) -> Parsed:
    """Reads the reaction to the items `numbers`, one rating each in that order; raises as `parse_answer` does."""
    body = _object(text)
    ratings = body.get("ratings", [])
    if len(ratings) != len(numbers):
        raise ValueError(f"{len(ratings)} ratings for {len(numbers)} items")
    return Parsed(_ratings(list(zip(numbers, ratings, strict=True)), numbers, levels), _feeling(body), go_on=True)


def _object(text: str) -> dict[str, Any]:
    body = json.loads(text)
    if not isinstance(body, dict):
        raise ValueError(f"the answer is a {type(body).__name__}, not an object")
    return body


def _feeling(body: dict[str, Any]) -> Feeling:
    feeling: Feeling = body["feeling"]
    if feeling not in FEELINGS:
        raise ValueError(f"feeling {feeling!r} is not one of {', '.join(FEELINGS)}")
    return feeling


def _ratings(pairs: list[tuple[Any, Any]], numbers: tuple[int, ...], levels: prompts.Levels) -> tuple[tuple[int, float], ...]:
    taken: dict[int, float] = {}
    for number, rating in pairs:
        if isinstance(number, bool) or number not in numbers:
            raise ValueError(f"item number {number!r} is not on the page")
        if isinstance(rating, bool) or rating not in levels:
            raise ValueError(f"rating {rating!r} is not one of {levels}")
        taken.setdefault(number, float(rating))
    return tuple(taken.items())


def _decision(context: PageContext, parsed: Parsed, preference: tuple[float, ...], keys: tuple[str, ...]) -> Decision:
    # The model tells how the page felt; what one item left is told by its rating, or one rated worst would have delighted.
    watched = tuple(Watch(number, rating, feeling_about(rating, context.persona)) for number, rating in parsed.taken)
    return Decision(watched, leave=not parsed.go_on, feeling=parsed.feeling, preference=preference, calls=keys)
