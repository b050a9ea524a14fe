"""The schema: made once, equal to the models, refused where it is not ours."""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from agents.chat.types import CallRecord, ChatRequest, Message, Response
from agents.types import Persona
from recsys_core.errors import DataError, UnavailableError, WorkbenchError
from simulators.events import Action, Exposure, PageRecord
from tests.processes import Child
from tests.workbench.conftest import as_nobody
from workbench.store import CallTotals, Store
from workbench.store.models import Base
from workbench.store.schema import HEAD, MIGRATIONS


def test_the_migrated_schema_equals_the_models(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as store, store._database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_head_is_the_newest_revision_and_every_table_is_guarded(tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]
    Store.open(tmp_path / "s.sqlite").close()
    with sqlite3.connect(tmp_path / "s.sqlite") as raw:
        guarded = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()
    record = set(Base.metadata.tables) - {"run_lease"}
    assert guarded == {f"{table}_no_{change}" for table in record for change in ("update", "delete")}


def test_a_current_store_opens_without_alembic(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    code = "import sys; from workbench.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    printed = [
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)
    ]
    assert printed == ["True", "False"]


def open_five(folder: Path) -> None:
    """Opens five new stores, when `go` is there."""
    print("ready", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.0001)
    for n in range(5):
        Store.open(folder / f"s.sqlite{n}").start_run("simulate", "n", {}, 0)


def test_processes_that_open_a_new_store_at_once_all_succeed(tmp_path: Path) -> None:
    children = [Child(tmp_path, open_five, tmp_path) for _ in range(4)]
    while not all(child.printed() for child in children):
        assert all(child.alive for child in children)
        time.sleep(0.001)
    (tmp_path / "go").touch()
    assert [(code, err) for code, _, err in (child.end() for child in children)] == [(0, "")] * 4
    for n in range(5):
        with Store.open(tmp_path / f"s.sqlite{n}") as store:
            assert len(store.runs()) == 4


def test_a_store_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(DataError, match=f"schema 9999, this version knows up to {HEAD}; upgrade"):
        Store.open(path)


@pytest.mark.parametrize(
    "content", [b"this is not a database, but a text of some length\n" * 40, os.urandom(8192), b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"notes\.txt is not a readable SQLite database"):
        Store.open(path)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE bookmarks (url TEXT)")
    raw.close()
    with pytest.raises(DataError, match=r"something else \(tables bookmarks"):
        Store.open(path)
    with sqlite3.connect(path) as raw:
        assert [name for (name,) in raw.execute("SELECT name FROM sqlite_master")] == ["bookmarks"]
    raw.close()


def test_a_migration_that_fails_leaves_the_file_empty_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    path, create = tmp_path / "s.sqlite", op.create_table

    def create_some(name: str, *rest: object, **options: object) -> object:
        if name == "llm_call":
            raise KeyboardInterrupt
        return create(name, *rest, **options)

    monkeypatch.setattr(op, "create_table", create_some)
    with pytest.raises(KeyboardInterrupt):
        Store.open(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()
    monkeypatch.undo()
    with Store.open(path) as store:
        assert store.runs() == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{tmp}", "is a folder; name a file in it"),
        ("{tmp}/file/s.sqlite", "cannot be made"),
        ("/proc/none/s.sqlite", "cannot be made|cannot be written"),
        ("sqlite://", "lives in memory only"),
        ("sqlite:///:memory:", "lives in memory only"),
        ("mysql://user:secret@host/db", "store URL of kind 'mysql'"),
        ("postgresql://user:secret@host:notaport/db", "cannot be parsed"),
    ],
)
def test_a_target_that_cannot_be_a_store_is_one_clear_line(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=message) as error:
        Store.open(target.format(tmp=tmp_path))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_an_unwritable_folder_is_refused() -> None:
    with as_nobody() as folder:
        folder.chmod(0o555)
        with pytest.raises(DataError, match="make file and folder writable"):
            Store.open(folder / "s.sqlite")


