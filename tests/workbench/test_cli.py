"""The commands as a person types them: what they print, what they refuse, and what stays stored after a refusal."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from recsys_core.recommender import weights_file
from tests.processes import Child, command_line
from tests.workbench.conftest import Cli, one_line_error
from workbench.cli import ui
from workbench.store import Store


def test_simulate_show_export_augment(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    code, out, _ = cli("simulate", "--data", str(log_file), "--agents", "30", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["agents"] == 30
    assert facts["exposures"] == 10 * facts["pages"]
    assert {r["judge"] for r in facts["fidelity"]} >= {"statistical", "popularity", "ease", "constant"}

    code, out, _ = cli("runs", facts["run"][:-2], "--json")
    assert (code, json.loads(out)["log_hash"]) == (0, facts["log_hash"])
    assert sum(row["taken"] for row in json.loads(out)["page_totals"]) == facts["actions"]
    shown = cli("runs", facts["run"])[1]
    assert [text for text in ("ended: fatigue", "statistical agents on ease") if text not in shown] == []
    code, out, _ = cli("runs")
    assert code == 0
    assert facts["run"] in out
    assert "statistical agents on ease" in out

    code, out, _ = cli("export", "latest", "--out", str(tmp_path / "out"), "--json")
    parquet = next(Path(f) for f in json.loads(out)["files"] if f.endswith(".parquet"))
    assert pq.read_table(parquet).num_rows == facts["actions"]
    code, out, _ = cli("export", "latest", "--out", str(tmp_path / "out"), "--format", "recbole", "--json")
    inter = next(f for f in json.loads(out)["files"] if f.endswith(".inter"))
    code, out, _ = cli("data", "describe", inter, "--json")
    assert json.loads(out)["interactions"] == facts["actions"]

    code, out, _ = cli("augment", "latest", "--models", "ease,popularity", "--json")
    rows = json.loads(out)
    shown = cli("runs", rows["run"])[1]
    assert all(f"{r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]" in shown for r in rows["comparisons"])
    assert code == 0
    assert {(r["model"], r["arm"]) for r in rows["comparisons"]} == {
        (m, a) for m in ("ease", "popularity") for a in ("popularity", "shown", "synthesized")
    }
    assert all(r["low"] <= r["difference"] <= r["high"] for r in rows["comparisons"])


def test_the_same_seed_gives_the_same_log(cli: Cli, log_file: Path) -> None:
    hashes = [
        json.loads(cli("simulate", "--data", str(log_file), "--seed", s, "--fidelity-users", "0", "--json")[1])["log_hash"] for s in "001"
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_train_then_evaluate_the_saved_model(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert cli("train", "ease", "--data", str(log_file), "--set", "l2=5", "--out", str(folder))[0] == 0
    code, out, _ = cli("evaluate", str(folder), "popularity", "--data", str(log_file), "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [r["model"] for r in rows] == [str(folder), "popularity"]
    assert rows[0]["seconds"] is None
    config = json.loads(cli("runs", json.loads(out)["run"], "--json")[1])["config"]
    assert [(m["name"], m["config"].get("l2")) for m in config["models"]] == [(str(folder), 5), ("popularity", None)]
    assert config["metrics"] == ["HR@10", "NDCG@10", "MRR"]
    line = next(line for line in cli("evaluate", str(folder), "--data", str(log_file))[1].splitlines() if str(folder) in line)
    assert line.split()[-1] == "-", "a loaded model was not trained here"
    assert rows[0]["metrics"]["MRR"][0] != rows[1]["metrics"]["MRR"][0]


def test_a_table_keeps_figures_whole_where_they_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    figure = "0.1760 [0.1527, 0.2004]"
    for width, whole in ((120, True), (80, False)):
        monkeypatch.setattr(ui, "console", Console(width=width))
        ui.table("Ranking", ["model", "loss", "HR@10", "NDCG@10", "MRR"], [["ease", "squared error, all items, no order", *3 * [figure]]])
        out = capsys.readouterr().out
        assert (out.count(figure) == 3) is whole
        assert out.count("0.2004]") == 3, "nothing is cut"


def test_brackets_are_text(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    ui.table("For [bold]", ["[id]"], [["[REC], a film"]], "note [1]")
    printed = capsys.readouterr().out
    assert [text for text in ("For [bold]", "[id]", "[REC]", "note [1]") if text not in printed] == []
    assert "TOML file with a grid trains models" in " ".join(cli("evaluate", "--help")[1].split())


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("simulate", "--agents", "20"), "--agents"),  # the default, but given
        (("simulate", "--set", "l2=1"), "--set"),
        (("simulate", "--recommender", "ease"), "--recommender"),
        (("optimize", "rerank:ml-100k"), "task"),
        (("optimize", "--sealed"), "--sealed"),
    ],
)
def test_what_a_resumed_run_would_not_heed_is_refused(cli: Cli, command: tuple[str, ...], name: str) -> None:
    code, _, err = cli(*command, "--resume", "latest", "--max-tokens", "9")
    assert code == 2
    assert f"{name} does not go with --resume: a run goes on as it began" in one_line_error(err)


def test_a_training_with_checkpoints_is_taken_up_and_another_refused(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    def train(out: str, **settings: int) -> tuple[int, str, str]:
        chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        where = ("--data", str(log_file), "--out", str(tmp_path / out), "--checkpoints", str(tmp_path / "checkpoints"), "--device", "cpu")
        return cli("train", "sasrec", *where, "--set", "dim=8", "--set", "heads=1", *chosen)

    assert train("first", epochs=2)[0] == 0
    lines = (tmp_path / "checkpoints" / "training.jsonl").read_text().splitlines()
    assert len(lines) == 2
    # A finished training is found again, not done again.
    assert train("second", epochs=2)[0] == 0
    assert (tmp_path / "checkpoints" / "training.jsonl").read_text().splitlines() == lines
    first, second = (weights_file(tmp_path / name) for name in ("first", "second"))
    assert first
    assert second
    assert first.read_bytes() == second.read_bytes()
    code, _, err = train("third", epochs=3)
    assert code == 2
    assert "epochs 2, here 3" in one_line_error(err)
    assert not (tmp_path / "third").exists()
    code, _, err = cli("train", "bpr", "--data", str(log_file), "--out", str(tmp_path / "bpr"), "--checkpoints", str(tmp_path / "other"))
    assert code == 2
    assert "bpr keeps no checkpoints; leave --checkpoints out, or take one of bert4rec" in one_line_error(err)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("data", "describe", "movielens"), 2, "ml-100k"),
        (("data", "describe", "nowhere.csv"), 2, "nowhere.csv"),
        (("evaluate", "esae"), 2, "ease"),
        (("evaluate", "ease", "--part", "train"), 2, "'valid' or 'test'"),
        (("evaluate", "ease", "--metrics", "NDGC@10"), 2, "NDGC@10"),
        (("evaluate", "ease", "--metrics", ""), 2, "no metric is named"),
        (("evaluate", "popularity", "esae"), 2, "ease"),
        (("evaluate", "ease", "popularity", "ease"), 2, "'ease' is named twice among the models; leave one out"),
        (("evaluate", "models/typo"), 2, "no trained model in a folder 'models/typo', and unknown recommender"),
        (("train", "ease", "--set", "l3=1", "--out", "x"), 2, "l3"),
        (("train", "ease", "--set", "l2", "--out", "x"), 2, "name=value"),
        (("train", "ease", "--out", "/dev/null/x"), 2, "/dev/null is no folder"),
        (("simulate", "--policy", "psychic"), 2, "psychic"),
        (("simulate", "--agents", "10000"), 2, "held-out users"),
        (("simulate", "--llm", "gpt-4o-mini"), 2, "openai:"),
        (("simulate", "--resume", "latest"), 2, "no store"),
        (("runs", "latest"), 2, "no store"),
        (("demo", "--config", "absent.toml"), 2, "absent.toml"),
    ],
)
def test_bad_input_gets_one_clear_line(cli: Cli, log_file: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    if arguments[0] in ("evaluate", "train", "simulate") and "--resume" not in arguments:
        arguments = (*arguments, "--data", str(log_file))
    got, out, err = cli(*arguments)
    assert says in one_line_error(err)
    assert "done" not in err, "refused before any work"
    assert (got, out) == (code, "")


def test_no_key_is_said_before_anything_is_done(cli: Cli, log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, _, err = cli("simulate", "--llm", "openai:gpt-4o-mini", "--data", str(log_file))
    assert code == 3
    assert "OPENAI_API_KEY" in one_line_error(err)


def test_a_malformed_row_is_named_and_nothing_stored_is_lost(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    assert cli("simulate", "--data", str(log_file), "--agents", "5", "--fidelity-users", "0")[0] == 0
    bad = tmp_path / "bad.csv"
    lines = log_file.read_text().splitlines()
    lines[41] = lines[41].rsplit(",", 1)[0] + ",yesterday"
    bad.write_text("\n".join(lines))
    code, _, err = cli("simulate", "--data", str(bad))
    said = one_line_error(err)
    assert code == 2
    assert "42" in said
    assert "yesterday" in said
    assert len(json.loads(cli("runs", "--json")[1])) == 1


def test_an_experiment_file_says_which_field_is_wrong(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text("[[simulations]]\npolicy = 'llm'\nagentz = 3\n")
    code, _, err = cli("demo", "--config", str(path))
    assert code == 2
    assert "simulations.0.agentz" in one_line_error(err)
    code, _, err = cli("evaluate", str(tmp_path / "absent.toml"))
    assert code == 2
    assert "absent.toml does not exist" in one_line_error(err)


def test_a_wrong_recommender_of_the_loop_is_refused_before_anything_is_simulated(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"baselines = []\nsimulations = []\n[data]\nname = '{log_file}'\n[loop]\nmodels = [{{name = 'esae'}}]\n")
    code, _, err = cli("demo", "--config", str(path))
    assert code == 2
    assert "did you mean 'ease'" in one_line_error(err)
    assert json.loads(cli("runs", "--json")[1]) == []


@pytest.mark.parametrize(
    ("baselines", "models", "says"),
    [
        ("{name = 'ease', config = {l2 = 1}}, {name = 'ease', config = {l2 = 9}}", "{name = 'ease'}", "'ease' is named twice"),
        ("{name = 'ease'}", "{name = 'bpr'}, {name = 'bpr', config = {dim = 8}}", "'bpr' is named twice among the models to retrain"),
        ("{name = 'ease'}", "{name = 'FOLDER'}", "is trained already, and every arm trains its models anew"),
    ],
)
def test_what_an_experiment_could_not_end_with_is_refused_before_it_begins(
    cli: Cli, log_file: Path, tmp_path: Path, baselines: str, models: str, says: str
) -> None:
    assert cli("train", "ease", "--data", str(log_file), "--out", str(tmp_path / "ease"))[0] == 0
    path = tmp_path / "experiment.toml"
    models = models.replace("FOLDER", str(tmp_path / "ease"))
    path.write_text(f"baselines = [{baselines}]\n[data]\nname = '{log_file}'\n[loop]\nmodels = [{models}]\n")
    code, _, err = cli("demo", "--config", str(path))
    assert code == 2
    assert says in err
    assert json.loads(cli("runs", "--json")[1]) == []


def test_ctrl_c_says_that_work_is_kept_and_marks_the_run(log_file: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store.sqlite")
    simulated = Child(tmp_path, command_line, "simulate", "--store", store, "--data", str(log_file), "--fidelity-users", "0").end()
    assert simulated[0] == 0, simulated[2]
    # So many trainings that they are worth processes.
    child = Child(tmp_path, command_line, "augment", "latest", "--store", store, "--models", "bpr", "--seeds", "1000")
    with Store.open(store) as opened:
        while not opened.runs("augment"):
            assert child.alive
            time.sleep(0.05)
        time.sleep(2)  # until work is handed out
        child.send(signal.SIGINT)
        code, _, err = child.end(30)
        assert (code, opened.run("latest").status) == (130, "stopped"), err
    assert "interrupted; what is stored stays" in err
    assert "Traceback" not in err


def test_a_whole_experiment_from_a_file(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(
        f"name = 'films'\nbaselines = [{{name = 'popularity'}}, {{name = 'ease'}}]\n[data]\nname = '{log_file}'\n"
        "[[simulations]]\npolicy = 'statistical'\nagents = 40\n[loop]\nmodels = [{name = 'ease'}]\nmetrics = ['NDCG@10', 'MRR']\n"
    )
    code, out, _ = cli("demo", "--config", str(path), "--json")
    first = json.loads(out)
    assert code == 0
    assert len(first["loop"]["comparisons"]) == 3 * 2
    second = json.loads(cli("demo", "--config", str(path), "--json")[1])
    for facts in (first, second):
        for key in ("seconds",):
            facts.pop(key)
        for row in (*facts["baselines"], *facts["loop"]["scores"]):
            row.pop("seconds")
        for row in (*facts["simulations"], facts["loop"]):
            row.pop("run")
    assert first == second
    code, out, _ = cli("demo", "--config", str(path))
    assert "Before and after" in out
    assert "averaged over training seeds (ease 1)" in out
    assert "synthesized" in out.lower()
