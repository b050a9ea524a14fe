"""A chat model from settings, behind the store's cache and inside a budget."""

from __future__ import annotations

from agents.chat import Amount, Budget, ChatClient, connect
from workbench.config import LLMSettings
from workbench.store import Store


def budget_of(llm: LLMSettings) -> Budget:
    """The bounds of a run, nothing of them used."""
    return Budget(tokens=llm.max_tokens, cost=llm.max_cost, calls=llm.max_calls, wall=llm.max_seconds)


def used_by(store: Store, run: str) -> Amount:
    """What a run has used since it began, in every process that went on with it, by the calls that the store has of it."""
    calls = store.call_totals(run)
    return Amount(calls.prompt_tokens + calls.completion_tokens, calls.cost, calls.calls - calls.cached + calls.retries)


def chat_client(store: Store, llm: LLMSettings, budget: Budget | None = None, spec: str = "") -> ChatClient:
    """A client whose answers the store keeps. budget: one that several clients share, by default one of its own; spec: another model.

    Raises what `agents.chat.connect` raises.
    """
    return connect(
        spec or llm.spec, cache=store.response_cache(), concurrency=llm.concurrency, timeout=llm.timeout, retries=llm.retries,
        budget=budget or budget_of(llm),
    )  # fmt: skip
