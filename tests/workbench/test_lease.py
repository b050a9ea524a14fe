"""Who works on a run: what is killed shows, what lives is not disturbed, what hung finds that it was replaced."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from recsys_core.errors import AlreadyStoredError, HeldError
from simulators.events import PageRecord
from tests.processes import SHORT_LEASE, Child, command_line
from tests.workbench.conftest import Cli, one_line_error
from tests.workbench.test_migrations import server as server  # a fixture
from tests.workbench.test_resume_store import page, persona
from workbench.running import marked
from workbench.store import Store, lease
from workbench.store.schema import MIGRATIONS

LONG = ("--agents", "50", "--pages", "9", "--page-size", "5", "--fidelity-users", "0")
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """A lease that runs out within a test."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.05)
    return 0.6


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def test_a_killed_run_is_shown_as_interrupted_with_what_takes_it_up(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    whole = json.loads(cli("simulate", "--data", str(log_file), *LONG, "--json")[1])["log_hash"]
    path = tmp_path / "killed.sqlite"
    child = Child(tmp_path, command_line, "simulate", "--data", str(log_file), *LONG, "--store", str(path))
    with Store.open(path) as store:
        until(lambda: store.runs() and store.runs()[0].pages)
        assert store.runs()[0].status == "started"
        child.send(signal.SIGKILL)
        assert child.end()[0] == -signal.SIGKILL
        until(lambda: store.runs()[0].status == "interrupted", SHORT_LEASE + 10)
        run = store.runs()[0].id
        assert [event.status for event in store.status(run)] == ["started"], "nobody wrote that it was killed"
    assert re.search(rf"{run}.* interrupted ", cli("runs", "--store", str(path))[1])
    assert f"workbench simulate --resume {run} --store {path}" in " ".join(cli("runs", run, "--store", str(path))[1].split())
    start = time.monotonic()
    code, out, _ = cli("simulate", "--resume", run, "--store", str(path), "--json")
    assert code == 0
    assert json.loads(out)["log_hash"] == whole
    assert time.monotonic() - start < SHORT_LEASE, "a lease that has run out is taken at once"
    with Store.open(path) as store:
        assert store.run(run).status == "finished"


def test_a_run_resumed_right_after_the_kill_waits_for_the_lease(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.sqlite"
    child = Child(tmp_path, command_line, "simulate", "--data", str(log_file), *LONG, "--store", str(path))
    with Store.open(path) as store:
        until(lambda: store.runs() and store.runs()[0].pages)
        child.send(signal.SIGKILL)
        child.end()
        code, _, err = cli("simulate", "--resume", "latest", "--store", str(path))
        assert code == 0, err
        assert store.runs()[0].status == "finished"


def is_locked(path: Path) -> bool:
    """Whether nobody can write into a store now."""
    raw = sqlite3.connect(path, timeout=0.05, isolation_level=None)
    try:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return True
    finally:
        raw.close()
    return False


def test_a_process_that_hung_and_was_replaced_writes_nothing_more(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    whole = json.loads(cli("simulate", "--data", str(log_file), *LONG, "--json")[1])["log_hash"]
    path = tmp_path / "hung.sqlite"
    child = Child(tmp_path, command_line, "simulate", "--data", str(log_file), *LONG, "--store", str(path))
    with Store.open(path) as store:
        until(lambda: store.runs() and store.runs()[0].pages)
        run = store.runs()[0].id
        child.send(signal.SIGSTOP)
        while is_locked(path):  # it was stopped inside a transaction, which keeps others out: another moment, then
            child.send(signal.SIGCONT)
            time.sleep(0.002)
            child.send(signal.SIGSTOP)
            time.sleep(0.01)
        assert cli("simulate", "--resume", run, "--store", str(path))[0] == 0
        child.send(signal.SIGCONT)
        code, _, err = child.end(60)
        assert code == 2
        assert "another one has taken run" in one_line_error(err)
        assert store.log_hash(run) == whole
        assert [event.status for event in store.status(run)] == ["started", "resumed", "finished"]


def test_of_two_holders_the_second_is_refused_until_the_first_lets_go(tmp_path: Path, short: float) -> None:
    refusals_and_turns(str(tmp_path / "s.sqlite"))


@pytest.mark.postgres
def test_on_postgresql_the_second_is_refused_too(server: str, short: float) -> None:
    refusals_and_turns(server)


def refusals_and_turns(target: str) -> None:
    with Store.open(target) as a, Store.open(target) as b:
        run = a.start_run("simulate", "n", {}, 0)
        with a.working_on(run):
            a.sink(run).agents([persona(1)], "policy")
            for _ in range(3):
                start = time.monotonic()
                with pytest.raises(HeldError, match="has just given a sign of life"), b.working_on(run):
                    pass
                assert time.monotonic() - start < lease.LEASE_SECONDS, "a living process shows before its lease would run out"
            time.sleep(2 * lease.LEASE_SECONDS)
            assert b.run(run).status == "started", "it is renewed"
            a.sink(run).pages([page(1, 0)])
        # Given up: no wait, though the time is not over.
        start = time.monotonic()
        with b.working_on(run):
            assert time.monotonic() - start < lease.LEASE_SECONDS / 2
            b.sink(run).pages([page(1, 1)])
        assert len(a.pages(run)) == 2


def test_what_a_replaced_holder_writes_is_refused_whole(tmp_path: Path, short: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "s.sqlite") as a, Store.open(tmp_path / "s.sqlite") as b:
        run = a.start_run("simulate", "n", {}, 0)
        monkeypatch.setattr(lease, "_renew", lambda *given: None)  # it hangs
        with a.working_on(run):
            sink = a.sink(run)
            sink.agents([persona(1)], "policy")
            sink.pages([page(1, 0)])
            with b.working_on(run):
                for write in (lambda: sink.pages([page(1, 1)]), lambda: sink.agents([persona(2)], "policy")):
                    with pytest.raises(HeldError, match="another one has taken run"):
                        write()
                b.sink(run).pages([page(1, 1)])
        assert [(p.user, p.page) for p in a.pages(run)] == [(1, 0), (1, 1)]
        assert len(a.agents(run)) == 1


def test_a_process_that_hangs_alone_goes_on_undisturbed(tmp_path: Path, short: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        run = store.start_run("simulate", "n", {}, 0)
        monkeypatch.setattr(lease, "_renew", lambda *given: None)
        with marked(store, run, "resume"):
            sink = store.sink(run)
            sink.agents([persona(1)], "policy")
            time.sleep(short + 0.1)
            assert store.run(run).status == "interrupted"
            sink.pages([page(1, 0)])
        assert store.run(run).status == "finished"


def test_a_store_that_is_locked_for_a_while_costs_no_lease(tmp_path: Path, short: float) -> None:
    with Store.open(tmp_path / "s.sqlite") as store:
        run = store.start_run("simulate", "n", {}, 0)
        with store.working_on(run):
            raw = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None, check_same_thread=False)
            raw.execute("BEGIN IMMEDIATE")
            threading.Timer(short + 0.2, lambda: raw.execute("ROLLBACK")).start()
            time.sleep(short + 0.1)
            assert store.run(run).status == "interrupted", "for as long as it cannot say otherwise"
            until(lambda: store.run(run).status == "started", 10)
            raw.close()


def test_threads_race_for_a_free_lease_and_one_gets_it(tmp_path: Path, short: float) -> None:
    stores = [Store.open(tmp_path / "s.sqlite") for _ in range(6)]
    run = stores[0].start_run("simulate", "n", {}, 0)
    time.sleep(short + 0.1)
    got, refused, leave, ready = list[int](), list[int](), threading.Event(), threading.Barrier(6)

    def work(number: int) -> None:
        ready.wait()
        try:
            with stores[number].working_on(run):
                got.append(number)
                leave.wait(30)
        except HeldError:
            refused.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: len(got) + len(refused) == 6)
    leave.set()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    for store in stores:
        store.close()


def test_how_a_run_ended_is_for_its_holder_to_say(tmp_path: Path, short: float) -> None:
    with Store.open(tmp_path / "s.sqlite") as a, Store.open(tmp_path / "s.sqlite") as b:
        run = a.start_run("simulate", "n", {}, 0)
        with a.working_on(run):
            with pytest.raises(AlreadyStoredError) as refused, marked(b, run, "workbench simulate --resume"):
                pass
            assert "--resume" not in str(refused.value)
            assert [event.status for event in a.status(run)] == ["started"]


def test_a_clock_that_was_put_back_keeps_nobody_out(tmp_path: Path, short: float) -> None:
    with Store.open(tmp_path / "s.sqlite") as store, Store.open(tmp_path / "s.sqlite") as other:
        run = store.start_run("simulate", "n", {}, 0)
        with sqlite3.connect(tmp_path / "s.sqlite") as raw:
            raw.execute("UPDATE run_lease SET renewed = renewed + 3600")
        raw.close()
        assert store.run(run).status == "interrupted"
        with other.working_on(run):
            assert store.run(run).status == "started"


def test_a_run_of_a_store_without_leases_is_interrupted_and_can_be_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.execute(text("INSERT INTO run VALUES ('simulate-old', 'simulate', 'n', '{}', NULL, NULL, 'code', 0, 1.0)"))
        connection.execute(text("INSERT INTO run_event VALUES (1, 'simulate-old', 1.0, 'started', '')"))
    engine.dispose()
    with Store.open(path) as store:
        assert store.run("simulate-old").status == "interrupted"
        with store.working_on("simulate-old"):
            assert store.run("simulate-old").status == "started"


def test_a_sink_of_nobody_checks_no_lease(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.sqlite") as a, Store.open(tmp_path / "s.sqlite") as b:
        run = a.start_run("simulate", "n", {}, 0)
        b.sink(run).agents([persona(1)], "policy")
        records: list[PageRecord] = [page(1, 0)]
        b.sink(run).pages(records)
        assert a.pages(run) == records
