"""`workbench data` as a person types it, and the data settings of an experiment file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from recsys_core import assets
from recsys_core.data import Dataset, FeatureColumns, describe, load_dataset
from recsys_core.errors import DataError
from tests.workbench.conftest import Cli, one_line_error
from workbench.cli.dataset_page import WIDTH, page
from workbench.config import DataSettings, Experiment
from workbench.data import load_split


def shown(dataset: Dataset, **more: str) -> str:
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(page(describe(dataset) | more))
    return console.export_text()


def test_the_page_says_what_matters_and_fits(films: Dataset) -> None:
    text = shown(films, description="A toy", licence="[none]")
    assert all(len(line.rstrip()) <= WIDTH for line in text.splitlines())
    for part in ("films", "A toy", "60", "80", "960", "20.000%", "16 – 31", "Ratings", "Gini", "1970-01-12", "file-order", "[none]"):
        assert part in text, part
    assert films.content_hash in text
    # A bar is as long as its count is large: the longest is whole, the ratio holds to an eighth of a cell.
    bars = {int(c): len(b) for b, c in re.findall(r"^\s+\d (█+)\S? +(\d+)$", text, re.MULTILINE)}
    facts = describe(films)["ratings"]
    most = max(facts.values())
    assert bars[most] == 20
    assert all(abs(length - 20 * count / most) <= 1 for count, length in bars.items())


def test_the_page_of_an_untimed_or_empty_log_with_hostile_names(films: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "[bold]log.txt"
    path.write_text("[red]u[/red] [link=x]a b\nv a\n")
    text = shown(load_dataset(path))
    assert "[bold]log" in text
    assert "none: no more than the order" in text
    items = tmp_path / "items.csv"
    items.write_text("item,brand\n[link=x]a,[/red]acme\n")
    features = FeatureColumns(item={"brand": "category"})
    assert "[/red]acme" in shown(load_dataset(path, items=items, features=features))
    assert "no interactions" in shown(films.rows([]))  # type: ignore[arg-type]


def test_describe_takes_the_filters(cli: Cli, log_file: Path) -> None:
    code, out, _ = cli("data", "describe", str(log_file), "--min-rating", "4", "--k-core", "4", "--tie-rule", "shuffled:1", "--json")
    facts = json.loads(out)
    expected = load_dataset(log_file, min_rating=4, k_core=4, tie_rule="shuffled:1")
    assert (code, facts["hash"], facts["name"]) == (0, expected.content_hash, "films/rating>=4/4-core/shuffled:1")
    assert min(map(float, facts["ratings"])) >= 4
    assert facts["history_length"]["min"] >= 4
    code, out, _ = cli("data", "describe", str(log_file))
    assert (code, out.count("█") > 40) == (0, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--k-core", "1000"), "no 1000-core"),
        (("--tie-rule", "newest"), "'newest'"),
        (("--min-rating", "nan"), "min_rating is nan"),
        (("--min-rating", "6"), "no interaction of 'films' is rated that high"),
        (("--items", "absent.csv"), "no file"),
        (("--users", "absent.docx"), ".docx"),
    ],
)
def test_bad_options_get_one_clear_line(cli: Cli, log_file: Path, options: tuple[str, ...], says: str) -> None:
    code, out, err = cli("data", "describe", str(log_file), *options)
    assert says in one_line_error(err)
    assert (code, out) == (2, "")


def test_list_tells_where_everything_is(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_SHARED_DATA", str(tmp_path / "shared"))
    monkeypatch.delenv("WORKBENCH_ASSETS", raising=False)
    (tmp_path / "shared" / "ml-1m-sequences").mkdir(parents=True)
    (tmp_path / "shared" / "ml-1m-sequences" / "train.txt").write_text("1 2\n")
    rows = {row["name"]: row for row in json.loads(cli("data", "list", "--json")[1])}
    assert {name: rows[name]["where"] for name in ("ml-100k", "beauty-s3rec", "ml-1m-sequences")} == {
        "ml-100k": "download",
        "beauty-s3rec": "missing",
        "ml-1m-sequences": "at hand",
    }
    assert (rows["ml-20m"]["kind"], rows["all-minilm-l6-v2"]["kind"]) == ("dataset", "model")
    assert set(rows) == set(assets.assets())
    code, out, _ = cli("data", "list")
    assert code == 0
    assert all(name in out for name in rows)
    # The shared file is another one than expected, and the error says so.
    code, _, err = cli("data", "describe", "ml-1m-sequences")
    assert code == 3
    assert "SHA-256 is" in one_line_error(err)
    nowhere = one_line_error(cli("data", "fetch", "beauty-s3rec")[2])
    assert "WORKBENCH_SHARED_DATA" in nowhere
    assert "connect to the network" not in nowhere, "nobody offers it for download"


def test_one_file_says_all_about_the_data(log_file: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "log.csv"
    renamed.write_text(log_file.read_text().replace("user,item,rating,timestamp", "who,what,stars,when", 1))
    items = tmp_path / "films.csv"
    items.write_text("what,label,mood\n" + "".join(f"i{n},Film {n},{'dark' if n % 2 else 'light'}\n" for n in range(80)))
    path = tmp_path / "experiment.toml"
    path.write_text(
        f"[data]\nname = '{renamed}'\nitems = '{items}'\nmin_rating = 3\nk_core = 5\ntie_rule = 'shuffled:4'\n"
        "[data.columns]\nuser = 'who'\nitem = 'what'\ntimestamp = 'when'\ntitle = 'label'\n[data.features.item]\nmood = 'category'\n"
    )
    settings = Experiment.load(path).data
    assert DataSettings(**json.loads(json.dumps(settings.model_dump()))) == settings
    dataset, split = load_split(settings)
    assert dataset.name == "log/rating>=3/5-core/shuffled:4"
    assert fewest(dataset) >= 5
    (mood,) = split.train.features.item
    assert mood.vocabulary.ids == ("dark", "light")  # type: ignore[union-attr]
    assert dataset.titles[0] == f"Film {dataset.items.ids[0][1:]}"
    plain, _ = load_split(DataSettings(name=str(log_file), min_rating=3, k_core=5, tie_rule="shuffled:4"))
    assert (plain.item == dataset.item).all()
    assert plain.items.ids == dataset.items.ids


def fewest(dataset: Dataset) -> int:
    return int(min(dataset.item_counts.min(), dataset.sequences().lengths.min()))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[data.columns]\nusr = 'who'\n", "data.columns.usr"),
        ("[data.features.item]\nmood = 'text'\n", "data.features.item.mood = 'text'"),
        ("[data]\nk_core = 0\n", "data.k_core = 0"),
        ("[data.features.interaction]\nmood = 'tags'\n", "interaction feature 'mood'"),
    ],
)
def test_bad_data_settings_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(says)):
        Experiment.load(path)
