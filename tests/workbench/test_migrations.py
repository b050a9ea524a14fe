"""The schema: made once, equal to the models, refused where it is not ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from recsys_core.errors import DataError, UnavailableError, WorkbenchError
from workbench.store import Store
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
    assert guarded == {f"{table}_no_{change}" for table in Base.metadata.tables for change in ("update", "delete")}


def test_a_current_store_opens_without_alembic(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    code = "import sys; from workbench.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    printed = [
        subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)
    ]
    assert printed == ["True", "False"]


def test_processes_that_open_a_new_store_at_once_all_succeed(tmp_path: Path) -> None:
    code = "import sys, time; from workbench.store import Store; time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
    code += "for n in range(5): Store.open(sys.argv[1] + str(n)).start_run('simulate', 'n', {}, 0)"
    at = str(__import__("time").time() + 3)
    command = [sys.executable, "-c", code, str(tmp_path / "s.sqlite"), at]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [""] * 6
    for n in range(5):
        with Store.open(tmp_path / f"s.sqlite{n}") as store:
            assert len(store.runs()) == 6


def test_a_store_from_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(DataError, match="schema 9999, this version knows up to 0001; upgrade"):
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


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="make file and folder writable"):
        Store.open(tmp_path / "s.sqlite")


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
