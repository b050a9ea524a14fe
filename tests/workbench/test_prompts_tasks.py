"""Ranking tasks: what their hash covers, how rows are divided, the seal on the test split, and the readers of every source."""

from __future__ import annotations

import copy
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core import create
from recsys_core.data import Dataset, Split
from recsys_core.errors import DataError, RunStoppedError
from recsys_core.evaluation import evaluate
from workbench.prompts.baselines import prior
from workbench.prompts.metrics import Measured, measure
from workbench.prompts.readers import (
    mind_task,
    po4isr_task,
    read_mind,
    read_po4isr,
    read_recprompt,
    recprompt_task,
)
from workbench.prompts.reranking import rerank_rows, rerank_task
from workbench.prompts.sealed import MemoryJournal, SealedTest, shrinkage
from workbench.prompts.tasks import Item, RankingTask, Row, by_score, divide, hash_rows, sizes, tied
from workbench.store import Opening, Store

SHARED = Path(os.environ.get("WORKBENCH_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_shared = pytest.mark.skipif(not (SHARED / "po4isr").is_dir(), reason="needs the shared data folder (WORKBENCH_SHARED_DATA)")

A, B, C = (Item(name, f"Title {name}", {"category": "news"}) for name in "abc")
ROW = Row("r", (A,), (B, C), {"b": 1.0}, {"b": 0.5, "c": 0.25}, (1.0,), "u")


def rows(count: int, users: int = 0, first: int = 0) -> list[Row]:
    return [Row(f"r{n}", (A,), (B, C), {"b": 1.0}, user=f"u{n % users}" if users else "") for n in range(first, first + count)]


def task(test: int = 5) -> RankingTask:
    return RankingTask("tiny", "made up", rows(2), rows(3, first=2), rows(test, first=5))


# Rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"candidates": ()}, "row 'r' has no candidates"),
        ({"candidates": (B, B)}, "offers 'b' twice"),
        ({"grades": {"x": 1.0}}, "grades 'x', which is no candidate"),
        ({"grades": {"b": -1.0}}, "a grade of -1.0; a grade is a number from 0 to 100"),
        ({"grades": {"b": float("nan")}}, "a grade of nan"),
        ({"grades": {"b": 1e300}}, "a grade of 1e\\+300"),
        ({"missed": (float("inf"),)}, "a grade of inf"),
        ({"prior": {"b": 1.0}}, "without a score for 'c'"),
        ({"prior": {"b": 1.0, "c": float("nan")}}, "without a score for 'c'"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(ROW, **changed)


def test_a_ranking_is_made_of_candidates() -> None:
    with pytest.raises(DataError, match="ranks 'x' but it is no candidate"):
        tied(ROW, ["b", "x"])
    with pytest.raises(DataError, match="ranks 'b' twice"):
        tied(ROW, ["b", "b"])
    with pytest.raises(DataError, match="no score for candidate 'c'"):
        by_score(ROW, {"b": 1.0})
    with pytest.raises(DataError, match="no score for candidate 'b'"):
        by_score(ROW, {"b": float("nan"), "c": 1.0})
    assert by_score(ROW, {"c": 1.0, "b": 2.0, "no candidate": 9.0}) == (("b",), ("c",))
    assert by_score(ROW, {"c": float("-inf"), "b": float("-inf")}) == (("b", "c"),)


# The hash


CHANGES: dict[str, Callable[[Row], Row]] = {
    "id": lambda r: replace(r, id="s"),
    "user": lambda r: replace(r, user="v"),
    "history": lambda r: replace(r, history=()),
    "order of candidates": lambda r: replace(r, candidates=r.candidates[::-1]),
    "item id": lambda r: replace(r, history=(replace(A, id="z"),)),
    "title": lambda r: replace(r, history=(replace(A, title="Title a "),)),
    "field": lambda r: replace(r, history=(replace(A, fields={"category": "sports"}),)),
    "field name": lambda r: replace(r, history=(replace(A, fields={"subcategory": "news"}),)),
    "grade": lambda r: replace(r, grades={"b": 2.0}),
    "which is graded": lambda r: replace(r, grades={"c": 1.0}),
    "prior": lambda r: replace(r, prior={"b": 0.5, "c": 0.26}),
    "no prior": lambda r: replace(r, prior=None),
    "missed": lambda r: replace(r, missed=()),
    "text that looks like structure": lambda r: replace(r, history=(replace(A, title='Title a",{"category":"news"}'),)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_changes_a_number_changes_the_hash(change: str) -> None:
    assert hash_rows([CHANGES[change](ROW)]) != hash_rows([ROW])


def test_equal_rows_have_equal_hashes_however_they_were_made() -> None:
    same = copy.deepcopy(replace(ROW, grades={"b": 1}, prior={"c": 0.25, "b": 0.5}, missed=(1,)))
    assert hash_rows([same]) == hash_rows([ROW])
    assert hash_rows([ROW, replace(ROW, id="s")]) != hash_rows([replace(ROW, id="s"), ROW])


def test_hashes_kept_in_stores_stay_valid() -> None:
    assert hash_rows([ROW]) == "78f22630bcc15f83a21aecf5ef1d6567842f6ab0abadf542daa36bebae07c5b3"


def test_text_of_any_kind_has_a_hash() -> None:
    odd = "NUL \x00 surrogate \ud800 line\nbreak {brace} \u202e"
    made = Row(odd, (Item(odd, odd, {odd: odd}),), (Item(odd, odd),), {odd: 1.0}, user=odd)
    assert len(hash_rows([made])) == 64
    assert len(divide([made], [1], 0)[0]) == 1


def test_the_task_hash_covers_all_parts_and_tells_them_apart() -> None:
    base = task()
    other = RankingTask("renamed", "elsewhere", rows(2), rows(3, first=2), rows(5, first=5))
    moved = RankingTask("tiny", "made up", rows(1), rows(4, first=1), rows(5, first=5))
    assert base.content_hash == other.content_hash
    assert base.content_hash != moved.content_hash
    assert base.test.content_hash == moved.test.content_hash
    assert base.fields == ("category",)


def test_a_task_needs_rows_and_counts_each_once() -> None:
    with pytest.raises(DataError, match="3 dev and 0 test rows"):
        task(test=0)
    with pytest.raises(DataError, match="has row 'r1' twice"):
        RankingTask("t", "s", rows(2), rows(3, first=1), rows(1, first=9))


# Random splits


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(0, 9), st.integers(0, 3), st.randoms(use_true_random=False), st.data())
def test_parts_are_disjoint_bounded_and_keep_users_whole(count: int, users: int, seed: int, random: object, data: st.DataObject) -> None:
    some = rows(count, users)
    sizes = data.draw(st.lists(st.integers(0, count // 3), min_size=3, max_size=3))
    parts = divide(some, sizes, seed)
    ids = [[row.id for row in part] for part in parts]
    assert all(len(part) <= size for part, size in zip(parts, sizes, strict=True))
    assert len({i for part in ids for i in part}) == sum(map(len, ids))
    owners = [{row.user for row in part} for part in parts]
    assert not users or not (owners[0] & owners[1] or owners[1] & owners[2] or owners[0] & owners[2])
    if not users:
        assert [len(part) for part in parts] == sizes
        mixed = list(some)
        random.shuffle(mixed)  # type: ignore[attr-defined]
        assert [[row.id for row in part] for part in divide(mixed, sizes, seed)] == ids
    assert [row.id for row in divide(some, [sizes[0], 0, 0], seed)[0]] == ids[0]


def test_the_seed_decides_and_too_few_rows_are_refused() -> None:
    some = rows(30)
    assert divide(some, [10], 0) != divide(some, [10], 1)
    with pytest.raises(DataError, match=r"31 rows are asked for \(20 \+ 11\), the source has 30"):
        divide(some, [20, 11], 0)


# The seal


def test_the_test_split_is_read_through_the_journal_alone() -> None:
    sealed = task().test
    assert len(sealed) == 5
    assert repr(sealed) == "SealedTest(5 rows of 'tiny', sealed; read them with open(reason, journal))"
    with pytest.raises(TypeError):
        list(sealed)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        sealed[0]  # type: ignore[index]
    assert not [name for name in dir(sealed) if not name.startswith("_") and isinstance(getattr(sealed, name), tuple)]
    with pytest.raises(TypeError):
        sealed.open("a reason and no journal")  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        sealed.open("a reason", None)  # type: ignore[arg-type]


def test_an_opening_is_kept_in_the_store_with_who_when_why_and_what(tmp_path: Path) -> None:
    made, path = task(), tmp_path / "s.sqlite"
    with Store.open(path) as store:
        assert store.openings() == []
        opened = made.test.open("the report\nof \ud800 May", store, template="abc123", who="optimizer")
        made.test.open("again", store)
        RankingTask("other", "s", [], rows(1), rows(2, first=1)).test.open("another", store)
    assert [row.id for row in opened] == ["r5", "r6", "r7", "r8", "r9"]
    with Store.open(path) as store:
        first, second = store.openings(made.test.content_hash)
        assert len(store.openings()) == 3
    assert replace(first, at=0.0) == Opening(
        "tiny", made.content_hash, made.test.content_hash, "abc123", "optimizer", "the report\nof \ud800 May", 0.0
    )
    assert second.at >= first.at > 1.7e9
    assert second.who
    assert second.template == ""


def test_an_opening_that_cannot_be_journaled_gives_no_rows() -> None:
    class Full(MemoryJournal):
        def record_opening(self, opening: Opening) -> None:
            raise RunStoppedError("store is full")

    with pytest.raises(RunStoppedError):
        task().test.open("the report", Full())


@pytest.mark.parametrize("reason", ["", " \n"])
def test_an_opening_needs_a_reason(reason: str) -> None:
    journal = MemoryJournal()
    with pytest.raises(DataError, match="opened for no reason"):
        task().test.open(reason, journal)
    assert journal.openings() == []


def test_a_process_without_a_user_name_can_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    journal = MemoryJournal()
    task().test.open("why", journal)
    assert journal.openings()[0].who == "unknown"


def test_a_store_of_the_first_schema_gains_the_journal_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import alembic.command

    path, upgrade = tmp_path / "s.sqlite", alembic.command.upgrade
    monkeypatch.setattr(alembic.command, "upgrade", lambda config, target: upgrade(config, "0001"))
    Store.open(path).close()
    monkeypatch.undo()
    run = "simulate-old"
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO run VALUES (?, 'simulate', 'old', '{}', NULL, NULL, 'code', 0, 1.0)", (run,))
        raw.execute("INSERT INTO run_event VALUES (1, ?, 1.0, 'finished', '')", (run,))
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
        assert not raw.execute("SELECT 1 FROM sqlite_master WHERE name = 'test_opening'").fetchone()
    raw.close()
    with Store.open(path) as store:
        assert [r.id for r in store.runs()] == [run]
        task().test.open("after the upgrade", store)
        assert len(store.openings()) == 1


def test_shrinkage_is_dev_minus_test_with_an_interval_that_covers() -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 300
    for n in range(runs):
        dev, test = (
            Measured("m", tuple(map(str, range(size))), {"MRR": rng.beta(2, 2, size) + shift}) for size, shift in ((40, 0.1), (150, 0.0))
        )
        found = shrinkage(dev, test, "MRR", seed=n, resamples=500)
        hits += found.low <= 0.1 <= found.high
        assert found.difference == pytest.approx(dev.mean("MRR") - test.mean("MRR"))
    assert abs(hits / runs - 0.95) < 0.038


def test_choosing_the_best_of_many_on_dev_shows_as_shrinkage() -> None:
    rng = np.random.default_rng(0)
    dev, test = rng.random((50, 40)), rng.random((50, 400))
    best = int(dev.mean(1).argmax())
    names = tuple(map(str, range(400)))
    found = shrinkage(Measured("m", names[:40], {"MRR": dev[best]}), Measured("m", names, {"MRR": test[best]}), "MRR")
    assert found.low > 0


# MIND


NEWS = (
    'N1\tnews\tworld\tA "quoted title\tText\u2028 with\rodd breaks\x85\turl\t[]\t[]\nN2\tsports\tnba\tB\t\turl\t[]\t[]\nN3\ttv\ttv\tC\tc\n'
)
BEHAVIORS = (
    "1\tU1\t11/11/2019 9:05:58 AM\tN1 N2 N1\tN3-1 N2-0 N1-1\n"
    "2\tU2\t11/11/2019 9:05:59 AM\t\tN1-0 N2-1 N3-0\n"
    "3\tU1\t11/11/2019 9:06:00 AM\tN1\tN1-0 N2-0\n"
)


def mind(folder: Path, behaviors: str = BEHAVIORS, news: str = NEWS) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    (folder / "behaviors.tsv").write_text(behaviors, newline="")
    (folder / "news.tsv").write_text(news, newline="")
    return folder / "behaviors.tsv", folder / "news.tsv"


def test_mind_keeps_all_clicks_histories_and_text(tmp_path: Path) -> None:
    first, second = read_mind(*mind(tmp_path))
    assert (first.id, first.user, [i.id for i in first.history]) == ("1", "U1", ["N1", "N2", "N1"])
    assert first.grades == {"N3": 1.0, "N1": 1.0}
    assert [i.id for i in first.candidates] == ["N3", "N2", "N1"]
    assert first.history[0].title == 'A "quoted title'
    assert first.history[0].fields == {"category": "news", "subcategory": "world", "abstract": "Text\u2028 with\rodd breaks\x85"}
    assert (second.history, second.positives) == ((), frozenset({"N2"}))


def test_mind_reads_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    plain = read_mind(*mind(tmp_path / "a"))
    windows = read_mind(*mind(tmp_path / "b", "\ufeff" + BEHAVIORS.replace("\n", "\r\n"), "\ufeff" + NEWS.replace("\n", "\r\n")))
    assert windows == plain


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 12), seed=st.integers(0, 5))
def test_mind_draws_negatives_and_never_drops_a_click(count: int, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    news = "".join(f"N{n}\tc\ts\tT{n}\t\n" for n in range(10))
    offers = " ".join(f"N{n}-{int(n in (2, 7, 9))}" for n in range(10))
    files = mind(tmp_path_factory.mktemp("mind"), f"5\tU\tt\t\t{offers} N2-0\n", news)
    (found,) = read_mind(*files, candidates=count, seed=seed)
    ids = [item.id for item in found.candidates]
    assert found.positives == {"N2", "N7", "N9"}
    assert len(ids) == max(3, min(count, 10))
    assert ids == sorted(ids)
    assert read_mind(*files, candidates=count, seed=seed) == [found]


@pytest.mark.parametrize(
    ("behaviors", "news", "message"),
    [
        ("1\tU\tt\tN1\n", NEWS, r"behaviors\.tsv, line 1: 4 tab-separated cells in '1"),
        (BEHAVIORS + "4\tU\tt\tN9\tN1-1\n", NEWS, r"behaviors\.tsv, line 4: news 'N9' is not in .*news\.tsv"),
        (BEHAVIORS + "4\tU\tt\t\tN1 N2\n", NEWS, r"line 4: candidate 'N1' is not 'ID-0' or 'ID-1'; MIND's test set has no labels"),
        ("1\tU\tt\t\tN1-2\n", NEWS, r"candidate 'N1-2'"),
        (BEHAVIORS, NEWS + NEWS, r"news\.tsv, line 4: news 'N1' is there twice"),
        (BEHAVIORS, "N1\tnews\n", r"news\.tsv, line 1: 2 tab-separated cells"),
    ],
)
def test_mind_errors_name_file_line_and_value(tmp_path: Path, behaviors: str, news: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_mind(*mind(tmp_path, behaviors, news))
    assert "\n" not in str(error.value)


def test_what_is_no_text_or_no_file_is_one_line(tmp_path: Path) -> None:
    files = mind(tmp_path)
    files[1].write_bytes(b"N1\tnews\tworld\t\xff\xfe\tx\n")
    with pytest.raises(DataError, match=r"news\.tsv: b'\\xff' .* is not UTF-8"):
        read_mind(*files)
    with pytest.raises(DataError, match=r"none\.tsv cannot be read \(No such file"):
        read_mind(files[0], tmp_path / "none.tsv")


def test_a_mind_task_keeps_users_apart(tmp_path: Path) -> None:
    lines = "".join(f"{n}\tU{n % 20}\tt\tN1\tN2-1 N3-0\n" for n in range(60))
    made = mind_task(mind(tmp_path / "MINDsmall_dev", lines)[0].parent, train=6, dev=12, test=18)
    parts = [made.train, made.dev, made.test.open("test", MemoryJournal())]
    assert [len(part) for part in parts] == [6, 12, 18]
    owners = [{row.user for row in part} for part in parts]
    assert not (owners[0] & owners[1] | owners[1] & owners[2] | owners[0] & owners[2])
    assert made.source == "MIND, MINDsmall_dev, all candidates; random split, seed 0"


# RecPrompt


COLUMNS = [f"{side}_{name}" for side in ("history", "candidate") for name in ("news_id", "title", "category", "subvert", "abstract")]


def recprompt(path: Path, *records: dict[str, str]) -> Path:
    import csv

    plain = {name: "one\ntwo\nthree" if name.startswith("candidate") else "h" for name in COLUMNS}
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["", "impression_id", "label", *COLUMNS])
        writer.writeheader()
        writer.writerows({"impression_id": "7", "label": "C2"} | plain | record for record in records)
    return path


def test_recprompt_takes_the_click_by_its_number(tmp_path: Path) -> None:
    (found,) = read_recprompt(recprompt(tmp_path / "r.csv", {"candidate_title": 'A "x", y\nB\n', "candidate_abstract": "\n\nlast"}))
    assert found.positives == {"two"}
    assert [i.title for i in found.candidates] == ['A "x", y', "B", ""]
    assert found.candidates[2].fields == {"category": "three", "subcategory": "three", "abstract": "last"}
    bare = {name: "" for name in COLUMNS if name.startswith("history")} | {"candidate_news_id": "\nb\nc"}
    (found,) = read_recprompt(recprompt(tmp_path / "r.csv", bare | {"candidate_title": "\nB\nC"}))
    assert (found.history, found.positives) == ((), {"b"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": "C4"}, r"r\.csv, line 13: label 'C4' is not C1 \.\. C3"),
        ({"label": "2"}, "label '2'"),
        ({"label": ""}, "label ''"),
        ({"candidate_title": "A\nB"}, r"candidate has .*'title': 2.* lines; each column"),
        ({"candidate_news_id": "a\nb\na"}, "row '7' offers 'a' twice"),
    ],
)
def test_recprompt_errors_name_file_line_and_value(tmp_path: Path, record: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_recprompt(recprompt(tmp_path / "r.csv", {}, record))
    assert "\n" not in str(error.value)


def test_recprompt_names_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("impression_id,label\n1,C1\n")
    with pytest.raises(DataError, match=r"r\.csv, line 1: no column 'candidate_abstract'"):
        read_recprompt(tmp_path / "r.csv")


# PO4ISR


def session(history: list[str], candidates: list[str], index: int, target: str | None = None) -> dict[str, object]:
    lists = ["[" + ",".join(f'{n}."{title}"' for n, title in enumerate(titles, 1)) + "]" for titles in (history, candidates)]
    text = f"Current session interactions: {lists[0]}\nCandidate set: {lists[1]}"
    return {"input": text, "target": candidates[index - 1] if target is None else target, "target_index": index}


def po4isr(path: Path, *sessions: object) -> Path:
    path.write_text(json.dumps(list(sessions)))
    return path


awkward = st.one_of(
    st.text(st.sampled_from("\",.[]12 \n'{}a\\"), min_size=1, max_size=8),
    st.sampled_from(['Ivan "Ironman" Stewart\'s', '[Rec] "2"', '2."B"', '1984",', 'A",9."B', "\ud800"]),
).filter(lambda title: '",' not in title or title == 'A",9."B')


@settings(max_examples=100, deadline=None)
@given(st.lists(awkward, min_size=1, max_size=6), st.lists(awkward, min_size=1, max_size=7), st.data())
def test_po4isr_titles_may_hold_quotes_brackets_and_numbers(
    tmp_path_factory: pytest.TempPathFactory, history: list[str], candidates: list[str], data: st.DataObject
) -> None:
    index = data.draw(st.integers(1, len(candidates)))
    (found,) = read_po4isr(po4isr(tmp_path_factory.mktemp("p") / "valid.json", session(history, candidates, index)))
    assert [item.title for item in found.history] == history
    assert [item.title for item in found.candidates] == candidates
    assert found.positives == {found.candidates[index - 1].id}
    assert len({item.id for item in found.candidates}) == len(candidates)


def test_po4isr_repeated_titles_get_ids_of_their_own_and_the_index_decides(tmp_path: Path) -> None:
    (found,) = read_po4isr(po4isr(tmp_path / "valid.json", session(["X"], ["X", "Y", "X", "X"], 3)))
    x, y, again, third = (item.id for item in found.candidates)
    assert found.positives == {again}
    assert (again, third) == (f"{x}-2", f"{x}-3")
    assert found.history[0].id == x != y
    assert found.id == "valid-1"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (session(["X"], ["A", "B"], 1, target="B"), r"valid\.json, session 2: candidate 1 is not the target 'B'"),
        (session(["X"], ["A", "B"], 1) | {"target_index": 3}, "candidate 3 is not the target 'A'"),
        (session(["X"], ["A", "B"], 1) | {"target_index": 0}, "candidate 0 is not"),
        (session(["X"], ["A", "B"], 1) | {"target_index": "1"}, "candidate '1' is not"),
        ({"input": "x"}, "session 2: .* is not an object with 'input', 'target' and 'target_index'"),
        ([], "is not an object"),
        (session(["X"], ["A"], 1) | {"input": "hello\nworld"}, r"input 'hello\\nworld' is not"),
        (session(["X"], ["A"], 1) | {"input": "Current session interactions: []\nCandidate set: [1.A]"}, "is not a list like"),
    ],
)
def test_po4isr_errors_name_file_session_and_value(tmp_path: Path, broken: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_po4isr(po4isr(tmp_path / "valid.json", session(["X"], ["A", "B"], 2), broken))
    assert "\n" not in str(error.value)


def test_po4isr_refuses_what_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('[\n{"input": }]')
    with pytest.raises(DataError, match=r"v\.json, line 2: not JSON"):
        read_po4isr(tmp_path / "v.json")
    (tmp_path / "v.json").write_text("{}")
    with pytest.raises(DataError, match="dict, not a list of sessions"):
        read_po4isr(tmp_path / "v.json")


@needs_shared
@pytest.mark.parametrize("domain", ["games", "ml-1m"])
def test_po4isr_s_own_files(domain: str) -> None:
    made = po4isr_task(SHARED / "po4isr" / domain)
    assert (len(made.train), len(made.dev), len(made.test), made.fields) == (50, 100, 1000, ())
    for row in (*made.train, *made.dev):
        assert (len(row.candidates), len(row.positives)) == (20, 1)
        assert len({item.id for item in row.candidates}) == 20
    assert any('"' in item.title for row in made.dev for item in row.history) == (domain == "games")


@needs_shared
def test_recprompt_s_own_file() -> None:
    made = recprompt_task(SHARED / "mind-sample" / "valid_with_categories.csv")
    assert (len(made.train), len(made.dev), len(made.test)) == (20, 40, 40)
    assert made.fields == ("abstract", "category", "subcategory")
    assert {len(row.candidates) for row in (*made.train, *made.dev)} == {10}
    assert made.content_hash == recprompt_task(SHARED / "mind-sample" / "valid_with_categories.csv").content_hash


# What a recommender offers


def test_reranking_rows_hold_the_recommenders_list_and_what_it_missed(films: Dataset, split: Split) -> None:
    ease = create("ease").fit(split.train)
    made = rerank_rows(ease, films, split.valid, range(len(split.valid)), 10, "valid")
    reference = evaluate(ease, split.valid, ("Recall@10", "MRR@10"))
    offered = [len(row.positives) / (len(row.positives) + len(row.missed)) for row in made]
    assert offered == reference["Recall@10"].tolist()
    assert 0 < np.mean(offered) < 1
    measured = measure("ease", made, [by_score(row, prior(row)) for row in made], ["MRR", "Recall@10"])
    assert measured["MRR"] == pytest.approx(reference["MRR@10"])
    assert measured["Recall@10"] == pytest.approx(reference["Recall@10"])
    assert made[3].user == films.users.ids[int(split.valid.users[3])]
    assert [item.id for item in made[3].history] == [films.items.ids[i] for i in split.valid.histories.items[3]]
    first = made[3].candidates[0]
    assert first.title == films.title(films.items.encode([first.id])[0])
    assert first.fields["tags"] in ("Comedy", "Drama", "Horror", "Western")


def test_a_reranking_task_has_no_user_in_two_parts(films: Dataset, split: Split) -> None:
    popular = create("popularity").fit(split.train)
    made = rerank_task(popular, films, split, n=15, train=10, dev=20, test=30)
    sealed = made.test.open("test", MemoryJournal())
    owners = [{row.user for row in part} for part in (made.train, made.dev, sealed)]
    assert [len(o) for o in owners] == [10, 20, 30]
    assert not (owners[0] & owners[1] | owners[1] & owners[2] | owners[0] & owners[2])
    assert sealed[0].id.startswith("test/")
    assert made.dev[0].id.startswith("valid/")
    for part, holdout in ((sealed, split.test), (made.dev, split.valid)):
        known = {films.users.ids[user]: holdout.histories.items[place].tolist() for place, user in enumerate(holdout.users.tolist())}
        assert all(films.items.encode([item.id for item in row.history]).tolist() == known[row.user] for row in part)
    assert rerank_task(popular, films, split, n=15, train=10, dev=20, test=30).content_hash == made.content_hash
    larger = rerank_task(popular, films, split, n=15, train=10, dev=25, test=25)
    assert {row.id for row in larger.test.open("test", MemoryJournal())} < {row.id for row in sealed}
    with pytest.raises(
        DataError, match="21 dev rows are asked for, 'films' has 20 users left for them; 16 dev, 33 test and 4 train rows would fit"
    ):
        rerank_task(popular, films, split, train=10, dev=21, test=30)


def test_users_whose_positives_were_all_missed_can_be_left_out_and_are_counted(films: Dataset, split: Split) -> None:
    ease = create("ease").fit(split.train)
    made = rerank_task(ease, films, split, n=10, train=2, dev=6, test=6, reached_only=True)
    rows = (*made.train, *made.dev, *made.test.open("test", MemoryJournal()))
    assert all(row.positives for row in rows)
    assert len({row.user for row in rows}) == 14
    everyone = rerank_rows(ease, films, split.valid, range(len(split.valid)), 10, "valid")
    reached = {row.id for row in everyone if row.positives}
    assert {row.id for row in made.dev} < reached
    share = float(made.source.split("10, ")[-1].split("%")[0]) / 100
    assert abs(share - len(reached) / len(everyone)) < 0.35
    with pytest.raises(
        DataError, match=r"35 test rows are asked for, 'films' has \d+ users with a positive among 10 candidates left for them; "
    ):
        rerank_task(ease, films, split, n=10, train=5, dev=20, test=35, reached_only=True)


def test_sizes_that_are_left_open_fit_what_there_is(films: Dataset, split: Split) -> None:
    assert sizes(1000, (None, None, None), (400, 50, 200)) == [400, 50, 200]
    assert sizes(130, (None, None, None), (400, 50, 200)) == [80, 10, 40]
    assert sizes(130, (100, None, None), (400, 50, 200)) == [100, 6, 24]
    assert sizes(130, (200, None, 0), (400, 50, 200)) == [200, 0, 0]
    ease = create("ease").fit(split.train)
    for reached_only in (False, True):
        made = rerank_task(ease, films, split, n=10, reached_only=reached_only)
        assert len(made.train) < len(made.dev) < len(made.test) < 400
        given = rerank_task(ease, films, split, n=10, train=0, test=5, reached_only=reached_only)
        assert (len(given.train), len(given.dev), len(given.test)) == (0, len(given.dev), 5)
        assert len(given.dev) > 1


def test_a_recommender_of_another_catalogue_is_refused(films: Dataset, split: Split) -> None:
    from recsys_core.data import Vocabulary

    popular = create("popularity").fit(split.train)
    popular.items = Vocabulary(films.items.ids[::-1])
    with pytest.raises(DataError, match="popularity was not trained on the catalogue of 'films'"):
        rerank_task(popular, films, split, train=1, dev=1, test=1)


def test_sealed_rows_do_not_leak_into_the_task() -> None:
    made = task()
    public = {name: value for name, value in vars(made).items() if not isinstance(value, SealedTest)}
    assert "r7" not in repr(public)
    assert "r7" not in repr(made)
