"""The store: what goes in comes out, nothing is ever changed, and its errors say what to do."""

from __future__ import annotations

import collections
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from agents.chat.types import CallRecord, ChatRequest, Message, Response, ScoreRequest, request_key
from agents.types import FEELINGS, Persona
from recsys_core.data.dataset import Dataset
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, RunStoppedError, UnknownNameError
from simulators.events import Action, Exposure, PageRecord
from workbench.store import CallTotals, Comparison, Evaluation, Opening, PromptTrial, Store, code_version, hash_users
from workbench.store.code_version import git_commit
from workbench.store.models import Base


def persona(user: int, **changed: object) -> Persona:
    return replace(Persona(user, 1, 2, 3, ("Drama",), (), ("Heat (1995)",), ("Alien (1979)",), 3.6, 1.1), **changed)


def page(user: int, number: int, items: tuple[int, ...] = (5, 6, 7), taken: tuple[int, ...] = (1,)) -> PageRecord:
    return PageRecord(
        user, number, "ease", "statistical", tuple(Exposure(p, i, 1.0 / (p + 1), 0.5) for p, i in enumerate(items)),
        tuple(Action(p, items[p], 4.0, "satisfied") for p in taken), "satisfied", "", "", ("k1", "k2"),
    )  # fmt: skip