def test_a_reader_does_not_create_a_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no store at"):
        Store.open(tmp_path / "s.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    with pytest.raises(UnavailableError, match="does not answer") as error:
        Store.open("postgresql://user:secret@127.0.0.1:9/db")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(WorkbenchError, match=r"\[postgres\]"):
        Store.open("postgresql://user@host/db")


def odd_log(store: Store) -> str:
    """Has a store keep what databases like to lose, checks that all of it comes back, and gives the log's hash."""
    odd = "NUL \x00, ESC \x1b, surrogate \ud800, 'quote', \U0001f600"
    people = [Persona(user, 1, 2, 3, (odd,), (), (), (), float("nan"), 1.0) for user in range(20)]
    shown = tuple(Exposure(p, 2**31 - 1 - p, score, 1 / 3) for p, score in enumerate((-0.0, 1e-310, float("inf"), 0.1)))
    taken = (Action(3, 2**31 - 4, 4.5, "bored"), Action(1, 2**31 - 2, -0.0, "delighted"))
    # The second page of each user was decided by a fallback.
    records = [PageRecord(u, n, odd, "p", shown, taken, "bored", "hazard", odd * n, (odd,)) for u in range(20) for n in range(2)]
    run = store.start_run("simulate", odd, {odd: odd}, 0)
    sink = store.sink(run)
    sink.agents(people, "p")
    sink.agents(people, "other")
    sink.pages(records[::-1])
    with pytest.raises(DataError, match="page 0 of user 3 is already stored"):
        sink.pages([replace(records[0], page=9), records[6]])
    assert store.pages(run) == records
    assert sink.finished_pages(4) == records[8:10]
    interactions = store.interactions(run)
    assert interactions.item.tolist() == [2**31 - 4, 2**31 - 2] * 20
    assert set(interactions.page.tolist()) == {0}
    assert {a.policy for a in store.agents(run)} == {"p"}
    sink.calls([CallRecord("k", "m", "ChatRequest", cached, 10, 2, 1, 0.5, 0.01, odd) for cached in (True, False)])
    assert store.call_totals(run) == CallTotals(2, 1, 2, 10, 2, 1, 0.5, 0.01, 1)
    cache = store.response_cache()
    for answer in (odd, "second"):
        cache.put("k", "m", ChatRequest((Message("user", odd),)), Response(answer, 1, 1))
    assert cache.get("k") == Response(odd, 1, 1)
    assert store.run(run[:-1]).config == {odd: odd}
    return store.log_hash(run)


def test_an_odd_log_comes_back_from_sqlite(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        with Store.open(tmp_path / name) as store:
            hashes.add(odd_log(store))
    assert len(hashes) == 1


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a new, empty database on the server that WORKBENCH_TEST_POSTGRES names; removed afterwards."""
    given = os.environ.get("WORKBENCH_TEST_POSTGRES")
    if not given:
        pytest.skip(
            "set WORKBENCH_TEST_POSTGRES=postgresql+psycopg://USER@HOST:PORT/DATABASE (the user must be allowed to create databases)"
        )
    admin, name = create_engine(given, isolation_level="AUTOCOMMIT"), f"workbench_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield admin.url.set(database=name).render_as_string(hide_password=False)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.mark.postgres
def test_postgresql_has_the_models_schema_and_refuses_changes(server: str) -> None:
    with Store.open(server) as store, store._database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata) == []
        store.start_run("simulate", "n", {}, 2**40)
        for change in ("UPDATE run SET name = 'x'", "DELETE FROM run", "TRUNCATE run CASCADE", "DELETE FROM exposure"):
            with pytest.raises(IntegrityError, match="append-only"):
                connection.execute(text(change))
            connection.rollback()
        assert [run.name for run in store.runs()] == ["n"]
    with Store.open(server) as store:
        assert store.run("latest").seed == 2**40


@pytest.mark.postgres
def test_postgresql_keeps_the_same_log_as_sqlite(server: str, tmp_path: Path) -> None:
    with Store.open(server) as remote, Store.open(tmp_path / "s.sqlite") as local:
        assert odd_log(remote) == odd_log(local)


@pytest.mark.postgres
def test_postgresql_is_migrated_once_by_stores_that_open_together(server: str) -> None:
    def work(number: int) -> str:
        with Store.open(server) as store:
            return store.start_run("simulate", str(number), {}, number)

    with ThreadPoolExecutor(6) as pool:
        runs = set(pool.map(work, range(6)))
    with Store.open(server) as store:
        assert {run.id for run in store.runs()} == runs
