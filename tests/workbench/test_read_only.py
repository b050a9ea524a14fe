"""A store that cannot be written: all of it is read, nothing is left beside it, and who would write is told at once."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from recsys_core.errors import DataError
from tests.processes import Child
from tests.workbench.conftest import Cli, as_nobody, one_line_error
from tests.workbench.test_migrations import server as server  # a fixture
from tests.workbench.test_resume_store import go_on, page, persona
from workbench.store import Store, StoreReader


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store with two pages of a user."""
    path = tmp_path_factory.mktemp("written") / "s.sqlite"
    with Store.open(path) as store:
        run = store.start_run("simulate", "n", {}, 0)
        sink = store.sink(run)
        sink.agents([persona(1)], "policy")
        sink.pages([page(1, 0)])
        sink.pages([page(1, 1)])
        store.record_status(run, "finished")
    return path.read_bytes()


CASES = [(0o444, 0o555), (0o444, 0o777), (0o666, 0o555)]


@pytest.mark.parametrize(("file", "where"), CASES)
def test_everything_is_read_and_nothing_left_beside_it(written: bytes, file: int, where: int) -> None:
    with as_nobody() as folder:
        path = folder / "a store?mode=rw&%41#.sqlite"  # nothing of its name is taken for an option
        path.write_bytes(written)
        path.chmod(file)
        folder.chmod(where)
        with StoreReader.open(path) as store:
            run = store.run("latest")
            assert (run.status, run.pages, run.agents) == ("finished", 2, 1)
            assert store.pages(run.id) == [page(1, 0), page(1, 1)]
            assert [t.taken for t in store.page_totals(run.id)] == [1, 1]
            assert store.interactions(run.id).user.tolist() == [1, 1]
            assert len(store.log_hash(run.id)) == 64
        assert [p.name for p in folder.iterdir()] == [path.name]
        assert path.read_bytes() == written
        with pytest.raises(DataError, match="can be read, not written; make file and folder writable or name another --store"):
            Store.open(path)


def test_commands_that_look_work_and_those_that_write_say_so_at_once(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    code, out, _ = cli("simulate", "--data", str(log_file), "--agents", "4", "--fidelity-users", "0", "--json")
    facts = json.loads(out)
    store, log = (tmp_path / "store.sqlite").read_bytes(), log_file.read_bytes()
    with as_nobody() as folder:
        path = folder / "store.sqlite"
        path.write_bytes(store)
        (folder / "data.csv").write_bytes(log)
        (folder / "out").mkdir()
        path.chmod(0o444)
        folder.chmod(0o555)
        where = ("--store", str(path))
        assert facts["run"] in cli("runs", *where)[1]
        code, out, err = cli("runs", facts["run"], "--json", *where)
        assert (code, json.loads(out)["log_hash"]) == (0, facts["log_hash"]), err
        assert cli("export", "latest", "--out", str(folder / "out"), *where)[0] == 0
        assert "plain" in cli("prompts", "list", *where)[1]
        assert cli("prompts", "show", "plain", *where)[0] == 0
        assert cli("prompts", "openings", *where)[0] == 0
        for command in (
            ("simulate", "--data", str(folder / "data.csv"), "--agents", "4"),
            ("evaluate", "popularity", "--data", str(folder / "data.csv")),
            ("augment", "latest", "--models", "popularity"),
        ):
            code, _, err = cli(*command, *where)
            assert code == 2
            assert "can be read, not written" in one_line_error(err)
            assert "done" not in err, "nothing was trained before"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_pages_of_a_killed_writer_that_are_in_the_log_file_only_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store.open(path) as store:
        run = store.start_run("simulate", "killed", {}, 0)
    child = Child(tmp_path, go_on, path, run)
    while child.alive and len(child.printed().splitlines()) < 20:
        time.sleep(0.001)
    child.send(signal.SIGKILL)
    promised = len([line for line in child.end()[1].splitlines(keepends=True) if line.endswith("\n")])
    files = {p.name: p.read_bytes() for p in tmp_path.glob("s.sqlite*")}
    assert len(files["s.sqlite-wal"]) > 0
    with as_nobody() as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o444)
        folder.chmod(0o555)
        with StoreReader.open(folder / "s.sqlite") as reader:
            assert len(reader.pages(run)) >= 8 * promised > 0
        folder.chmod(0o777)
        (folder / "s.sqlite-shm").unlink()
        folder.chmod(0o555)
        # Without it the log file cannot be read in place; to pass it by would hide what was stored.
        with pytest.raises(DataError, match="make file and folder writable"):
            StoreReader.open(folder / "s.sqlite")


def test_a_reader_beside_a_writer_sees_what_is_committed() -> None:
    with as_nobody() as folder, Store.open(folder / "s.sqlite") as store:
        run = store.start_run("simulate", "n", {}, 0)
        store.sink(run).agents([persona(1)], "policy")
        folder.chmod(0o555)  # the writer has its files open
        for number in range(3):
            store.sink(run).pages([page(1, number)])
            with StoreReader.open(folder / "s.sqlite") as reader:
                assert reader._database.read_only
                assert len(reader.pages(run)) == number + 1
        folder.chmod(0o777)


def test_an_older_store_that_cannot_be_upgraded_is_told() -> None:
    with as_nobody() as folder:
        path = folder / "s.sqlite"
        Store.open(path).close()
        with sqlite3.connect(path) as raw:
            raw.execute("UPDATE alembic_version SET version_num = '0003'")
        raw.close()
        path.chmod(0o444)
        folder.chmod(0o555)
        with pytest.raises(DataError, match=r"has schema 0003, this version reads .* copy the store"):
            StoreReader.open(path)


@pytest.mark.postgres
def test_a_postgresql_store_without_the_right_to_write_is_read(server: str) -> None:
    with Store.open(server) as store:
        run = store.start_run("simulate", "n", {}, 0)
        with store._database.write() as connection:
            name = connection.execute(text("SELECT current_database()")).scalar()
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    with Store.open(server) as store:
        assert store.run(run).status == "started"
        with pytest.raises(DataError, match=r"cannot be written .*read-only transaction.*ask for the right to write"):
            store.record_status(run, "finished")