def dataset() -> Dataset:
    users, items = Vocabulary(["u\x00", "b"]), Vocabulary(["i0", "\ud800", "i2"])
    columns = (np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([10, 20, 30]))
    return Dataset("tiny", users, items, *columns, np.ones(3, np.float32), ("A\ttab", 'a "quote"', "\x1b[31mred"), (("x",), (), ("y", "z")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with Store.open(tmp_path / "s.sqlite") as opened:
        yield opened


def start(store: Store, kind: str = "simulate", users: int = 3) -> str:
    run = store.start_run(kind, "name", {"a": [1, None, "\x00"]}, seed=2**40)
    store.sink(run).agents([persona(u) for u in range(users)], "statistical")
    return run


text_any = st.text(st.characters(codec=None), max_size=8)
number = st.floats(allow_nan=False)


@st.composite
def page_records(draw: st.DrawFn, user: int, count: int) -> list[PageRecord]:
    records = []
    for n in range(count):
        exposures = tuple(Exposure(p, draw(st.integers(0, 2**31 - 1)), draw(number), draw(number)) for p in range(draw(st.integers(0, 4))))
        taken = draw(st.permutations(range(len(exposures))))[: draw(st.integers(0, len(exposures)))]
        actions = tuple(Action(p, exposures[p].item, draw(number), draw(st.sampled_from(FEELINGS))) for p in taken)
        words = draw(st.tuples(text_any, text_any, st.sampled_from(FEELINGS), st.sampled_from(["", "policy", "hazard"]), text_any))
        calls = tuple(draw(st.lists(text_any, max_size=3)))
        records.append(PageRecord(user, n, words[0], words[1], exposures, actions, words[2], words[3], words[4], calls))
    return records


@settings(max_examples=40, deadline=None)
@given(data=st.data(), group=st.integers(1, 5))
def test_pages_round_trip_exactly_however_they_are_grouped(shared: Store, data: st.DataObject, group: int) -> None:
    run = shared.start_run("simulate", "property", {}, 0)
    sink = shared.sink(run)
    sink.agents([persona(u) for u in range(3)], "p")
    by_user = {u: data.draw(page_records(u, data.draw(st.integers(0, 3)))) for u in range(3)}
    records = [r for rows in by_user.values() for r in rows]
    for i in range(0, len(records), group):
        sink.pages(records[i : i + group])
    assert {u: sink.finished_pages(u) for u in by_user} == by_user
    assert shared.pages(run) == records
    taken = shared.interactions(run)
    expected = [(r.user, r.page, a.position, a.item, a.rating) for r in records if not r.fallback for a in r.actions]
    assert list(zip(*(getattr(taken, c).tolist() for c in ("user", "page", "position", "item", "rating")), strict=True)) == expected
    for t in (totals := shared.page_totals(run)):
        mine = [r for r in records if r.page == t.page]
        ratings = [a.rating for r in mine for a in r.actions]
        assert (t.agents, t.shown, t.taken) == (len(mine), sum(len(r.exposures) for r in mine), len(ratings))
        assert t.exits == collections.Counter(r.exit for r in mine if r.exit)
        assert t.fallbacks == sum(bool(r.fallback) for r in mine)
    assert [t.page for t in totals] == sorted({r.page for r in records})
    again = shared.start_run("simulate", "replayed", {}, 1)
    copy = shared.sink(again)
    copy.agents([persona(u) for u in range(3)], "p")
    copy.pages([r for u in reversed(by_user) for r in reversed(sink.finished_pages(u))])
    assert shared.log_hash(again) == shared.log_hash(run)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with Store.open(tmp_path_factory.mktemp("shared") / "s.sqlite") as opened:
        yield opened


@pytest.mark.parametrize(
    "change",
    [
        {"arm": "random"}, {"policy": "llm"}, {"feeling": "bored"}, {"exit": "hazard"}, {"fallback": "timed out"}, {"actions": ()},
        {"exposures": (Exposure(0, 5, 1.0, 0.5), Exposure(1, 6, 0.5, 0.5), Exposure(2, 7, 0.25, 0.5))},
    ],
)  # fmt: skip
def test_log_hash_sees_every_part_of_a_decision_and_no_ids_or_times(store: Store, change: dict) -> None:
    hashes = []
    for record in (page(1, 0), replace(page(1, 0), calls=("other",)), replace(page(1, 0), **change)):
        run = start(store)
        store.sink(run).pages([record])
        hashes.append(store.log_hash(run))
    assert hashes[0] == hashes[1] != hashes[2]


def test_numpy_scalars_are_stored_as_numbers(store: Store) -> None:
    run = start(store)
    odd = PageRecord(
        np.int64(1), np.int64(0), "a", "p", (Exposure(0, np.int64(7), np.float32(0.1), np.float64(1)),),
        (Action(np.int64(0), np.int64(7), np.float32(4.5), "bored"),), "bored", "", "", (),
    )  # fmt: skip
    store.sink(run).pages([odd])
    (stored,) = store.pages(run, 1)
    assert type(stored.exposures[0].item) is int
    assert stored.exposures[0].score == float(np.float32(0.1))
    assert (stored.actions[0].item, stored.actions[0].rating) == (7, 4.5)


def test_a_stored_page_is_refused_and_its_whole_group_with_it(store: Store) -> None:
    run = start(store)
    sink = store.sink(run)
    sink.pages([page(0, 0)])
    with pytest.raises(DataError, match=r"page 0 of user 0 is already stored .* finished_pages\(0\)"):
        sink.pages([page(1, 0), page(0, 0, items=(9,), taken=())])
    with pytest.raises(DataError, match="page 3 of user 2 is already stored"):
        sink.pages([page(2, 3), page(2, 3)])
    with pytest.raises(DataError, match="user 77 is not an agent"):
        sink.pages([page(1, 0), page(77, 0)])
    assert store.pages(run) == [page(0, 0)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(page(0, 0), exposures=(Exposure(1, 5, 1.0, 1.0),), actions=()), r"positions \[1\]"),
        (replace(page(0, 0), actions=(Action(9, 5, 1.0, "bored"),)), "item 5 at position 9, where nothing was shown"),
        (replace(page(0, 0), actions=(Action(0, 6, 1.0, "bored"),)), "item 6 at position 0, where 5 was shown"),
        (replace(page(0, 0), actions=page(0, 0).actions * 2), "2 actions at position 1"),
        (replace(page(0, 0), actions=(Action(0, 5, float("nan"), "bored"),)), "NaN"),
    ],
)
def test_a_page_that_contradicts_itself_is_refused(store: Store, record: PageRecord, message: str) -> None:
    run = start(store)
    with pytest.raises(DataError, match=message):
        store.sink(run).pages([record])
    assert store.pages(run) == []


