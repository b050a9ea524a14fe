"""Reading the store: every figure of the command line, the dashboard and the exports is one of these queries."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, select

from agents.types import Persona
from recsys_core.errors import UnknownNameError
from simulators.events import Action, Exposure, PageRecord
from workbench.store.database import Database
from workbench.store.lease import lapsed
from workbench.store.models import (
    ActionRow,
    Agent,
    ComparisonRow,
    DatasetItem,
    DatasetRow,
    DatasetUser,
    EvaluationRow,
    ExposureRow,
    LeaseRow,
    LlmCall,
    OpeningRow,
    Page,
    PromptRow,
    Run,
    RunEvent,
    TrialRow,
)
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
    StatusEvent,
)
from workbench.store.schema import ensure_schema

_USERS_A_QUERY = 500


class StoreReader:
    """The reading half of a store. Wherever a run is asked for, its id, a unique beginning of it, or `latest` will do.

    Close it, or use it as a context manager.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, target: str | Path, create: bool = False) -> Self:
        """Opens an SQLite file or a `postgresql+psycopg://` URL, and creates or upgrades its tables; what cannot be written is only read.

        create: make a missing file; otherwise a missing file is an error. Raises DataError for what is not a store or was written by a
        newer version, and UnavailableError for a server that does not answer.
        """
        database = Database(target, create)
        ensure_schema(database)
        return cls(database)

    @property
    def where(self) -> str:
        """The file, or the URL without its password."""
        return self._database.where

    def close(self) -> None:
        """Closes all connections."""
        self._database.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"

    def resolve(self, run: str, kind: str = "") -> str:
        """The full id of a run, among those of one `kind` where given. Raises UnknownNameError with the nearest and how to list them."""
        query = select(Run.id).order_by(Run.created.desc(), Run.id.desc())
        with self._database.read() as connection:
            ids = list(connection.execute(query.where(Run.kind == kind) if kind else query).scalars())
        if run in ids:
            return run
        if run == "latest" and ids:
            return ids[0]
        matches = [i for i in ids if run and i.startswith(run)]
        if len(matches) == 1:
            return matches[0]
        what = f"{kind} run" if kind else "run"
        if matches:
            raise UnknownNameError(f"{what} {run!r} is ambiguous: {', '.join(matches[:5])}; give more of the id")
        if not ids:
            raise UnknownNameError(f"no {what} {run!r}: store {self._database.where} has none yet")
        nearest = difflib.get_close_matches(run, ids, n=3, cutoff=0.0)
        raise UnknownNameError(f"no {what} {run!r}; nearest: {', '.join(nearest)}; list all {len(ids)} with: workbench runs")

    def runs(self, kind: str = "") -> list[RunSummary]:
        """All runs, or those of one kind, newest first."""
        return self._summaries(Run.kind == kind) if kind else self._summaries()

    def run(self, run: str) -> RunSummary:
        """One run."""
        return self._summaries(Run.id == self.resolve(run))[0]

    def status(self, run: str) -> list[StatusEvent]:
        """The changes of a run's state, oldest first."""
        query = select(RunEvent.status, RunEvent.at, RunEvent.message).where(RunEvent.run_id == self.resolve(run)).order_by(RunEvent.id)
        return [StatusEvent(*row) for row in self._rows(query)]

    def agents(self, run: str) -> list[AgentRecord]:
        """The agents of a run by dense user id."""
        query = (
            select(Agent.persona, Agent.policy, func.coalesce(DatasetUser.external, ""))
            .join(Run, Run.id == Agent.run_id)
            .outerjoin(DatasetUser, and_(DatasetUser.dataset_hash == Run.dataset_hash, DatasetUser.user_id == Agent.user_id))
            .where(Agent.run_id == self.resolve(run))
            .order_by(Agent.user_id)
        )
        return [AgentRecord(_persona(persona), policy, external) for persona, policy, external in self._rows(query)]

    def pages(self, run: str, user: int | None = None) -> list[PageRecord]:
        """Pages of a run, or of one dense user id, by user and page."""
        if user is None:
            return list(self.iter_pages(run))
        with self._database.read() as connection:
            return read_pages(connection, self.resolve(run), user, user)

    def iter_pages(self, run: str) -> Iterator[PageRecord]:
        """Pages of a run by user and page, some hundred users in memory at a time."""
        run_id = self.resolve(run)
        users = [user for (user,) in self._rows(select(Agent.user_id).where(Agent.run_id == run_id).order_by(Agent.user_id))]
        for start in range(0, len(users), _USERS_A_QUERY):
            some = users[start : start + _USERS_A_QUERY]
            with self._database.read() as connection:
                pages = read_pages(connection, run_id, some[0], some[-1])
            yield from pages

    def page_totals(self, run: str) -> list[PageTotals]:
        """What the agents of a run did on their first page, their second, and so on."""
        mine = Page.run_id == self.resolve(run)
        pages = select(Page.number, func.count(), func.sum(case((Page.fallback != "", 1), else_=0))).where(mine)
        # Positions of a page are 0 .. n - 1, so its last one counts its items: one look into the index a page, not one an exposure.
        last = select(func.max(ExposureRow.position)).where(ExposureRow.page_id == Page.id).correlate(Page).scalar_subquery()
        shown = select(Page.number, func.sum(func.coalesce(last + 1, 0))).where(mine)
        taken = select(Page.number, func.count(), func.avg(ActionRow.rating)).join(ActionRow, ActionRow.page_id == Page.id).where(mine)
        ended = select(Page.number, Page.exit, func.count()).where(mine, Page.exit != "").group_by(Page.exit)
        by_page, order = Page.number, (Page.number, Page.exit)
        with self._database.read() as connection:
            items = {page: int(count) for page, count in connection.execute(shown.group_by(by_page))}
            actions = {page: (count, mean) for page, count, mean in connection.execute(taken.group_by(by_page))}
            exits: dict[int, dict[str, int]] = {}
            for page, why, count in connection.execute(ended.group_by(by_page).order_by(*order)):
                exits.setdefault(page, {})[why] = count
            rows = connection.execute(pages.group_by(by_page).order_by(by_page)).all()
        return [
            PageTotals(page, agents, items.get(page, 0), *actions.get(page, (0, math.nan)), int(fallbacks), exits.get(page, {}))
            for page, agents, fallbacks in rows
        ]

    def log_hash(self, run: str) -> str:
        """SHA-256 of what was shown and done, by user, page and position; row ids, times, call keys and the run's own id are left out.

        Equal logs have equal hashes, on SQLite and PostgreSQL alike.
        """
        digest = hashlib.sha256()
        for p in self.iter_pages(run):
            exposures = [[e.position, e.item, e.score + 0.0, e.propensity + 0.0] for e in p.exposures]  # + 0.0: SQLite keeps no -0.0
            actions = [[a.position, a.item, a.rating + 0.0, a.feeling] for a in p.actions]
            content = [p.user, p.page, p.arm, p.policy, p.feeling, p.exit, p.fallback, exposures, actions]
            digest.update(json.dumps(content, separators=(",", ":")).encode() + b"\n")
        return digest.hexdigest()

    def interactions(self, run: str) -> Interactions:
        """What the agents took, by user, page, and order within the page.

        Pages that a fallback decided are left out: they are not the doing of the policy that the run is about.
        """
        import numpy as np

        taken = (ActionRow.item_id, Page.number, ActionRow.position, ActionRow.rating, ExposureRow.propensity, ActionRow.feeling)
        query = (
            select(Page.user_id, *taken, Page.arm, Page.policy)
            .join(ActionRow, ActionRow.page_id == Page.id)
            .join(ExposureRow, and_(ExposureRow.page_id == ActionRow.page_id, ExposureRow.position == ActionRow.position))
            .where(Page.run_id == self.resolve(run), Page.fallback == "")
            .order_by(Page.user_id, Page.number, ActionRow.turn)
        )
        rows = self._rows(query)
        user, item, page, position, rating, propensity, feeling, arm, policy = zip(*rows, strict=True) if rows else ((),) * 9
        users, counts = np.unique(np.array(user, np.int64), return_counts=True)
        step = np.concatenate([np.arange(n, dtype=np.int64) for n in counts]) if len(users) else np.empty(0, np.int64)
        return Interactions(
            np.array(user, np.int64), np.array(item, np.int64), np.array(page, np.int64), np.array(position, np.int64), step,
            np.array(rating, np.float64), np.array(propensity, np.float64), feeling, arm, policy,
        )  # fmt: skip

    def users(self, run: str) -> dict[int, str]:
        """Dense to external user ids of a run's dataset; empty where the run has none."""
        query = select(DatasetUser.user_id, DatasetUser.external).join(Run, Run.dataset_hash == DatasetUser.dataset_hash)
        return dict(map(tuple, self._rows(query.where(Run.id == self.resolve(run)))))

    def items(self, run: str) -> dict[int, ItemRecord]:
        """Dense item ids of a run's dataset with external id, title and tags; empty where the run has none."""
        columns = select(DatasetItem.item_id, DatasetItem.external, DatasetItem.title, DatasetItem.tags)
        mine = columns.join(Run, Run.dataset_hash == DatasetItem.dataset_hash).where(Run.id == self.resolve(run))
        rows = self._rows(mine.order_by(DatasetItem.item_id))
        return {item: ItemRecord(external, title, tuple(tags)) for item, external, title, tags in rows}

    def last_timestamp(self, run: str) -> int:
        """When the dataset of a run ends, in seconds; 0 for a run without one."""
        query = select(DatasetRow.last_timestamp).join(Run, Run.dataset_hash == DatasetRow.hash).where(Run.id == self.resolve(run))
        return next((int(last) for (last,) in self._rows(query)), 0)

    def call_totals(self, run: str) -> CallTotals:
        """Model calls of a run in sum."""

        def dispatched(column: ColumnElement | Any) -> ColumnElement:
            return func.coalesce(func.sum(case((LlmCall.cached, 0), else_=column)), 0)

        query = select(
            func.count(), func.coalesce(func.sum(case((LlmCall.cached, 1), else_=0)), 0),
            func.coalesce(func.sum(case((LlmCall.error != "", 1), else_=0)), 0),
            dispatched(LlmCall.prompt_tokens), dispatched(LlmCall.completion_tokens), dispatched(LlmCall.retries),
            dispatched(LlmCall.seconds), dispatched(LlmCall.cost), func.count(LlmCall.key.distinct()),
        ).where(LlmCall.run_id == self.resolve(run))  # fmt: skip
        return CallTotals(*self._rows(query)[0])

    def evaluations(self, run: str) -> list[Evaluation]:
        """Metrics of a run in the order in which they were added."""
        import numpy as np

        columns = {name: getattr(EvaluationRow, name) for name in Evaluation.__dataclass_fields__}
        query = select(*columns.values()).where(EvaluationRow.run_id == self.resolve(run)).order_by(EvaluationRow.id)
        rows = [dict(zip(columns, row, strict=True)) for row in self._rows(query)]
        return [Evaluation(**{**row, "per_user": np.frombuffer(row["per_user"], "<f4")}) for row in rows]

    def comparisons(self, run: str) -> list[Comparison]:
        """Paired comparisons of a run in the order in which they were added."""
        columns = [getattr(ComparisonRow, n) for n in Comparison.__dataclass_fields__]
        query = select(*columns).where(ComparisonRow.run_id == self.resolve(run)).order_by(ComparisonRow.id)
        return [Comparison(*row) for row in self._rows(query)]

    def prompts(self, name: str = "") -> list[PromptVersion]:
        """All prompt versions, or those of one name, oldest first."""
        return self._prompts(PromptRow.name == name) if name else self._prompts()

    def trials(self, run: str) -> list[PromptTrial]:
        """The trials of a prompt search, in order."""
        query = select(*(getattr(TrialRow, name) for name in PromptTrial.__dataclass_fields__))
        return [PromptTrial(*row) for row in self._rows(query.where(TrialRow.run_id == self.resolve(run)).order_by(TrialRow.number))]

    def openings(self, test_hash: str = "") -> list[Opening]:
        """Looks at sealed test splits, all or those of one, oldest first."""
        query = select(*(getattr(OpeningRow, name) for name in Opening.__dataclass_fields__)).order_by(OpeningRow.id)
        return [Opening(*row) for row in self._rows(query.where(OpeningRow.test_hash == test_hash) if test_hash else query)]

    def _rows(self, query: Select) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(query))

    def _prompts(self, *which: ColumnElement[bool]) -> list[PromptVersion]:
        query = select(*(getattr(PromptRow, name) for name in PromptVersion.__dataclass_fields__))
        return [PromptVersion(*row) for row in self._rows(query.where(*which).order_by(PromptRow.created, PromptRow.id))]

    def _summaries(self, *which: ColumnElement[bool]) -> list[RunSummary]:
        def count(table: type[Agent] | type[Page]) -> Any:
            return select(func.count()).select_from(table).where(table.run_id == Run.id).scalar_subquery()

        last = select(func.max(RunEvent.id)).where(RunEvent.run_id == Run.id).correlate(Run).scalar_subquery()
        written = select(func.max(Page.at)).where(Page.run_id == Run.id).correlate(Run).scalar_subquery()
        abandoned = and_(RunEvent.status.in_(("started", "resumed")), lapsed(self._database))
        status = case((abandoned, "interrupted"), else_=RunEvent.status)
        query = (
            select(
                Run.__table__, status.label("status"), RunEvent.message, RunEvent.at, written.label("written"),
                func.coalesce(DatasetRow.name, "").label("dataset"), count(Agent).label("agents"), count(Page).label("pages"),
            )
            .join(RunEvent, RunEvent.id == last)
            .outerjoin(LeaseRow, LeaseRow.run_id == Run.id)
            .outerjoin(DatasetRow, DatasetRow.hash == Run.dataset_hash)
            .where(*which)
            .order_by(Run.created.desc(), Run.id.desc())
        )  # fmt: skip
        return [_summary(row) for row in self._rows(query)]


