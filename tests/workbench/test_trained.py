"""A folder of a trained model where a recommender's name may stand: used as it is, of this dataset, unchanged, and told what it saw."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys_core import Histories, create, load
from recsys_core.data import Dataset, leave_one_out, load_dataset
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.models.ease import EASE
from recsys_core.recommender import weights_file
from tests.processes import Child, command_line
from tests.workbench.conftest import Cli, one_line_error, write_csv
from workbench.config import ModelSettings
from workbench.prompts.recommender import LLMRanker
from workbench.recommenders import ready, resolved_model
from workbench.store import Store

QUICK = ("--agents", "10", "--pages", "2", "--fidelity-users", "0")


@pytest.fixture
def log(log_file: Path) -> Dataset:
    return load_dataset(str(log_file))


@pytest.fixture
def folder(log: Dataset, tmp_path: Path) -> Path:
    """An EASE that `workbench train` could have written."""
    create("ease", l2=7.0).fit(leave_one_out(log).train).save(tmp_path / "models" / "mine")
    return tmp_path / "models" / "mine"


def test_its_simulation_is_that_of_the_same_recommender_by_name(
    cli: Cli, log_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("simulate", "--data", str(log_file), *QUICK, "--json")
    by_name = json.loads(cli(*where, "--recommender", "ease", "--set", "l2=7")[1])

    def refuse(*given: object) -> None:
        raise AssertionError("it is trained already")

    monkeypatch.setattr(EASE, "_fit", refuse)
    code, out, _ = cli(*where, "--recommender", str(folder))
    facts = json.loads(out)
    assert code == 0
    assert facts["log_hash"] == by_name["log_hash"]
    assert facts["recommender"] == str(folder)
    assert facts["trained"]["model"] == "ease"
    assert facts["trained"]["clean"] is True
    stored = json.loads(cli("runs", facts["run"], "--json")[1])["config"]["simulation"]["recommender"]
    assert stored == {"name": str(folder), "config": {"l2": 7.0}, "trained": facts["trained"]}
    assert "held out" not in cli("runs")[1]


def test_what_does_not_fit_is_refused_by_name(cli: Cli, log: Dataset, log_file: Path, folder: Path, tmp_path: Path) -> None:
    where = ("simulate", "--data", str(log_file), *QUICK)
    for given, says in (
        (("--recommender", str(folder), "--set", "l2=8"), "was trained with l2 = 7.0, not 8"),
        (("--recommender", str(folder), "--set", "depth=8"), "has no setting 'depth'; it has l2"),
        (("--recommender", str(tmp_path / "none")), "no trained model in a folder"),
        (("--recommender", str(tmp_path)), "no trained model in a folder"),
    ):
        code, _, err = cli(*where, *given)
        assert code == 2
        assert says in one_line_error(err)
    assert cli(*where, "--recommender", str(folder), "--set", "l2=7")[0] == 0
    few = log.rows(log.item != log.item[0])
    kept = np.unique(few.item)
    smaller = replace(few, item=np.searchsorted(kept, few.item), items=few.items.take(kept), titles=(), tags=())
    other = tmp_path / "smaller.csv"
    write_csv(other, smaller)
    code, _, err = cli("simulate", "--data", str(other), *QUICK, "--recommender", str(folder))
    assert code == 2
    assert "knows 1 that the dataset lacks, such as" in one_line_error(err)
    create("ease").fit(leave_one_out(load_dataset(str(other))).train).save(tmp_path / "few")
    code, _, err = cli(*where, "--recommender", str(tmp_path / "few"))
    assert "does not know 1 items of the dataset, such as" in one_line_error(err)
    weights = weights_file(folder)
    assert weights
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for command in ((*where, "--recommender", str(folder)), ("evaluate", "popularity", str(folder), "--data", str(log_file))):
        code, _, err = cli(*command)
        assert code == 2
        assert "holds no whole ease model (ValueError: weights" in one_line_error(err)
    weights.unlink()
    assert "holds no whole ease model (FileNotFoundError" in one_line_error(cli(*where, "--recommender", str(folder))[2])
    with Store.open(tmp_path / "store.sqlite") as store:
        assert len(store.runs()) == 1, "what is refused leaves no run"


def test_other_users_and_another_order_are_refused(log: Dataset, folder: Path, tmp_path: Path) -> None:
    turned = log.items.take(range(len(log.items) - 1, -1, -1))
    renamed = type(log.users)(f"x{user}" for user in log.users.ids)
    with Store.open(tmp_path / "s.sqlite") as store:
        with pytest.raises(DataError, match="the same items in another order"):
            resolved_model(store, ModelSettings(name=str(folder)), replace(log, items=turned))
        with pytest.raises(DataError, match="trained on other users"):
            resolved_model(store, ModelSettings(name=str(folder)), replace(log, users=renamed))


def test_a_name_is_the_registrys_wherever_the_command_is_given(log: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = leave_one_out(log).train
    create("ease", l2=7.0).fit(train).save(tmp_path / "ease")
    monkeypatch.chdir(tmp_path)
    assert ready(ModelSettings(name="ease"), train).config.l2 != 7.0  # type: ignore[attr-defined]
    assert ready(ModelSettings(name="./ease"), train).config.l2 == 7.0  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match="no trained model in a folder 'eese', and unknown recommender 'eese'; did you mean 'ease'"):
        ready(ModelSettings(name="eese"), train)


def test_a_killed_run_goes_on_with_the_same_model_only(cli: Cli, log: Dataset, log_file: Path, folder: Path, tmp_path: Path) -> None:
    where = (
        "simulate",
        "--data",
        str(log_file),
        "--agents",
        "50",
        "--pages",
        "9",
        "--page-size",
        "5",
        "--fidelity-users",
        "0",
        "--recommender",
        str(folder),
    )
    whole = json.loads(cli(*where, "--json")[1])
    child = Child(tmp_path, command_line, *where, "--store", str(tmp_path / "killed.sqlite"))
    with Store.open(tmp_path / "killed.sqlite") as store:
        while child.alive and not (store.runs() and store.runs()[0].pages):
            time.sleep(0.001)
        child.send(signal.SIGKILL)
        child.end()
        run = store.runs()[0]
    resume = ("simulate", "--resume", run.id, "--store", str(tmp_path / "killed.sqlite"), "--json")
    assert run.status != "finished"
    create("ease", l2=8.0).fit(leave_one_out(log).train).save(folder)
    code, _, err = cli(*resume)
    assert code == 2
    assert "and is now" in one_line_error(err)
    (folder / "model.json").unlink()
    code, _, err = cli(*resume)
    assert "is gone (no model.json)" in one_line_error(err)
    create("ease", l2=7.0).fit(leave_one_out(log).train).save(folder)
    assert json.loads(cli(*resume)[1])["log_hash"] == whole["log_hash"]


def test_a_model_that_may_have_seen_the_test_part_is_told_and_nothing_is_retrained_on_it(
    cli: Cli, log: Dataset, log_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    create("ease").fit(log).save(folder)
    code, out, _ = cli("simulate", "--data", str(log_file), *QUICK, "--recommender", str(folder))
    assert code == 0
    assert "it may have seen what is held out" in " ".join(out.split())
    assert "may have seen what is held out" in cli("runs")[1]
    code, _, err = cli("augment", "latest", "--models", "popularity")
    assert code == 2
    assert "retraining on what its users did needs one from: workbench train ease" in one_line_error(err)
    code, out, _ = cli("evaluate", str(folder), "--data", str(log_file), "--part", "test", "--json")
    assert json.loads(out)["may_have_seen_what_is_held_out"] == [str(folder)]
    code, _, err = cli("optimize", f"rerank:{log_file}", "--recommender", str(folder), "--plan")
    assert code == 2
    assert "a task with held-out rows needs one" in one_line_error(err)
    file = tmp_path / "grid.toml"
    file.write_text(f"[grid]\nmodels = [{{ name = '{folder}' }}]\ndata = [{{ name = '{log_file}' }}]\n")
    code, _, err = cli("evaluate", str(file))
    assert code == 2
    assert "a table of the test part needs one" in one_line_error(err)


def test_it_stands_in_a_grid_and_an_experiment_beside_others(cli: Cli, log_file: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.toml"
    trained, data = f"{{ name = '{folder}' }}", f"{{ name = '{log_file}' }}"
    file.write_text(
        f"baselines = [{{ name = 'popularity' }}, {trained}]\n[data]\nname = '{log_file}'\n"
        f"[[simulations]]\nagents = 8\npages = 2\nfidelity_users = 0\nrecommender = {trained}\n"
        "[loop]\nseeds = 1\nmetrics = ['MRR']\nmodels = [{ name = 'popularity' }]\n"
        f"[grid]\ndata = [{data}]\nseeds = 2\nmetrics = ['MRR']\n"
        f"models = [{{ name = '{folder}', label = 'mine' }}, {{ name = 'ease', config = {{ l2 = 7 }} }}]\n"
    )
    code, out, _ = cli("evaluate", str(file), "--json")
    first = json.loads(out)
    assert code == 0
    mine, ease = first["rows"]
    assert mine["metrics"]["MRR"] == ease["metrics"]["MRR"] | {"best": mine["metrics"]["MRR"]["best"]}
    assert (mine["seconds"], mine["training"], mine["config"]) == (None, ease["training"], {"l2": 7.0})
    assert ease["seconds"] > 0
    assert json.loads(cli("evaluate", str(file), "--json")[1])["reused"] == 2
    assert "mine, seed 0" in cli("runs")[1], "two trained models of one kind are told apart"
    report = json.loads(cli("demo", "--config", str(file), "--json")[1])
    assert [(row["model"], row["seconds"] is None) for row in report["baselines"]] == [("popularity", False), (str(folder), True)]
    assert report["simulations"][0]["trained"]["model"] == "ease"
    assert cli("demo", "--config", str(file))[0] == 0
    file.write_text(file.read_text().replace("models = [{ name = 'popularity' }]", f"models = [{trained}]"))
    code, _, err = cli("demo", "--config", str(file))
    assert code == 2
    assert "is trained already, and every arm trains its models anew" in one_line_error(err)


def test_it_is_the_first_stage_of_a_ranker_and_must_stay_what_it_was(films: Dataset, tmp_path: Path) -> None:
    train = leave_one_out(films).train
    folder = tmp_path / "first"
    create("ease", l2=7.0).fit(train).save(folder)
    ranker = create("llm", first_stage=str(folder)).fit(train)
    assert isinstance(ranker, LLMRanker)
    users = Histories.of([train.sequences()[0]], np.array([0]))
    expected = create("ease", l2=7.0).fit(train).score(users)
    assert np.array_equal(ranker.first.score(users), expected)
    ranker.save(tmp_path / "ranker")
    again = load(tmp_path / "ranker")
    assert isinstance(again, LLMRanker)
    assert np.array_equal(again.first.score(users), expected)
    with pytest.raises(DataError, match="was trained on another log than the one that llm is used on"):
        create("llm", first_stage=str(folder)).fit(films)
    stored = ranker.config.model_dump(mode="json")
    create("llm", **stored)
    create("ease", l2=8.0).fit(train).save(folder)
    with pytest.raises(DataError, match=r"was .* and is now .*; bring the old one back"):
        create("llm", **stored)


def test_what_it_was_trained_on_is_saved_with_it(log: Dataset, folder: Path) -> None:
    train = leave_one_out(log).train
    assert load(folder).trained_on == {"log": train.content_hash, "users": log.users.content_hash}
