"""A run that is killed at any moment: every page whose commit returned is there, whole, and going on doubles nothing."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from agents.chat.types import ChatRequest, Response
from agents.types import Persona
from simulators.events import Action, Exposure, PageRecord
from tests.processes import Child
from workbench.store import RunSink, Store

USERS, PAGES, SLOTS, GROUP = 40, 400, 10, 8


def persona(user: int) -> Persona:
    return Persona(user, 1, 1, 1, (), (), (), (), 3.0, 1.0)


def page(user: int, number: int) -> PageRecord:
    """The page that this user and number always have, so that a stored one can be compared whole."""
    items = [user * 100_000 + number * SLOTS + slot for slot in range(SLOTS)]
    exposures = tuple(Exposure(slot, item, 1.0 / (slot + 1), 1.0) for slot, item in enumerate(items))
    action = Action(number % SLOTS, items[number % SLOTS], 4.0, "satisfied")
    return PageRecord(user, number, "arm", "policy", exposures, (action,), "satisfied", "", "", (f"{user}-{number}",))


def simulate(sink: RunSink) -> None:
    """Goes on from what is stored, page by page in groups of agents, and prints a page only after its commit returned."""
    sink.agents([persona(user) for user in range(USERS)], "policy")
    upcoming = {user: len(sink.finished_pages(user)) for user in range(USERS)}
    while any(number < PAGES for number in upcoming.values()):
        for first in range(0, USERS, GROUP):
            batch = [page(user, upcoming[user]) for user in range(first, first + GROUP) if upcoming[user] < PAGES]
            sink.pages(batch)
            print(" ".join(f"{record.user}:{record.page}" for record in batch), flush=True)
            for record in batch:
                upcoming[record.user] += 1


def go_on(path: Path, run: str) -> None:
    with Store.open(path) as store:
        simulate(store.sink(run))


def kill_after_first_output(child: Child, seconds: float) -> list[str]:
    """Kills with SIGKILL some time after the first line, and gives all complete lines."""
    while child.alive and not child.printed():
        time.sleep(0.001)
    time.sleep(seconds)
    child.send(signal.SIGKILL)
    code, out, err = child.end()
    assert code == -signal.SIGKILL, f"the child ended before it was killed: {err}"
    return [line for line in out.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_loses_no_committed_page_and_doubles_none(tmp_path: Path) -> None:
    path, draw = tmp_path / "s.sqlite", random.Random(0)
    with Store.open(path) as store:
        run = store.start_run("simulate", "killed", {}, 0)
    promised: set[tuple[int, int]] = set()
    for _ in range(5):
        lines = kill_after_first_output(Child(tmp_path, go_on, path, run), draw.uniform(0.0, 0.3))
        new = {(int(user), int(number)) for line in lines for user, number in (word.split(":") for word in line.split())}
        assert not new & promised, "a page was written twice"
        promised |= new
        with sqlite3.connect(path) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
        raw.close()
        with Store.open(path) as store:
            stored = store.pages(run)
        assert stored == [page(record.user, record.page) for record in stored], "a page is not whole"
        keys = {(record.user, record.page) for record in stored}
        assert len(keys) == len(stored)
        assert promised <= keys
        assert keys == {(user, number) for user in range(USERS) for number in range(sum(u == user for u, _ in keys))}, "a gap"
        promised = keys
    with Store.open(path) as store:
        assert 0 < len(promised) < USERS * PAGES, "the rounds should stop in the middle"


def test_an_interrupted_run_ends_with_the_log_of_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PAGES", 12)
    with Store.open(tmp_path / "s.sqlite") as store:
        whole, cut = (store.start_run("simulate", name, {}, 0) for name in ("whole", "cut"))
        simulate(store.sink(whole))
        draw = random.Random(1)
        for _ in range(4):
            simulate_until(store, cut, draw.randrange(1, 12))
        simulate(store.sink(cut))
        assert store.log_hash(whole) == store.log_hash(cut)
        assert len(store.pages(cut)) == USERS * 12


class StopError(Exception):
    pass


def simulate_until(store: Store, run: str, commits: int) -> None:
    """Stops between two commits, as Ctrl-C would."""
    sink, left = store.sink(run), commits

    class Interrupted(RunSink):
        def pages(self, records: list[PageRecord]) -> None:
            nonlocal left
            if not left:
                raise StopError
            left -= 1
            super().pages(records)

    with pytest.raises(StopError):
        simulate(Interrupted(sink._database, run))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_loses_no_answer_that_was_put(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    Store.open(path).close()
    writers = [Child(tmp_path, put_answers, path, str(n)) for n in range(2)]
    keys = [line.strip() for writer in writers for line in kill_after_first_output(writer, 0.2)]
    with Store.open(path) as store:
        cache = store.response_cache()
        answers = [cache.get(key) for key in keys]
    assert len(keys) > 10
    assert answers == [Response(f"answer to {key}", 1, 1) for key in keys]


def put_answers(path: Path, writer: str) -> None:
    """Two processes put the same and different questions."""
    with Store.open(path) as store:
        cache = store.response_cache()
        for number in range(1_000_000):
            for key in (f"shared-{number}", f"{writer}-{number}"):
                cache.put(key, "model", ChatRequest(()), Response(f"answer to {key}", 1, 1))
                print(key, flush=True)
