"""The store: one database that keeps every run, what its agents saw and did, model answers, prompts and evaluations."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from recsys_core.errors import AlreadyStoredError, DataError, UnknownNameError
from recsys_core.progress import Progress, silent
from workbench.store.cache import StoreCache
from workbench.store.code_version import code_version
from workbench.store.database import Database
from workbench.store.lease import first_lease, held
from workbench.store.models import (
    ComparisonRow,
    DatasetItem,
    DatasetRow,
    DatasetUser,
    EvaluationRow,
    OpeningRow,
    PromptRow,
    Run,
    RunEvent,
    TrialRow,
)
from workbench.store.queries import StoreReader
from workbench.store.records import Comparison, Evaluation, Opening, PromptTrial, PromptVersion, Status
from workbench.store.sink import RunSink

if TYPE_CHECKING:
    from recsys_core.data.dataset import Dataset
    from recsys_core.data.split import Split


class Store(StoreReader):
    """A store, open for reading and writing; threads and processes may share one. Close it, or use it as a context manager."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._holder = secrets.token_hex(8)
        self._held: set[str] = set()

    @classmethod
    def open(cls, target: str | Path, create: bool = True) -> Self:
        """As `StoreReader.open`; raises DataError for what cannot be written, too, before anything is done."""
        store = super().open(target, create)
        store._database.check_writable()
        return store

    def start_run(
        self, kind: str, name: str, config: dict[str, Any], seed: int, dataset: Dataset | None = None, split: Split | None = None
    ) -> str:
        """Begins a run and gives its id, such as `simulate-20260101-120000-ab12cd` (kind, UTC time, random).

        config: the full resolved configuration, JSON values only. The dictionaries of a dataset not seen before are stored with it.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", kind):
            raise DataError(f"run kind {kind!r} must be 1 to 32 of a-z, 0-9, _ and -, beginning with a letter")
        now = time.time()
        run_id = f"{kind}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}"
        with self._database.write() as connection:
            if dataset is not None:
                self._add_dataset(connection, dataset)
            row = {
                "id": run_id, "kind": kind, "name": name, "config": config, "dataset_hash": dataset.content_hash if dataset else None,
                "split_hash": split.content_hash if split else None, "code_version": code_version(), "seed": seed, "created": now,
            }  # fmt: skip
            connection.execute(insert(Run), row)
            connection.execute(insert(RunEvent), {"run_id": run_id, "at": now, "status": "started", "message": ""})
            first_lease(connection, self._database, run_id, self._holder)
        return run_id

    @contextmanager
    def working_on(self, run: str, progress: Progress = silent) -> Iterator[None]:
        """Keeps a run to this process: others are refused, and see that it lives. What a sink writes meanwhile is refused once it is lost.

        Raises HeldError where another process works on the run, which takes some seconds to tell, `LEASE_SECONDS` after a kill.
        """
        run_id = self.resolve(run)
        if run_id in self._held:
            yield
            return
        with held(self._database, run_id, self._holder, progress):
            self._held.add(run_id)
            try:
                yield
            finally:
                self._held.discard(run_id)

    def record_status(self, run: str, status: Status, message: str = "") -> None:
        """Appends a change of a run's state."""
        run_id = self.resolve(run)
        with self._database.write() as connection:
            connection.execute(insert(RunEvent), {"run_id": run_id, "at": time.time(), "status": status, "message": message})

    def sink(self, run: str) -> RunSink:
        """Where a simulation writes the events of a run."""
        run_id = self.resolve(run)
        return RunSink(self._database, run_id, self._holder if run_id in self._held else None)

    def response_cache(self) -> StoreCache:
        """Model answers by content address, shared by all runs of this store."""
        return StoreCache(self._database)

    def add_evaluations(self, run: str, evaluations: Sequence[Evaluation]) -> None:
        """Appends metrics, all or none. Raises DataError for one that the run already has, or that is not finite."""
        import numpy as np

        rows = [
            {name: getattr(e, name) for name in e.__dataclass_fields__}
            | {"n": len(e.per_user), "per_user": np.asarray(e.per_user, "<f4").tobytes()}
            for e in evaluations
        ]
        self._add_results(run, EvaluationRow, rows, ("mean", "low", "high"))

    def add_comparisons(self, run: str, comparisons: Sequence[Comparison]) -> None:
        """Appends paired comparisons, all or none. Raises DataError for one that the run already has, or that is not finite."""
        rows = [{name: getattr(c, name) for name in c.__dataclass_fields__} for c in comparisons]
        self._add_results(run, ComparisonRow, rows, ("difference", "low", "high", "p"))

    def add_prompt(self, name: str, text: str, author: str, parent: str | None = None) -> PromptVersion:
        """Keeps a prompt version and gives it back; one with equal name, text and parent is left as it is."""
        version = hashlib.sha256(repr((name, text, parent)).encode()).hexdigest()[:12]
        row = {"id": version, "name": name, "text": text, "parent": parent, "author": author, "created": time.time()}
        try:
            with self._database.write() as connection:
                connection.execute(self._database.insert_new(PromptRow), row)
        except IntegrityError as error:
            raise UnknownNameError(f"no prompt version {parent!r} in store {self.where}; add the parent of {name!r} first") from error
        return self._prompts(PromptRow.id == version)[0]

    def add_trial(self, run: str, trial: PromptTrial) -> None:
        """Appends a trial of a prompt search. A number the run has is left as it is: a resumed search repeats what it measured before."""
        run_id = self.resolve(run)
        with self._database.write("run the search again") as connection:
            connection.execute(self._database.insert_new(TrialRow), {"run_id": run_id, **asdict(trial)})

    def record_opening(self, opening: Opening) -> None:
        """Writes down a look at a sealed test split; it is kept when this returns."""
        with self._database.write("open the test split again") as connection:
            connection.execute(insert(OpeningRow), asdict(opening))

    def _add_dataset(self, connection: Any, dataset: Dataset) -> None:
        """Keeps the dictionaries of a dataset; the first insert says whether another run, perhaps of another process, has done so."""
        key = {"dataset_hash": dataset.content_hash}
        if connection.execute(select(DatasetRow.hash).where(DatasetRow.hash == dataset.content_hash)).first():
            return
        last = int(dataset.timestamp.max()) if len(dataset) else 0
        row = {"hash": dataset.content_hash, "name": dataset.name, "interactions": len(dataset), "last_timestamp": last}
        if not connection.execute(self._database.insert_new(DatasetRow), row).rowcount:
            return
        titles = dataset.titles or ("",) * len(dataset.items)
        tags = dataset.tags or ((),) * len(dataset.items)
        users = [key | {"user_id": dense, "external": external} for dense, external in enumerate(dataset.users.ids)]
        items = [
            key | {"item_id": dense, "external": external, "title": titles[dense], "tags": tags[dense]}
            for dense, external in enumerate(dataset.items.ids)
        ]
        for table, rows in ((DatasetUser, users), (DatasetItem, items)):
            if rows:
                connection.execute(insert(table), rows)

    def _add_results(
        self, run: str, table: type[EvaluationRow] | type[ComparisonRow], rows: list[dict[str, Any]], numbers: tuple[str, ...]
    ) -> None:
        run_id = self.resolve(run)
        for row in rows:
            for name in numbers:
                if not math.isfinite(row[name]):
                    raise DataError(f"{name} of {row['metric']} of {row['model']} is {row[name]}; a stored result must be finite")
        if not rows:
            return
        try:
            with self._database.write() as connection:
                connection.execute(insert(table), [{"run_id": run_id, **row} for row in rows])
        except IntegrityError as error:
            shown = ", ".join(sorted({f"{row['metric']} of {row['model']}" for row in rows})[:4])
            raise AlreadyStoredError(f"run {run_id} already has one of these results ({shown}, ...); results are added once") from error
