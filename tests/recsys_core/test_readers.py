"""Reading logs: what is accepted, what is refused and with which words."""

from __future__ import annotations

import csv
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_core.data import Columns, Dataset, describe, load_dataset, readable_title
from recsys_core.data.readers import LAST_SECOND
from recsys_core.errors import DataError, UnavailableError, UnknownNameError

GOOD = "user,item,timestamp,rating\nu1,a,10,4\nu2,b,20,3.5\nu1,b,30,5\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def rows(dataset: Dataset) -> list[tuple[str, str, int, float | None]]:
    rating = [None] * len(dataset) if dataset.rating is None else dataset.rating.tolist()
    users, items = dataset.users.decode(dataset.user), dataset.items.decode(dataset.item)
    return list(zip(users, items, dataset.timestamp.tolist(), rating, strict=True))


def test_every_format_reads_the_same_log(tmp_path: Path) -> None:
    expected = [("u1", "a", 10, 4.0), ("u2", "b", 20, 3.5), ("u1", "b", 30, 5.0)]
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ta\t4\t10\nu2\tb\t3.5\t20.0\nu1\tb\t5\t3e1\n"
    paths = [
        write(tmp_path, "log.csv", GOOD),
        write(tmp_path, "log.tsv", GOOD.replace(",", "\t")),
        write(tmp_path, "windows.CSV", "\ufeff" + GOOD.replace("\n", "\r\n")),
        write(tmp_path, "gaps.csv", GOOD.replace("\nu2", "\n\nu2") + "\n\n"),
        write(tmp_path, "log.inter", inter),
    ]
    table = pa.table({"user": ["u1", "u2", "u1"], "item": ["a", "b", "b"], "timestamp": [10, 20, 30], "rating": [4, 3.5, 5]})
    pq.write_table(table, tmp_path / "log.parquet")
    keys = ("user", "item", "timestamp", "rating")
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in expected]
    paths.append(write(tmp_path, "log.jsonl", "\n\n".join(lines)))
    for path in [*paths, tmp_path / "log.parquet"]:
        assert rows(load_dataset(path)) == expected, path
    assert len({load_dataset(path).content_hash for path in paths}) == 1


def test_usual_names_asked_names_and_no_rating(tmp_path: Path) -> None:
    usual = write(tmp_path, "a.csv", "userId,movieId,timestamp\n1,2,3\n")
    assert rows(load_dataset(usual)) == [("1", "2", 3, None)]
    odd = write(tmp_path, "b.csv", "who,what,when,user\n1,2,3,x\n")
    assert rows(load_dataset(odd, columns=Columns(user="who", item="what", timestamp="when"))) == [("1", "2", 3, None)]
    with pytest.raises(DataError, match=r"b\.csv has no item column among .*pass Columns\(item=\.\.\.\)"):
        load_dataset(odd)
    with pytest.raises(DataError, match="has no column 'whom'; it has who, what, when, user"):
        load_dataset(odd, columns=Columns(user="whom"))


def test_dense_ids_do_not_depend_on_row_order(tmp_path: Path) -> None:
    lines = ["10,b,1", "9,a,2", "100,ç,3", "010,B,4"]
    for order in (lines, lines[::-1]):
        dataset = load_dataset(write(tmp_path, "log.csv", "user,item,timestamp\n" + "\n".join(order) + "\n"))
        assert dataset.users.ids == ("9", "10", "010", "100")
        assert dataset.items.ids == ("B", "a", "b", "ç")


