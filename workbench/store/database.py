"""The connection to a store's database: SQLite file or PostgreSQL URL, its settings, and what its errors mean to a person."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Insert, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from recsys_core.errors import DataError, RunStoppedError, UnavailableError, WorkbenchError, missing_extra
from workbench.store.models import Base

BUSY_SECONDS = 30
DEFAULT_STORE = "workbench.sqlite"


def usual_store() -> str:
    """The store of a command that names none: WORKBENCH_STORE, else DEFAULT_STORE."""
    return os.environ.get("WORKBENCH_STORE", DEFAULT_STORE)


class Database:
    """An engine and its transactions. `where` is how errors call it: a path, or a URL without its password.

    read_only: a file that is there and cannot be written, or whose folder cannot; it is read without a trace.
    """

    def __init__(self, target: str | Path, create: bool = True) -> None:
        """Connects; raises DataError for a target that cannot be a store, UnavailableError for a server that does not answer."""
        self.url = _parse(target)
        self.file = Path(self.url.database or "").absolute() if self.url.get_backend_name() == "sqlite" else None
        self.where = str(self.file) if self.file else self.url.render_as_string(hide_password=True)
        if self.file:
            _check_file(self.file, create)
        self.read_only = self.file is not None and self.file.exists() and not _writable(self.file)
        try:
            self.engine = create_engine(_read_only(self.file) if self.file and self.read_only else self.url)
        except ModuleNotFoundError as error:
            raise missing_extra("psycopg", "postgres", "a PostgreSQL store") from error
        if self.file:
            event.listen(self.engine, "connect", _configure_reader if self.read_only else _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, so that several queries see one state."""
        with self._explained("read"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, resume: str = "") -> Iterator[Connection]:
        """A transaction that is kept whole or not at all; `resume` tells a person how to go on where it cannot be kept."""
        self.check_writable()
        with self._explained("written", resume), self.engine.connect() as plain:
            connection = plain.execution_options(writes=True)
            with connection.begin():
                yield connection

    def check_writable(self) -> None:
        """Raises DataError for a file that can only be read."""
        if self.read_only:
            raise DataError(f"store {self.where} can be read, not written; make file and folder writable or name another --store")

    def insert_new(self, table: type[Base]) -> Insert:
        """An INSERT that leaves rows already present as they are."""
        if self.file:
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    @contextmanager
    def _explained(self, done: str, resume: str = "") -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            explained = self._explain(error, done, resume)
            if explained is None:
                raise
            raise explained from error

    def _explain(self, error: DBAPIError, done: str, resume: str) -> WorkbenchError | None:
        """The error a person can act on, or None for one that is ours to handle (a broken constraint) or ours to fix (wrong SQL)."""
        cause, again = error.orig, resume or "run the command again"
        code = getattr(cause, "sqlite_errorname", "") or getattr(cause, "sqlstate", None) or ""
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        if code in ("SQLITE_FULL", "53100"):
            free = f" ({shutil.disk_usage(self.file.parent).free} bytes free there)" if self.file else ""
            return RunStoppedError(f"store {self.where} is full{free}; all it held is kept; make room, then {again}")
        if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return DataError(f"store {self.where} is not a readable SQLite database ({reason}); restore a copy or name another --store")
        if code.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            return DataError(f"store {self.where} cannot be {done} ({reason}); make file and folder writable or name another --store")
        if code in ("25006", "42501"):
            return DataError(f"store {self.where} cannot be {done} ({reason}); ask for the right to write, or name another --store")
        if code.startswith("SQLITE_BUSY"):
            return RunStoppedError(f"store {self.where} was locked by another process for {BUSY_SECONDS} s; end it, then {again}")
        if isinstance(error, OperationalError) and not code.startswith("SQLITE_ERROR"):
            if error.connection_invalidated or self.file:
                return RunStoppedError(f"store {self.where} could not be {done} ({reason}); all it held is kept; repair it, then {again}")
            return UnavailableError(f"store {self.where} does not answer ({reason}); start the server or check the URL")
        return None


def _parse(target: str | Path) -> URL:
    text = str(target)
    if "://" not in text:
        return URL.create("sqlite", database=text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise DataError("the store URL cannot be parsed; use a file path or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE") from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise DataError(f"store URL of kind {url.drivername!r}; a store is an SQLite file or postgresql+psycopg://")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DataError(f"store {text!r} lives in memory only; name a file so that runs can be resumed")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _check_file(file: Path, create: bool) -> None:
    if file.is_dir():
        raise DataError(f"store {file} is a folder; name a file in it, such as {file / 'workbench.sqlite'}")
    if not create and not file.exists():
        raise DataError(f"no store at {file}; name another --store, or start a run to create it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"store folder {file.parent} cannot be made ({error.strerror}); name another --store") from error


def _writable(file: Path) -> bool:
    """Whether SQLite may change a file that is there; for that it must make others beside it, too."""
    try:
        with file.open("r+b"):
            pass
    except OSError:
        return False
    return os.access(file.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _read_only(file: Path) -> URL:
    """Opens a file without a lock and without the files that WAL mode keeps beside it, which cannot be made.

    Where they are there and hold something, somebody writes, or was killed: then they are read, as they must be. `immutable` would pass
    them by; without it, SQLite opens no file of WAL mode in a folder that it cannot write.
    """
    log = file.with_name(f"{file.name}-wal")
    query = {"mode": "ro", "uri": "true"} | ({} if log.exists() and log.stat().st_size else {"immutable": "1"})
    return URL.create("sqlite", database=f"file:{quote(str(file))}", query=query)


def _configure_reader(connection: sqlite3.Connection, record: Any) -> None:
    """Settings of one connection to a file that can only be read."""
    connection.isolation_level = None
    for setting in (f"busy_timeout={BUSY_SECONDS * 1000}", "query_only=ON"):
        _set(connection, setting)


def _configure_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    """Settings of one connection.

    synchronous=FULL: a commit that returned survives a power cut, at the price of one fsync; with NORMAL, WAL would keep the file sound
    but could drop the last commits, which may be answers that were paid for. recursive_triggers: without it `INSERT OR REPLACE` deletes
    rows past the append-only triggers. isolation_level None hands transactions to `_begin_sqlite`.
    """
    connection.isolation_level = None
    for setting in (
        f"busy_timeout={BUSY_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"
    ):  # fmt: skip
        _set(connection, setting)


def _set(connection: sqlite3.Connection, setting: str) -> None:
    """One setting. The change of a new file to WAL fails at once, whatever the timeout, where another process is just making it."""
    start = time.monotonic()
    while True:
        try:
            connection.execute(f"PRAGMA {setting}")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() - start > BUSY_SECONDS:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    """Writers take the write lock at once: a reader that upgrades later can fail in WAL mode however long it waits."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
