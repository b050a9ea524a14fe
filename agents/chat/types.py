"""The chat-model seam: what is asked, what comes back, and what is counted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Message:
    """One turn; role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """One question. Everything that can change the answer is here, so its hash addresses the answer.

    schema: JSON schema the answer must satisfy, or None for free text; repeat: tells apart wanted repetitions of one question.
    """

    messages: tuple[Message, ...]
    schema: dict[str, Any] | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    repeat: int = 0


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is each continuation after the prompt? Log-likelihoods are sums over the continuation's tokens, in nats.

    empty: the prompt of the null context, for PMI (`log P(c | prompt) - log P(c | empty)`); None leaves PMI out.
    """

    prompt: str
    continuations: tuple[str, ...]
    empty: str | None = None


Request = ChatRequest | ScoreRequest


def request_key(model_id: str, request: Request) -> str:
    """Content address of an answer: SHA-256 of the model's identity and the request's canonical JSON."""
    body = {"model": model_id, "kind": type(request).__name__, **asdict(request)}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Response:
    """One answer.

    text: what the model wrote, or for a score request a JSON list of scores; tokens as the model's own tokenizer or endpoint counts them.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class CallRecord:
    """One dispatched or cached question, as the store keeps it. error: empty, or why no usable answer came.

    prompt_tokens, completion_tokens, cost: all that its attempts were charged for; of a cached one the answer's tokens, at no cost.
    """

    key: str
    model: str
    kind: str
    cached: bool
    prompt_tokens: int
    completion_tokens: int
    retries: int
    seconds: float
    cost: float
    error: str = ""


@dataclass
class Counts:
    """Running totals of one client."""

    calls: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    parse_failures: int = 0
    failures: int = 0
    cost: float = 0.0
    seconds: float = field(default=0.0)


class ResponseCache(Protocol):
    """Answers by content address. The store's implementation survives the process; `put` of a present key changes nothing."""

    def get(self, key: str) -> Response | None: ...

    def put(self, key: str, model: str, request: Request, response: Response) -> None: ...
