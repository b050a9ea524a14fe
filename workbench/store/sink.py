"""Writes one run's events: the store's side of `simulators.events.EventSink`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from agents.chat.types import CallRecord
from agents.types import Persona
from recsys_core.errors import AlreadyStoredError, DataError
from simulators.events import Action, Exposure, PageRecord
from workbench.store.database import Database
from workbench.store.lease import check_held
from workbench.store.models import ActionRow, Agent, ExposureRow, LlmCall, Page
from workbench.store.queries import read_pages


class RunSink:
    """Appends to the run `run_id`. Safe to call from several threads; every call is one transaction.

    holder: who holds the run's lease, which every call then checks (HeldError where it is lost); None for a run that nobody holds.

    All writers raise RunStoppedError where the store is full or cannot be written: what was stored stays; the message says how to resume.
    """

    def __init__(self, database: Database, run_id: str, holder: str | None = None) -> None:
        self.run_id = run_id
        self._holder = holder
        self._database = database
        self._resume = f"go on with: workbench simulate --resume {run_id}"

    def agents(self, personas: list[Persona], policy: str) -> None:
        """Registers the agents of the run; those already there are left as they are."""
        rows = [{"run_id": self.run_id, "user_id": int(p.user), "policy": policy, "persona": asdict(p)} for p in personas]
        if rows:
            with self._write() as connection:
                connection.execute(self._database.insert_new(Agent), rows)

    def pages(self, records: list[PageRecord]) -> None:
        """Appends pages of registered agents, all of them or none.

        Raises DataError for a page that is already stored, an agent that is not registered, and a page that contradicts itself: positions
        other than 0 .. n - 1, an action on something not shown or taken twice, or NaN.
        """
        if not records:
            return
        for record in records:
            _check(record)
        try:
            with self._write() as connection:
                new = insert(Page).returning(Page.id, sort_by_parameter_order=True)
                ids = connection.execute(new, [self._page(record) for record in records]).scalars().all()
                exposures = [_exposure(i, e) for i, record in zip(ids, records, strict=True) for e in record.exposures]
                actions = [_action(i, turn, a) for i, record in zip(ids, records, strict=True) for turn, a in enumerate(record.actions)]
                if exposures:
                    connection.execute(insert(ExposureRow), exposures)
                if actions:
                    connection.execute(insert(ActionRow), actions)
        except IntegrityError as error:
            raise self._refusal(records) from error

    def finished_pages(self, user: int) -> list[PageRecord]:
        """What is already stored of an agent, in page order."""
        with self._database.read() as connection:
            return read_pages(connection, self.run_id, int(user), int(user))

    def calls(self, records: list[CallRecord]) -> None:
        """Appends model calls."""
        if records:
            with self._write() as connection:
                connection.execute(insert(LlmCall), [{"run_id": self.run_id, **asdict(record)} for record in records])

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._database.write(self._resume) as connection:
            if self._holder is not None:
                check_held(connection, self.run_id, self._holder)
            yield connection

    def _page(self, record: PageRecord) -> dict[str, Any]:
        return {
            "run_id": self.run_id, "user_id": int(record.user), "number": int(record.page), "arm": record.arm, "policy": record.policy,
            "feeling": record.feeling, "exit": record.exit, "fallback": record.fallback, "calls": record.calls, "at": time.time(),
        }  # fmt: skip

    def _refusal(self, records: list[PageRecord]) -> DataError:
        """Why the database refused a batch: a page twice, or an agent that it does not know."""
        keys = [(int(record.user), int(record.page)) for record in records]
        with self._database.read() as connection:
            stored = select(Page.user_id, Page.number).where(Page.run_id == self.run_id, tuple_(Page.user_id, Page.number).in_(keys))
            seen = {(user, number) for user, number in connection.execute(stored)}
            known = set(connection.execute(select(Agent.user_id).where(Agent.run_id == self.run_id)).scalars())
        for user, number in keys:
            if user not in known:
                return DataError(f"user {user} is not an agent of run {self.run_id}; register it with agents() before its pages")
            if (user, number) in seen:
                stored_already = f"page {number} of user {user} is already stored in run {self.run_id}"
                return AlreadyStoredError(f"{stored_already}; continue behind finished_pages({user})")
            seen.add((user, number))
        return DataError(f"run {self.run_id} is not in store {self._database.where}; start it with start_run()")


def _exposure(page_id: int, e: Exposure) -> dict[str, Any]:
    """Numbers are made plain: SQLite would keep a numpy integer as a blob."""
    numbers = {"position": int(e.position), "item_id": int(e.item), "score": float(e.score), "propensity": float(e.propensity)}
    return {"page_id": page_id, **numbers}


def _action(page_id: int, turn: int, a: Action) -> dict[str, Any]:
    numbers = {"position": int(a.position), "item_id": int(a.item), "rating": float(a.rating)}
    return {"page_id": page_id, "turn": turn, "feeling": a.feeling, **numbers}


def _check(record: PageRecord) -> None:
    page = f"page {record.page} of user {record.user}"
    shown = {e.position: e.item for e in record.exposures}
    positions, taken = [e.position for e in record.exposures], [a.position for a in record.actions]
    if positions != list(range(len(positions))):
        raise DataError(f"{page} has exposures at positions {positions}; number them 0 .. {len(positions) - 1} in order")
    for position, item in ((a.position, a.item) for a in record.actions):
        if shown.get(position) != item:
            raise DataError(f"{page} has an action on item {item} at position {position}, where {shown.get(position, 'nothing')} was shown")
        if taken.count(position) > 1:
            raise DataError(f"{page} has {taken.count(position)} actions at position {position}; an item is taken once")
    numbers = [x for e in record.exposures for x in (e.score, e.propensity)] + [a.rating for a in record.actions]
    if any(math.isnan(x) for x in numbers):
        raise DataError(f"{page} holds NaN as a score, propensity or rating; each must be a number")
