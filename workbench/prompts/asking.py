"""Putting a filled prompt to a chat model, with bounded retries that depend on nothing but the answer's text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agents.chat import CallFailed, ChatClient, ChatRequest, Message, request_key
from recsys_core.errors import DataError
from workbench.prompts.templates import Prompt

T = TypeVar("T")
_ATTEMPTS = 16
"""Repeat indices that one repetition has for its attempts."""
_RETRY_TEMPERATURE = 0.7
"""Least temperature of a retry; a greedy model would repeat its unusable answer."""
_REASONING_TOKENS = 768


@dataclass(frozen=True)
class Asking:
    """temperature: of the first question; retries: further ones after an unusable answer, 0 to 15; max_tokens: None for enough.

    Raises DataError for values out of these bounds.
    """

    temperature: float = 0.0
    retries: int = 1
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.retries < _ATTEMPTS or self.temperature < 0 or (self.max_tokens is not None and self.max_tokens < 1):
            raise DataError(
                f"retries is {self.retries}, temperature {self.temperature:g} and max_tokens {self.max_tokens}; "
                f"give 0 to {_ATTEMPTS - 1} retries, a temperature >= 0 and at least 1 token"
            )

    def tokens(self, answer: int, reasoned: bool) -> int:
        """max_tokens for an answer of about so many tokens, with room for reasoning where the prompt asks for it."""
        return self.max_tokens or answer + (_REASONING_TOKENS if reasoned else 0)


@dataclass(frozen=True)
class Heard(Generic[T]):
    """The last answer's text and what it was read as, None where it was of no use; see Reply for the rest."""

    text: str
    value: T | None
    retries: int
    keys: tuple[str, ...]
    error: str


async def ask(
    client: ChatClient, prompt: Prompt, read: Callable[[str], T | None], asking: Asking, max_tokens: int, repeat: int = 0
) -> Heard[T]:
    """Asks until `read` makes something of the answer, at most `asking.retries` times more. Raises as `ChatClient.ask`, less CallFailed."""
    turns = (*((Message("system", prompt.system),) if prompt.system else ()), Message("user", prompt.text))
    keys: list[str] = []
    text = ""
    for attempt in range(asking.retries + 1):
        temperature = max(asking.temperature, _RETRY_TEMPERATURE) if attempt else asking.temperature
        request = ChatRequest(turns, max_tokens=max_tokens, temperature=temperature, repeat=repeat * _ATTEMPTS + attempt)
        keys.append(request_key(client.model_id, request))
        try:
            text = (await client.ask(request)).text
        except CallFailed as failed:
            return Heard("", None, attempt, tuple(keys), str(failed))
        if (value := read(text)) is not None:
            return Heard(text, value, attempt, tuple(keys), "")
    return Heard(text, None, asking.retries, tuple(keys), "")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order. After a failure the rest still ends, for its answers are paid for and kept by the cache; then it is raised."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
