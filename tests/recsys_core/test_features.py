"""Features out of files: what a column becomes, what is missing, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_core.data import Category, Dataset, Feature, FeatureColumns, Number, Tags, load_dataset
from recsys_core.errors import DataError

LOG = "user,item,timestamp,price,place\nu1,a,1,2.5,home\nu2,b,2,,work\nu1,c,3,-1e1,\n"
KINDS = FeatureColumns(
    user={"age": "number", "job": "category"},
    item={"genres": "tags", "brand": "category", "year": "number"},
    interaction={"price": "number", "place": "category"},
)


def put(folder: Path, **files: str) -> dict[str, Path]:
    paths = {name: folder / name.replace("_", ".") for name in files}
    for name, path in paths.items():
        path.write_text(files[name])
    return paths


def values(feature: Feature) -> list[object]:
    """One value a row as a person would write it; None where it is missing."""
    if isinstance(feature, Number):
        return [None if np.isnan(v) else float(v) for v in feature.values]
    if isinstance(feature, Category):
        return [None if c < 0 else feature.vocabulary.ids[c] for c in feature.codes]
    return [feature.vocabulary.decode(feature.codes[row]) for row in range(len(feature))]


def told(dataset: Dataset) -> dict[str, list[object]]:
    features = dataset.features
    owned = {"user": features.user, "item": features.item, "interaction": features.interaction}
    return {f"{owner}.{f.name}": values(f) for owner, of in owned.items() for f in of}


def test_any_file_gives_features_by_a_mapping(tmp_path: Path) -> None:
    items = "item,name,genres,brand,year\nc,Cee,Drama|War,007,1999\na,Ay,,7,\nz,Zed,Comedy,x,1\na,Again,War,1,2\n"
    paths = put(tmp_path, log_csv=LOG, items_csv=items, users_tsv="user\tage\tjob\nu2\t31\t \n")
    dataset = load_dataset(paths["log_csv"], items=paths["items_csv"], users=paths["users_tsv"], features=KINDS)
    assert told(dataset) == {
        "user.age": [None, 31.0],
        "user.job": [None, None],
        # Items a, b, c: b is not in the file, a is there twice and its first row counts.
        "item.genres": [[], [], ["Drama", "War"]],
        "item.brand": ["7", None, "007"],
        "item.year": [None, None, 1999.0],
        "interaction.price": [2.5, None, -10.0],
        "interaction.place": ["home", "work", None],
    }
    # The vocabularies hold what these items have, in the order of ids; what only item z has is not in them.
    assert [f.vocabulary.ids for f in dataset.features.item if not isinstance(f, Number)] == [("Drama", "War"), ("7", "007")]
    assert dataset.titles == ("Ay", "b", "Cee (1999)")
    bare = load_dataset(paths["log_csv"], items=paths["items_csv"])
    assert told(bare) == {}
    assert bare.content_hash != dataset.content_hash


def test_recbole_types_give_features_by_themselves(tmp_path: Path) -> None:
    put(
        tmp_path,
        log_inter="user_id:token\titem_id:token\ttimestamp:float\trating:float\tdevice:token\tseen:token_seq\nu\ta\t1\t4\tphone\tx y\n",
        log_item="item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\na\tA Film\t1979\tDrama War\t3\n",
        log_user="user_id:token\tage:float\tgender:token\nu\t30\tF\n",
    )
    dataset = load_dataset(tmp_path / "log.inter")
    assert told(dataset) == {
        "user.age": [30.0],
        "user.gender": ["F"],
        "item.release_year": ["1979"],
        "item.class": [["Drama", "War"]],
        "item.price": [3.0],
        "interaction.device": ["phone"],
    }
    assert dataset.titles == ("A Film (1979)",)
    chosen = load_dataset(tmp_path / "log.inter", features=FeatureColumns(user={"gender": "category"}))
    assert told(chosen) == {"user.gender": ["F"]}


def test_lists_stay_lists(tmp_path: Path) -> None:
    put(tmp_path, log_csv="user,item,timestamp\nu,1,1\nu,2,2\n")
    lines = '{"item": 1, "name": "One", "topics": ["b|c", "a", "b|c"], "n": 1}\n\n{"item": 2, "topics": null, "n": 2.5}\n'
    (tmp_path / "items.jsonl").write_text(lines)
    table = pa.table({"item": [1, 2], "name": ["One", None], "topics": [["b|c", "a", "b|c"], None], "n": [1, 2.5]})
    pq.write_table(table, tmp_path / "items.parquet")
    for file in ("items.jsonl", "items.parquet"):
        kinds = FeatureColumns(item={"topics": "tags", "n": "number"})
        dataset = load_dataset(tmp_path / "log.csv", items=tmp_path / file, features=kinds)
        assert told(dataset) == {"item.topics": [["b|c", "a", "b|c"], []], "item.n": [1.0, 2.5]}
        assert dataset.titles == ("One", "2")
        with pytest.raises(DataError, match="the column holds lists; make it tags"):
            load_dataset(tmp_path / "log.csv", items=tmp_path / file, features=FeatureColumns(item={"topics": "category"}))


@pytest.mark.parametrize(
    ("items", "features", "message"),
    [
        ("item,n\na,1\nc,x\n", FeatureColumns(item={"n": "number"}), r"items\.csv, line 3, column 'n': 'x' is not a finite number"),
        ("item,n\nq,x\na,inf\n", FeatureColumns(item={"n": "number"}), r"items\.csv, line 3, column 'n': 'inf' is not a finite number"),
        ("item,n\na,1e39\n", FeatureColumns(item={"n": "number"}), "'1e39' is not a finite number"),
        ("item,n\na,1\n", FeatureColumns(item={"m": "number"}), r"items\.csv has no column 'm'; it has item, n"),
        ("id,n\na,1\n", FeatureColumns(), r"no item id column among \['id', 'n'\]"),
        ("item,n\na,1\n", FeatureColumns(user={"n": "number"}), "user features n need a file of users"),
        (
            "item,n\n1.0,1\n",
            FeatureColumns(),
            r"no item of the log is here; ids are \['1.0'\], and the log's are such as \['a', 'b', 'c'\]",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, items: str, features: FeatureColumns, message: str) -> None:
    paths = put(tmp_path, log_csv=LOG, items_csv=items)
    with pytest.raises(DataError, match=message):
        load_dataset(paths["log_csv"], items=paths["items_csv"], features=features)


def test_kinds_are_checked_and_lists_of_numbers_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="interaction feature 'x' is of kind 'tags'; one of category, number"):
        FeatureColumns(interaction={"x": "tags"})
    with pytest.raises(DataError, match="item feature 'x' is of kind 'text'"):
        FeatureColumns(item={"x": "text"})  # type: ignore[dict-item]
    put(tmp_path, log_inter="user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\n", log_item="item_id:token\tv:float_seq\na\t1 2\n")
    with pytest.raises(DataError, match=r"column 'v:float_seq' is of type 'float_seq', which no feature can be; pass FeatureColumns"):
        load_dataset(tmp_path / "log.inter")
    assert told(load_dataset(tmp_path / "log.inter", features=FeatureColumns())) == {}


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='|"'), min_size=1, max_size=4).filter(str.strip)


@given(
    st.lists(st.tuples(st.none() | NAMES, st.lists(NAMES, max_size=3), st.none() | st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=8)
)
def test_any_features_survive_a_parquet_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, list[str], float]]
) -> None:
    folder = tmp_path_factory.mktemp("features")
    ids = [str(n) for n in range(len(rows))]
    brand, topics, price = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"user": ["u"] * len(ids), "item": ids, "timestamp": range(len(ids))}), folder / "log.parquet")
    types = {"brand": pa.string(), "topics": pa.list_(pa.string()), "price": pa.float32()}
    columns = {"brand": brand, "topics": topics, "price": price}
    arrays = {name: pa.array(column, types[name]) for name, column in columns.items()}
    pq.write_table(pa.table({"item": ids} | arrays), folder / "items.parquet")
    kinds = FeatureColumns(item={"brand": "category", "topics": "tags", "price": "number"})
    dataset = load_dataset(folder / "log.parquet", items=folder / "items.parquet", features=kinds)
    assert told(dataset) == {f"item.{name}": column for name, column in columns.items()}
    tags = dataset.features.item[1]
    assert isinstance(tags, Tags)
    assert list(tags.vocabulary.ids) == sorted({topic for row in topics for topic in row}, key=tags.vocabulary.ids.index)