def test_repeated_rows_are_kept(tmp_path: Path) -> None:
    assert len(load_dataset(write(tmp_path, "log.csv", GOOD + "u1,a,10,4\n"))) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u9,a,ten,4", "line 5, column 'timestamp': 'ten' is not whole seconds since 1970, 0 to 253402300799 "),
        ("u9,a,1700000000000,4", "line 5, column 'timestamp': '1700000000000' is not whole seconds .* milliseconds are divided by 1000"),
        ("u9,a,-1,4", "column 'timestamp': '-1' is not whole seconds"),
        ("u9,a,1.5,4", "column 'timestamp': '1.5' is not whole seconds"),
        ("u9,a,,4", "column 'timestamp': '' is not"),
        ("u9,a,1e30,4", "column 'timestamp': '1e30' is not"),
        ("u9,a,1,nan", "column 'rating': 'nan' is not a finite number"),
        ("u9,a,1,1e999", "column 'rating': '1e999' is not a finite number"),
        ("u9,a,1,1e39", "column 'rating': '1e39' is not a finite number"),
        ("u9,a,1,five", "column 'rating': 'five' is not a finite number"),
        (",a,1,4", "column 'user': '' is not a non-empty id"),
        ("u9,  ,1,4", "column 'item': '  ' is not a non-empty id"),
        ("u9,a,1", r"line 5: 3 fields, expected 4 \(user, item, timestamp, rating\)"),
        ("u9,a,1,4,5", "line 5: 5 fields, expected 4"),
        ('"u9,a,1,4', "line 5: 1 fields, expected 4"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, "log.csv", GOOD + line + "\nu1,a,50,worse\n")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert str(caught.value).startswith(f"{path}, line 5")
    assert "\n" not in str(caught.value)


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", 'user,item,timestamp\n"two\nlines",a,1\n\nu,"a ""b""",2\nu,c,bad\n')
    with pytest.raises(DataError, match="line 6, column 'timestamp': 'bad'"):
        load_dataset(path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(GOOD.encode() + "u1,café,5,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"line 5, column 'item': 'caf.' is not UTF-8 text"):
        load_dataset(path)


def test_files_that_hold_no_log(tmp_path: Path) -> None:
    for name, text, message in [
        ("empty.csv", "", "is empty"),
        ("header.csv", "user,item,timestamp\n", "has a header and no interactions"),
        ("twice.csv", "user,user,item,timestamp\n1,2,3,4\n", "occurs twice"),
        ("log.parquet", "not parquet", "is not a Parquet file"),
        ("excel.csv", "user;item;timestamp\n1;2;3\n", "with ';' in its name; columns of a .csv file are separated by ','"),
        ("commas.tsv", "user,item,timestamp\n1,2,3\n", r"columns of a .tsv file are separated by '\\t'"),
        ("log.xlsx", "x", "known formats: .csv, .tsv"),
    ]:
        with pytest.raises(DataError, match=message):
            load_dataset(write(tmp_path, name, text))
    with pytest.raises(DataError, match="no file"):
        load_dataset(tmp_path / "absent.csv")


def test_an_unknown_name_gives_the_nearest_all_and_the_formats() -> None:
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'ml-100k'\? known: .*ml-100k, .*\.csv, \.tsv, \.parquet, \.jsonl, \.inter or"
    ):
        load_dataset("ml100k")


def test_parquet_types_and_row_numbers(tmp_path: Path) -> None:
    when = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC)]
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [7, 8], "item": pa.array(["x", "y"]).dictionary_encode(), "timestamp": when}), path)
    assert rows(load_dataset(path)) == [("7", "x", 1577836800, None), ("8", "y", 1577923200, None)]
    pq.write_table(pa.table({"user": [7, None], "item": ["x", "y"], "timestamp": [1, 2]}), path)
    with pytest.raises(DataError, match="row 2, column 'user': None is not a non-empty id"):
        load_dataset(path)
    pq.write_table(pa.table({"user": [7], "item": ["x"], "timestamp": [[1]]}), path)
    with pytest.raises(DataError, match=r"row 1, column 'timestamp': \[1\] is not whole seconds"):
        load_dataset(path)


def test_ids_that_became_floats_are_those_that_they_were(tmp_path: Path) -> None:
    path, films = tmp_path / "log.parquet", tmp_path / "films.parquet"
    ids = [1234567890123.0, 7.0]
    pq.write_table(pa.table({"user": ids, "item": ids, "timestamp": [1, 2]}), path)
    pq.write_table(pa.table({"item": [7.0, None, 1234567890123.0], "title": ["Seven", "None", "Many"]}), films)
    dataset = load_dataset(path, items=films)
    assert dataset.users.ids == dataset.items.ids == ("7", "1234567890123")
    assert dataset.titles == ("Seven", "Many")
    pq.write_table(pa.table({"user": [7.0, float("nan")], "item": [1.5, 2.0], "timestamp": [1, 2]}), path)
    with pytest.raises(DataError, match="row 2, column 'user': nan is not a non-empty id"):
        load_dataset(path)
    pq.write_table(pa.table({"user": ["a", "b"], "item": [1.5, 2.0], "timestamp": [1, 2]}), path)
    assert load_dataset(path).items.ids == ("1.5", "2")


def test_item_texts(tmp_path: Path) -> None:
    write(tmp_path, "log.item", "item_id:token\ttitle:token_seq\trelease_year:token\tclass:token_seq\na\tAlien\t1979\tHorror Sci-Fi\n")
    dataset = load_dataset(write(tmp_path, "log.inter", "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\n"))
    assert dataset.titles == ("Alien (1979)", "b")
    assert dataset.tags == (("Horror", "Sci-Fi"), ())
    items = write(tmp_path, "items.csv", 'id,item,name,genres\n1,b,"Ice,\n Age",Comedy|Family\n')
    dataset = load_dataset(write(tmp_path, "log.csv", GOOD), items=items)
    assert dataset.titles == ("a", "Ice, Age")
    assert dataset.tags == ((), ("Comedy", "Family"))


def test_min_rating_keeps_dense_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "log.csv", GOOD)
    kept = load_dataset(path, min_rating=4)
    assert rows(kept) == [("u1", "a", 10, 4.0), ("u1", "b", 30, 5.0)]
    assert kept.users.ids == ("u1", "u2")
    with pytest.raises(DataError, match="no rating column"):
        load_dataset(write(tmp_path, "bare.csv", "user,item,timestamp\n1,2,3\n"), min_rating=4)


IDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=6).filter(str.strip)


@given(st.lists(st.tuples(IDS, IDS, st.integers(0, LAST_SECOND), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=20))
def test_any_log_survives_a_csv_file(tmp_path_factory: pytest.TempPathFactory, log: list[tuple[str, str, int, float]]) -> None:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user", "item", "timestamp", "rating"), *log])
    assert rows(load_dataset(path)) == log


def test_a_million_rows_take_seconds(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 20_000, (3, 1_000_000))
    path = tmp_path / "log.csv"
    pa_csv.write_csv(pa.table(dict(zip(("user", "item", "timestamp"), draw, strict=True))), path)
    start = time.process_time()
    assert len(load_dataset(path)) == 1_000_000
    # CPU seconds over all threads, some ten times what it takes here, so that a busy machine does not fail it.
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("raw", "readable"),
    [
        ("Shawshank Redemption, The (1994)", "The Shawshank Redemption (1994)"),
        ("Horseman on the Roof, The (Hussard sur le toit, Le) (1995)", "The Horseman on the Roof (Le Hussard sur le toit) (1995)"),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle) (1995)"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Day the Earth Stood Still, The", "The Day the Earth Stood Still"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("Ready to Wear (Pret-A-Porter) (1994)", "Ready to Wear (Pret-A-Porter) (1994)"),
        ("unknown", "unknown"),
    ],
)
def test_readable_titles(raw: str, readable: str) -> None:
    assert readable_title(raw) == readable


@pytest.fixture(scope="module")
def movielens() -> Dataset:
    try:
        return load_dataset("ml-100k")
    except UnavailableError as error:
        pytest.skip(str(error))


def test_movielens_is_the_published_log(movielens: Dataset) -> None:
    """Counts from the dataset's own README and the first line of its u.data."""
    facts = describe(movielens)
    assert (facts["users"], facts["items"], facts["interactions"]) == (943, 1682, 100_000)
    assert facts["ratings"] == {"1": 6110, "2": 11370, "3": 27145, "4": 34174, "5": 21201}
    assert facts["history_length"]["min"] == 20
    assert rows(movielens)[0] == ("196", "242", 881250949, 3.0)
    assert movielens.items.ids == tuple(str(i) for i in range(1, 1683))
    assert movielens.titles[63] == "The Shawshank Redemption (1994)"
    assert movielens.tags[0] == ("Animation", "Children's", "Comedy")