def read_pages(connection: Connection, run_id: str, first: int, last: int) -> list[PageRecord]:
    """Pages of the dense user ids first .. last of a run, by user and page."""
    mine = and_(Page.run_id == run_id, Page.user_id.between(first, last))
    pages = connection.execute(select(Page.__table__).where(mine).order_by(Page.user_id, Page.number)).all()
    shown = select(ExposureRow.__table__).join(Page, Page.id == ExposureRow.page_id).where(mine)
    taken = select(ActionRow.__table__).join(Page, Page.id == ActionRow.page_id).where(mine)
    by_page = attrgetter("page_id")
    exposures = {
        page: tuple(Exposure(e.position, e.item_id, e.score, e.propensity) for e in rows)
        for page, rows in groupby(connection.execute(shown.order_by(ExposureRow.page_id, ExposureRow.position)), by_page)
    }
    actions = {
        page: tuple(Action(a.position, a.item_id, a.rating, a.feeling) for a in rows)
        for page, rows in groupby(connection.execute(taken.order_by(ActionRow.page_id, ActionRow.turn)), by_page)
    }
    return [
        PageRecord(
            p.user_id, p.number, p.arm, p.policy, exposures.get(p.id, ()), actions.get(p.id, ()),
            p.feeling, p.exit, p.fallback, tuple(p.calls),
        )
        for p in pages
    ]  # fmt: skip


def _persona(stored: dict[str, Any]) -> Persona:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return Persona(**fields)


def _summary(row: Any) -> RunSummary:
    return RunSummary(
        row.id, row.kind, row.name, row.status, row.message, row.created, max(row.at, row.written or 0.0), row.config, row.dataset,
        row.dataset_hash or "", row.split_hash or "", row.code_version, row.seed, row.agents, row.pages,
    )  # fmt: skip
