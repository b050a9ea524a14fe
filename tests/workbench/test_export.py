"""Exports: what the agents took, readable elsewhere, whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.types import Persona
from recsys_core.data import load_dataset
from recsys_core.data.dataset import Dataset
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.errors import DataError, RunStoppedError
from recsys_core.files import atomic_file
from simulators.events import Action, Exposure, PageRecord
from workbench.export import export_run
from workbench.store import Store

TITLES = ("Tab\there", 'The "Quoted" One', '"Opens', "Line\nbreak\r\n", "Plain (1995)", "\u2028\x85\ud800 odd")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with Store.open(tmp_path_factory.mktemp("export") / "s.sqlite") as opened:
        yield opened


def simulated(
    store: Store, titles: tuple[str, ...] = TITLES, item_ids: tuple[str, ...] = (), tags: tuple[str, ...] = ("Sci Fi", "Drama")
) -> str:
    """A run of two agents who take, in this order: user `u0` items 2, 0 and then 3, user `u1` item 1."""
    ids = item_ids or tuple(f"i{n}" for n in range(len(titles)))
    columns = (np.array([0, 1]), np.array([0, 1]), np.array([100, 200]))
    dataset = Dataset(
        "tiny", Vocabulary(["u0", "u1"]), Vocabulary(ids), *columns, np.ones(2, np.float32), titles, (("Sci Fi", "Drama"),) * len(titles)
    )
    run = store.start_run("simulate", "n", {"x": 1}, 3, dataset)
    sink = store.sink(run)
    sink.agents([Persona(u, 1, 2, 3, ("Drama",), (), (), (), 3.5, 1.0) for u in range(2)], "statistical")
    for user, number, shown, taken in ((1, 0, (1, 2), (0,)), (0, 0, (0, 1, 2), (2, 0)), (0, 1, (3,), (0,))):
        exposures = tuple(Exposure(p, i, 1.0, 0.25) for p, i in enumerate(shown))
        actions = tuple(Action(p, shown[p], 4.5 - p, "satisfied") for p in taken)
        sink.pages([PageRecord(user, number, "ease", "statistical", exposures, actions, "satisfied", "", "", ())])
    return run


def test_parquet_round_trips_with_external_ids_titles_and_provenance(store: Store, tmp_path: Path) -> None:
    run = simulated(store)
    done = export_run(store, run[:-1], tmp_path, personas=True)
    parquet, sidecar = done.files
    table = pq.read_table(parquet)
    assert (done.rows, done.run) == (4, run)
    assert table["user_id"].to_pylist() == ["u0", "u0", "u0", "u1"]
    assert table["item_id"].to_pylist() == ["i2", "i0", "i3", "i1"]
    assert table["title"].to_pylist() == [TITLES[2], TITLES[0], TITLES[3], TITLES[1]]
    assert table["rating"].to_pylist() == [2.5, 4.5, 4.5, 4.5]
    assert table["timestamp"].to_pylist() == [201, 202, 203, 201]
    assert table["page"].to_pylist() == [0, 0, 1, 0]
    assert table["position"].to_pylist() == [2, 0, 0, 0]
    assert set(table["propensity"].to_pylist()) == {0.25}
    assert table["persona_liked_tags"].to_pylist() == [["Drama"]] * 4
    provenance = json.loads(sidecar.read_text())
    assert provenance["counts"] == {"interactions": 4, "users": 2, "items": 4}
    assert (provenance["id"], provenance["seed"], provenance["config"], provenance["log_hash"]) == (run, 3, {"x": 1}, store.log_hash(run))
    assert provenance["dataset_hash"] == store.run(run).dataset_hash
    assert json.loads(table.schema.metadata[b"workbench"])["log_hash"] == provenance["log_hash"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONE])
def test_recbole_files_load_in_any_reader(store: Store, tmp_path: Path, quoting: int) -> None:
    done = export_run(store, simulated(store), tmp_path, "recbole")
    inter, item, _ = done.files
    assert inter == tmp_path / done.run / f"{done.run}.inter"
    rows, items = (list(csv.reader(f.open(newline="", encoding="utf-8"), delimiter="\t", quoting=quoting)) for f in (inter, item))
    assert rows[0][:4] == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    assert [r[:4] for r in rows[1:]] == [
        ["u0", "i2", "2.5", "201"], ["u0", "i0", "4.5", "202"], ["u0", "i3", "4.5", "203"], ["u1", "i1", "4.5", "201"]
    ]  # fmt: skip
    assert items[0] == ["item_id:token", "title:token_seq", "tags:token_seq"]
    assert [r[1] for r in items[1:]] == ["Tab here", "The 'Quoted' One", "'Opens", "Line break  ", "Plain (1995)", "  ? odd"]
    assert {r[2] for r in items[1:]} == {"Sci_Fi Drama"}
    assert {len(r) for r in rows} == {9}


def test_our_own_readers_load_both_kinds(store: Store, tmp_path: Path) -> None:
    run = simulated(store)
    inter, item, _ = export_run(store, run, tmp_path, "recbole").files
    parquet, _ = export_run(store, run, tmp_path, "parquet").files
    for log in (load_dataset(inter), load_dataset(parquet)):
        assert log.users.decode(log.user) == ["u0", "u0", "u0", "u1"]
        assert log.items.decode(log.item) == ["i2", "i0", "i3", "i1"]
        assert log.timestamp.tolist() == [201, 202, 203, 201]
        assert log.rating is not None
        assert log.rating.tolist() == [2.5, 4.5, 4.5, 4.5]
    # The `.item` file beside the `.inter` is found by itself.
    assert load_dataset(inter).titles[:2] == ("Tab here", "The 'Quoted' One")
    assert item.is_file()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=12), min_size=4, max_size=4))
def test_any_title_leaves_the_item_file_with_one_line_an_item(
    store: Store, tmp_path_factory: pytest.TempPathFactory, titles: list[str]
) -> None:
    _, item, _ = export_run(store, simulated(store, tuple(titles)), tmp_path_factory.mktemp("any"), "recbole").files
    lines = item.read_bytes().decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["item_id:token", "i0", "i1", "i2", "i3"]
    assert {line.count("\t") for line in lines} == {2}
    assert '"' not in item.read_bytes().decode()


@pytest.mark.parametrize("odd", ["a\tb", "a\nb", 'a"b', " ", "\u2028"])
def test_an_id_that_recbole_cannot_hold_is_refused_and_parquet_keeps_it(store: Store, tmp_path: Path, odd: str) -> None:
    run = simulated(store, item_ids=(odd, "1", "2", "3"), titles=TITLES[:4])
    with pytest.raises(DataError, match="export to parquet"):
        export_run(store, run, tmp_path, "recbole")
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []
    assert odd in pq.read_table(export_run(store, run, tmp_path).files[0])["item_id"].to_pylist()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("kind", "suffix"), [("parquet", "parquet"), ("recbole", "inter"), ("recbole", "item"), ("parquet", "json")])
def test_a_full_disk_keeps_the_earlier_export(store: Store, tmp_path: Path, kind: str, suffix: str) -> None:
    done = export_run(store, simulated(store), tmp_path, kind)
    before = {f.name: f.read_bytes() for f in done.files}
    folder = done.files[0].parent
    (folder / f".{done.run}.{suffix}.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(RunStoppedError, match=r"no room for the export .* bytes free\).*export again") as error:
        export_run(store, done.run, tmp_path, kind)
    assert "\n" not in str(error.value)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    export_run(store, done.run, tmp_path, kind)


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("x", b"before")]


def interrupted_write(path: Path) -> None:
    with atomic_file(path) as out:
        out.write(b"half")
        raise KeyboardInterrupt


def test_what_cannot_be_exported_is_one_clear_line(store: Store, tmp_path: Path) -> None:
    empty = store.start_run("simulate", "empty", {}, 0)
    with pytest.raises(DataError, match=f"{empty} has no interactions"):
        export_run(store, empty, tmp_path)
    with pytest.raises(DataError, match="'xml' is not"):
        export_run(store, empty, tmp_path, "xml")
    with pytest.raises(DataError, match="personas to parquet"):
        export_run(store, empty, tmp_path, "recbole", personas=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the export"):
        export_run(store, simulated(store), tmp_path / "file")


def test_a_run_without_a_dataset_exports_dense_ids(store: Store, tmp_path: Path) -> None:
    run = store.start_run("simulate", "bare", {}, 0)
    store.sink(run).agents([Persona(7, 1, 1, 1, (), (), (), (), 3.0, 1.0)], "p")
    store.sink(run).pages([PageRecord(7, 0, "a", "p", (Exposure(0, 9, 1.0, 1.0),), (Action(0, 9, 3.0, "bored"),), "bored", "", "", ())])
    inter, _ = export_run(store, run, tmp_path, "recbole").files
    assert inter.read_text().splitlines()[1] == "7\t9\t3.0\t1\t0\t0\t1.0\tp\ta"