def test_movielens_loads_well_within_a_second(movielens: Dataset) -> None:
    if os.getloadavg()[0] > 8:
        pytest.skip("the machine is too busy for a timing")
    best = min(_seconds() for _ in range(3))
    assert best < 1


def _seconds() -> float:
    start = time.perf_counter()
    load_dataset("ml-100k")
    return time.perf_counter() - start


def line(**values: object) -> str:
    return json.dumps({"user": "u", "item": 7, "timestamp": 1, "rating": 2} | values) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(timestamp=1.5), "column 'timestamp': 1.5 is not whole seconds"),
        (line(rating=None), "column 'rating': None is not a finite number"),
        (line(user=" "), "column 'user': ' ' is not a non-empty id"),
        (line(user=None), "column 'user': None is not a non-empty id"),
        ('{"user": "u", "timestamp": 1, "rating": 2}\n', "column 'item': None is not a non-empty id"),
        (line(item="seven"), "key 'item': 'seven' is a text, but a number in line 1"),
        (line(rating=[5]), r"key 'rating': \[5\] is a list, but a number in line 1"),
        ('{"user": "u", \n', "is not JSON"),
        ("[1, 2]\n", r"'\[1, 2\]' is not a JSON object"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "log.jsonl", line() + "\n" + line(rating=3) + text + line())
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path)
    assert str(caught.value).startswith(f"{path}, line 4")
    assert "\n" not in str(caught.value)


