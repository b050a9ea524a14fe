"""The store: an append-only log in SQLite or PostgreSQL of every run, exposure, action, model answer, prompt and evaluation."""

from simulators.events import PageRecord
from workbench.store.cache import StoreCache
from workbench.store.code_version import code_version
from workbench.store.database import DEFAULT_STORE, usual_store
from workbench.store.queries import StoreReader
from workbench.store.records import (
    AgentRecord,
    CallTotals,
    Comparison,
    Evaluation,
    Interactions,
    ItemRecord,
    Opening,
    PageTotals,
    PromptTrial,
    PromptVersion,
    RunSummary,
    Status,
    StatusEvent,
    hash_users,
)
from workbench.store.sink import RunSink
from workbench.store.store import Store

__all__ = [
    "DEFAULT_STORE",
    "AgentRecord",
    "CallTotals",
    "Comparison",
    "Evaluation",
    "Interactions",
    "ItemRecord",
    "Opening",
    "PageRecord",
    "PageTotals",
    "PromptTrial",
    "PromptVersion",
    "RunSink",
    "RunSummary",
    "Status",
    "StatusEvent",
    "Store",
    "StoreCache",
    "StoreReader",
    "code_version",
    "hash_users",
    "usual_store",
]