def test_agents_already_there_are_left_as_they_are(store: Store) -> None:
    run = start(store, users=1)
    unrated = persona(1, mean_rating=float("nan"), liked_titles=("\ud800\x00\x1b", "Amélie"))
    store.sink(run).agents([persona(0, activity=3), unrated], "llm")
    first, second = store.agents(run)
    assert (first.persona, first.policy) == (persona(0), "statistical")
    assert second.persona.liked_titles == unrated.liked_titles
    assert np.isnan(second.persona.mean_rating)


@pytest.mark.parametrize("table", sorted(set(Base.metadata.tables) - {"run_lease"}))
def test_the_database_refuses_changes_to_every_record(store: Store, table: str) -> None:
    run = store.start_run("simulate", "n", {}, 0, dataset())
    fill(store, run)
    column = next(iter(Base.metadata.tables[table].columns)).name
    with sqlite3.connect(store.where) as raw:
        before = raw.execute(f'SELECT * FROM "{table}"').fetchall()
        assert before
        for change in (f'UPDATE "{table}" SET "{column}" = "{column}"', f'DELETE FROM "{table}"'):
            with pytest.raises(sqlite3.IntegrityError, match=f"{table} is append-only"):
                raw.execute(change)
        assert raw.execute(f'SELECT * FROM "{table}"').fetchall() == before
    raw.close()


def fill(store: Store, run: str) -> None:
    """At least one row in every table."""
    sink = store.sink(run)
    sink.agents([persona(0), persona(1)], "p")
    sink.pages([page(0, 0, items=(0, 1, 2))])
    sink.calls(
        [CallRecord("k", "m", "ChatRequest", False, 10, 2, 1, 0.5, 0.01), CallRecord("k", "m", "ChatRequest", True, 10, 2, 0, 0.0, 0.0)]
    )
    sink.calls([CallRecord("k2", "m", "ScoreRequest", False, 5, 0, 3, 1.5, 0.0, "HTTP 500")])
    store.response_cache().put("k", "m", ChatRequest(()), Response("x", 1, 1))
    prompt = store.add_prompt("ranker", "Rank.", "person")
    store.add_trial(run, PromptTrial(0, prompt.id, "search", "MRR", 40, 0.3, 0.2, 0.4, 2.5))
    store.record_opening(Opening("mind", "t" * 64, "r" * 64, "", "person", "the report", 1.5))
    store.add_evaluations(run, [evaluation()])
    store.add_comparisons(run, [Comparison("ease", "none", "agents", "test", "mrr", 0.01, -0.01, 0.03, 0.2)])


def evaluation(**changed: object) -> Evaluation:
    values = np.array([0.1, 0.5, np.float32(1) / 3], np.float32)
    return replace(Evaluation("ease", "none", 0, "test", "mrr", 0.3, 0.1, 0.5, values, hash_users(np.arange(3))), **changed)


def test_trials_read_back_in_order_and_a_repeated_number_changes_nothing(store: Store) -> None:
    run = start(store)
    prompt = store.add_prompt("ranker", "Rank.", "person").id
    second, first = (PromptTrial(number, prompt, "search", "MRR", 40, 0.3, 0.2, 0.4, 2.5) for number in (1, 0))
    for trial in (second, first, replace(first, mean=0.9)):
        store.add_trial(run, trial)
    assert store.trials(run) == [first, second]


def test_insert_or_replace_does_not_slip_past_the_triggers(store: Store) -> None:
    run = start(store)
    with store._database.engine.connect() as connection, pytest.raises(Exception, match="append-only"):
        connection.execute(text("INSERT OR REPLACE INTO run SELECT * FROM run WHERE id = :id"), {"id": run})