def test_json_lines_are_read_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, "log.jsonl", '{"user": "2020-01-01", "item": 7, "timestamp": "2020-01-02", "tags": ["x"]}\n')
    assert rows(load_dataset(path)) == [("2020-01-01", "7", 1577923200, None)]
    for text in ("", "\n\n"):
        with pytest.raises(DataError, match="is empty; it names no columns"):
            load_dataset(write(tmp_path, "empty.jsonl", text))
    nested = write(tmp_path, "nested.jsonl", '{"user": {"id": 1}, "item": 7, "timestamp": 1}\n')
    with pytest.raises(DataError, match=r"line 1, column 'user': \{'id': 1\} is not a non-empty id"):
        load_dataset(nested)


def test_sequences_have_places_for_times(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, "log.txt", "10 5 a 5\n\n9 b\n"))
    assert rows(dataset) == [("10", "5", 0, None), ("10", "a", 1, None), ("10", "5", 2, None), ("9", "b", 0, None)]
    assert not dataset.timed
    assert (dataset.users.ids, dataset.items.ids) == (("9", "10"), ("5", "a", "b"))
    for text, message in [
        ("1 2\n3\n", "line 2: user '3' has no items"),
        ("1 2\n3 4\n1 5\n", "line 3: user '1' was in line 1 already"),
        ("\n", "has no lines"),
    ]:
        with pytest.raises(DataError, match=message):
            load_dataset(write(tmp_path, "bad.txt", text))


@given(st.dictionaries(IDS.map(lambda t: "".join(t.split()) or "x"), st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1))
def test_any_sequences_survive(tmp_path_factory: pytest.TempPathFactory, users: dict[str, list[int]]) -> None:
    text = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in users.items())
    dataset = load_dataset(write(tmp_path_factory.mktemp("log"), "log.txt", text))
    sequences = dataset.sequences()
    found = {user: [int(i) for i in dataset.items.decode(sequences[row])] for row, user in enumerate(dataset.users.ids)}
    assert found == users
