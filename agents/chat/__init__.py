"""Chat models behind one face: `connect("embedded")`, `connect("openai:gpt-4o-mini")`, `connect("vllm:MODEL@http://localhost:8000/v1")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agents.chat.budget import Amount, Budget, BudgetExceeded
from agents.chat.cache import MemoryCache
from agents.chat.client import Answer, ChatClient, Scores
from agents.chat.errors import CallFailed
from agents.chat.prices import Price
from agents.chat.spec import Endpoint, endpoint
from agents.chat.types import CallRecord, ChatRequest, Counts, Message, Request, Response, ResponseCache, ScoreRequest, request_key
from recsys_core.errors import DataError

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel

__all__ = [
    "Amount",
    "Answer",
    "Budget",
    "BudgetExceeded",
    "CallFailed",
    "CallRecord",
    "ChatClient",
    "ChatRequest",
    "Counts",
    "Endpoint",
    "MemoryCache",
    "Message",
    "Price",
    "Request",
    "Response",
    "ResponseCache",
    "ScoreRequest",
    "Scores",
    "connect",
    "endpoint",
    "request_key",
]


def connect(
    model: str | BaseChatModel,
    *,
    cache: ResponseCache | None = None,
    concurrency: int | None = None,
    timeout: float = 60.0,
    retries: int = 3,
    backoff: float = 0.5,
    budget: Budget | None = None,
    price: Price | None = None,
    on_call: Callable[[CallRecord], None] | None = None,
) -> ChatClient:
    """A client for a spec string or a LangChain chat model; the settings are those of ChatClient.

    price: left out, the environment's WORKBENCH_LLM_PRICE is used; without either, costs are unknown and counted as 0.
    Raises DataError for a malformed spec or a cost budget without a price, UnavailableError where a key, package or weights are missing.
    """
    found = endpoint(model)
    price = price or (Price(0.0, 0.0) if found.sampling == "embedded" else Price.from_environment())
    if price is None and budget is not None and budget.cost is not None:
        raise DataError(
            f"a cost budget needs the price of {found.model_id!r}; set WORKBENCH_LLM_PRICE, such as 0.15,0.60, or bound tokens instead"
        )
    return ChatClient(
        found,
        cache=cache,
        concurrency=concurrency,
        timeout=timeout,
        retries=retries,
        backoff=backoff,
        budget=budget,
        price=price,
        on_call=on_call,
    )