def test_summaries_totals_results_and_prompts_read_back(store: Store) -> None:
    run = store.start_run("simulate", "first", {"n": 3}, 7, dataset())
    fill(store, run)
    store.record_status(run, "stopped", "Ctrl-C")
    summary = store.run(run)
    assert (summary.kind, summary.name, summary.status, summary.message, summary.seed) == ("simulate", "first", "stopped", "Ctrl-C", 7)
    assert (summary.config, summary.dataset, summary.dataset_hash) == ({"n": 3}, "tiny", dataset().content_hash)
    assert (summary.agents, summary.pages, summary.code_version) == (2, 1, code_version())
    assert [e.status for e in store.status(run)] == ["started", "stopped"]
    assert store.call_totals(run) == CallTotals(3, 1, 1, 15, 2, 4, 2.0, 0.01, 2)
    (result,) = store.evaluations(run)
    np.testing.assert_array_equal(result.per_user, evaluation().per_user)
    assert (result.mean, result.low, result.high, result.users_hash) == (0.3, 0.1, 0.5, evaluation().users_hash)
    assert store.comparisons(run) == [Comparison("ease", "none", "agents", "test", "mrr", 0.01, -0.01, 0.03, 0.2)]
    first = store.add_prompt("ranker", "Rank.", "somebody else")
    second = store.add_prompt("ranker", "Rank better.", "optimizer", parent=first.id)
    assert (first.author, store.prompts("ranker"), store.prompts("other")) == ("person", [first, second], [])
    with pytest.raises(UnknownNameError, match="no prompt version 'zzz'"):
        store.add_prompt("ranker", "x", "y", parent="zzz")


def test_results_are_added_once_and_finite(store: Store) -> None:
    run = start(store)
    store.add_evaluations(run, [evaluation(), evaluation(seed=1)])
    with pytest.raises(DataError, match="already has one of these results"):
        store.add_evaluations(run, [evaluation(seed=2), evaluation(mean=0.9)])
    with pytest.raises(DataError, match="low of mrr of ease is nan"):
        store.add_evaluations(run, [evaluation(seed=3, low=float("nan"))])
    assert [e.seed for e in store.evaluations(run)] == [0, 1]


def test_a_dataset_is_written_once_and_shows_external_ids(store: Store) -> None:
    runs = [store.start_run("simulate", "n", {}, 0, dataset()) for _ in range(2)]
    store.sink(runs[1]).agents([persona(0), persona(1)], "p")
    assert store.users(runs[1]) == {0: "u\x00", 1: "b"}
    assert [a.external for a in store.agents(runs[1])] == ["u\x00", "b"]
    items = store.items(runs[0])
    assert [(i.external, i.title, i.tags) for i in items.values()] == [
        ("i0", "A\ttab", ("x",)), ("\ud800", 'a "quote"', ()), ("i2", "\x1b[31mred", ("y", "z")),
    ]  # fmt: skip
    assert store.last_timestamp(runs[0]) == 30


def test_runs_are_found_by_id_prefix_and_latest(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="has none yet"):
        store.run("latest")
    first, second, other = start(store), start(store), start(store, "evaluate")
    assert [r.id for r in store.runs()] == [other, second, first]
    assert store.resolve("latest") == other == store.resolve("eval")
    assert store.resolve("latest", "simulate") == second
    with pytest.raises(UnknownNameError, match="ambiguous"):
        store.run("simulate-")
    with pytest.raises(UnknownNameError, match=rf"nearest: {first}.*workbench runs"):
        store.pages(first[:-1] + "?")
    with pytest.raises(DataError, match="run kind 'Not this'"):
        store.start_run("Not this", "", {}, 0)


@pytest.mark.parametrize(
    "request_", [ChatRequest((Message("user", "\ud800\x00 \U0001f600"),), {"type": "object"}), ScoreRequest("p", ("a", "b"))]
)
def test_the_cache_keeps_the_first_answer_of_a_question(store: Store, request_: ChatRequest | ScoreRequest) -> None:
    cache, key = store.response_cache(), request_key("m", request_)
    assert cache.get(key) is None
    first = Response('{"a": "\ud83d \x00 \x1b0000"}', 12, 3)
    cache.put(key, "m", request_, first)
    cache.put(key, "m", request_, Response("second", 0, 0))
    with Store.open(store.where) as reopened:
        assert cache.get(key) == reopened.response_cache().get(key) == first


