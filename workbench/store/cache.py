"""The response cache of the chat-model seam, kept in the store."""

from __future__ import annotations

import time
from dataclasses import asdict

from sqlalchemy import select

from agents.chat.types import Request, Response
from workbench.store.database import Database
from workbench.store.models import LlmResponse


class StoreCache:
    """Answers by content address, shared by all runs, threads and processes that open the store.

    Each put is committed before it returns, so that no paid answer is lost with the process.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> Response | None:
        """The stored answer, or None."""
        query = select(LlmResponse.text, LlmResponse.prompt_tokens, LlmResponse.completion_tokens).where(LlmResponse.key == key)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Response(*row) if row else None

    def put(self, key: str, model: str, request: Request, response: Response) -> None:
        """Keeps an answer; a present key changes nothing. Raises RunStoppedError where the store is full."""
        row = {"key": key, "model": model, "request": asdict(request), **asdict(response), "created": time.time()}
        with self._database.write() as connection:
            connection.execute(self._database.insert_new(LlmResponse), row)
