"""A response cache in memory; the store has one that outlives the process."""

from __future__ import annotations

from agents.chat.types import Request, Response


class MemoryCache:
    """Answers by content address, for as long as the object lives."""

    def __init__(self) -> None:
        self._answers: dict[str, Response] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Response | None:
        return self._answers.get(key)

    def put(self, key: str, model: str, request: Request, response: Response) -> None:
        self._answers.setdefault(key, response)