def test_the_cache_and_the_sink_are_safe_in_threads(store: Store) -> None:
    cache, run = store.response_cache(), start(store, users=64)
    sink = store.sink(run)

    def work(i: int) -> None:
        cache.put(f"k{i % 16}", "m", ChatRequest(()), Response(f"answer {i % 16}", 1, 1))
        assert cache.get(f"k{i % 16}") == Response(f"answer {i % 16}", 1, 1)
        sink.pages([page(i, 0)])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(64)))
    assert len(store.pages(run)) == 64


def limit_pages(store: Store, more: int) -> None:
    """Makes the database full, for real, `more` pages of 4 KiB from here: SQLite then raises SQLITE_FULL."""
    with sqlite3.connect(store.where) as raw:
        limit = raw.execute("PRAGMA page_count").fetchone()[0] + more
    raw.close()
    store.close()
    event.listen(store._database.engine, "connect", lambda connection, _: connection.execute(f"PRAGMA max_page_count={limit}"))


def test_a_full_disk_stops_the_run_and_loses_nothing(store: Store) -> None:
    run = start(store, users=5000)
    sink = store.sink(run)
    limit_pages(store, 20)
    records = [page(u, 0, items=tuple(range(50))) for u in range(5000)]
    with pytest.raises(RunStoppedError) as stopped:
        collections.deque((sink.pages([record]) for record in records), maxlen=0)
    done = len(store.pages(run))
    assert "\n" not in str(stopped.value)
    assert str(store.where) in str(stopped.value)
    assert "bytes free" in str(stopped.value)
    assert f"--resume {run}" in str(stopped.value)
    assert 0 < done < 4999
    assert store.pages(run) == records[:done]
    with pytest.raises(RunStoppedError, match="is full"):
        store.response_cache().put("k", "m", ChatRequest(()), Response("x" * 500_000, 1, 1))
    with Store.open(store.where) as roomy:
        roomy.record_status(run, "resumed")
        roomy.sink(run).pages([records[done]])
        assert len(roomy.pages(run)) == done + 1


def test_a_locked_store_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(store)
    store.close()
    event.listen(store._database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=50"))
    blocker = sqlite3.connect(store.where, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunStoppedError, match="locked by another process"):
        store.record_status(run, "finished")
    assert store.run(run).status == "started"
    blocker.close()


def test_a_group_of_pages_is_a_few_milliseconds(store: Store) -> None:
    run = start(store, users=1000)
    sink = store.sink(run)
    records = [page(u, 0, items=tuple(range(10)), taken=(2,)) for u in range(1000)]
    began = time.perf_counter()
    for i in range(0, len(records), 50):
        sink.pages(records[i : i + 50])
    rate = len(records) / (time.perf_counter() - began)
    assert rate > 400, f"{rate:.0f} pages of 10 exposures a second; a quiet core does 5000"


def test_importing_the_store_stays_light() -> None:
    code = "import sys, workbench.store; print([m for m in ('alembic', 'torch', 'psycopg', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_code_version_reads_a_checkout_without_git(tmp_path: Path) -> None:
    commit, git = "1" * 40, tmp_path / ".git"
    assert git_commit(tmp_path) == ""
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path) == ""
    (git / "packed-refs").write_text(f"# pack-refs\n{commit} refs/heads/main\n")
    assert git_commit(tmp_path) == commit
    (git / "refs/heads/main").write_text("2" * 40 + "\n")
    assert git_commit(tmp_path) == "2" * 40
    linked = tmp_path / "linked"
    (git / "worktrees/linked").mkdir(parents=True)
    (git / "worktrees/linked/HEAD").write_text("ref: refs/heads/main")
    (git / "worktrees/linked/commondir").write_text("../..\n")
    linked.mkdir()
    (linked / ".git").write_text(f"gitdir: {git / 'worktrees/linked'}\n")
    assert git_commit(linked) == "2" * 40
