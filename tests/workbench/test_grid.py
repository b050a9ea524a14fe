"""The grid: what a cell is, what is skipped, what survives a kill, and tables that hold any text."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recsys_core import create, evaluate
from recsys_core.data import Dataset, leave_one_out, load_dataset
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.evaluation import compare, holm
from recsys_core.models import register
from recsys_core.recommender import FitOptions, Histories, ModelConfig, Progress, Recommender
from tests.processes import Child, command_line
from tests.workbench.conftest import Cli, one_line_error
from workbench.config import DataSettings, GridModel, GridSettings
from workbench.grid import _outlook, grid_rows, plan, run_grid
from workbench.store import Store
from workbench.tables import Figure, Table, render

METRICS = ("HR@10", "NDCG@10", "coverage@10")
fits: list[tuple[int, FitOptions]] = []


class ProbeConfig(ModelConfig):
    """Settings of the probe."""

    seed: int = 0
    """Seed."""
    fail: int = -1
    """Seed at which it diverges."""
    interrupt: bool = False
    """Whether Ctrl-C comes while it trains."""


@register
class Probe(Recommender):
    """Scores by seed, remembers how it was fitted, and fails where told to."""

    name = "grid-probe"
    Config = ProbeConfig
    config: ProbeConfig

    def _fit(self, dataset: Dataset, progress: Progress, options: FitOptions) -> None:
        fits.append((self.config.seed, options))
        progress(0.5, "epoch 1/2")
        if self.config.interrupt:
            raise KeyboardInterrupt

    def _score(self, histories: Histories) -> NDArray:
        if self.config.seed == self.config.fail:
            return np.full((len(histories), len(self._catalogue())), np.nan, np.float32)
        return np.random.default_rng(self.config.seed).random((len(histories), len(self._catalogue())), np.float32)

    def _state(self) -> dict[str, NDArray]:
        return {}

    def _load_state(self, state: dict[str, NDArray]) -> None: ...


def grid(log_file: Path, *models: GridModel, **changed: object) -> GridSettings:
    chosen = models or (GridModel(name="ease"), GridModel(name="grid-probe", label="probe"))
    return GridSettings(data=(DataSettings(name=str(log_file)),), models=chosen, metrics=METRICS, **{"seeds": 2, **changed})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    fits.clear()
    return Store.open(tmp_path / "store.sqlite")


def test_cells_are_stored_once_and_their_figures_repeat(store: Store, log_file: Path) -> None:
    said: list[str] = []
    first = run_grid(grid(log_file, base="ease"), store, lambda share, text: said.append(text))
    assert [(c.model.title, c.seed, c.reused) for c in first] == [("ease", 0, False), ("probe", 0, False), ("probe", 1, False)]
    assert any(re.search(r"cell 2/3: probe on .*, seed 0: epoch 1/2, about .* left", text) for text in said)
    again = run_grid(grid(log_file, base="ease"), store)
    assert [seed for seed, _ in fits] == [0, 1]
    assert all(c.reused for c in again)
    rows, repeated = (grid_rows(cells, METRICS, "ease") for cells in (first, again))
    assert rows == repeated
    assert len(store.runs("cell")) == 3

    split = leave_one_out(load_dataset(str(log_file)))
    ease = evaluate(create("ease").fit(split.train), split.test, METRICS)
    probes = [evaluate(create("grid-probe", seed=s).fit(split.train), split.test, METRICS) for s in (0, 1)]
    assert rows[0]["metrics"]["HR@10"]["mean"] == pytest.approx(ease.means["HR@10"])
    assert rows[1]["metrics"]["coverage@10"]["mean"] == pytest.approx(np.mean([p.totals["coverage@10"] for p in probes]))
    expected = [compare(probes, ease, m) for m in METRICS[:2]]
    for metric, c, adjusted in zip(METRICS, expected, holm([c.p_value for c in expected]), strict=False):
        found = rows[1]["metrics"][metric]
        assert found["difference"] == pytest.approx(c.difference, abs=1e-6)
        assert (found["p"], found["holm_p"]) == (c.p_value, adjusted)
        assert found["wilcoxon_p"] == pytest.approx(c.wilcoxon_p)
    assert rows[0]["metrics"]["HR@10"]["best"]
    assert not rows[1]["metrics"]["HR@10"]["best"]
    assert rows[0]["split_hash"] == split.content_hash


def test_what_changes_a_number_makes_another_cell(store: Store, log_file: Path) -> None:
    one = GridModel(name="grid-probe")
    keys = [
        plan(store, g)[0].key
        for g in (
            grid(log_file, one), grid(log_file, one, part="valid"), grid(log_file, one, early_stopping=False),
            grid(log_file, GridModel(name="grid-probe", config={"fail": 7})), grid(log_file, GridModel(name="random")),
            GridSettings(data=(DataSettings(name=str(log_file), tie_rule="shuffled:1"),), models=(one,), metrics=METRICS),
            GridSettings(data=(DataSettings(name=str(log_file)),), models=(one,), metrics=("MRR",)),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    same = grid(log_file, GridModel(name="grid-probe", label="another", config={"fail": -1}), device="cpu", seeds=5)
    assert plan(store, same)[0].key == keys[0]
    assert len({cell.key for cell in plan(store, same)}) == 5


def test_fitting_is_given_validation_device_and_folder(store: Store, log_file: Path, tmp_path: Path) -> None:
    probe = GridModel(name="grid-probe", config={"seed": 4})
    (cell,) = run_grid(grid(log_file, probe, device="cpu"), store, checkpoints=tmp_path / "kept")
    run_grid(grid(log_file, probe, early_stopping=False), store)
    (seed, options), (_, plain) = fits
    assert seed == 4
    assert options.validation is not None
    np.testing.assert_array_equal(options.validation.targets.values, cell.split.valid.targets.values)
    assert (options.device, options.folder) == ("cpu", tmp_path / "kept" / cell.key[:16])
    assert (plain.validation, plain.folder) == (None, None)


def test_a_failed_cell_is_recorded_and_tried_again_while_others_go_on(store: Store, log_file: Path) -> None:
    diverging = GridModel(name="grid-probe", config={"fail": 0})
    said: list[str] = []
    cells = run_grid(grid(log_file, diverging, GridModel(name="ease")), store, lambda share, text: said.append(text))
    assert [bool(c.error) for c in cells] == [True, False, False]
    assert any(f"failed: {cells[0].error}" in text for text in said)
    assert said[-1] == "2 cells done, 0 were in the store, 1 failed and will be tried again by the next call"
    assert "NaN" in cells[0].error
    assert "\n" not in cells[0].error
    assert (store.run(cells[0].run).status, store.run(cells[0].run).message) == ("failed", cells[0].error)
    rows = grid_rows(cells, METRICS)
    assert (rows[0]["seeds"], rows[0]["errors"]) == (1, [cells[0].error])
    fits.clear()
    run_grid(grid(log_file, diverging, GridModel(name="ease")), store)
    assert [seed for seed, _ in fits] == [0]
    only = grid_rows(run_grid(grid(log_file, diverging, seeds=1), store), METRICS, None)
    assert only[0]["metrics"] == {}


def test_what_is_left_is_told_by_cells_of_the_same_model(store: Store, log_file: Path) -> None:
    said: list[str] = []
    settings = grid(log_file, GridModel(name="popularity"), GridModel(name="grid-probe"))
    run_grid(settings, store, lambda share, text: said.append(text))
    first, *later = [text for text in said if "seed 0: epoch" in text or "seed 1: " in text]
    assert first.endswith("left")
    assert re.search("about .* left$", later[0]), "a cell of its model was timed"
    assert not any("left" in text for text in said if "popularity" in text and "starting" in text), "nothing was timed"
    assert _outlook([("hstu", ""), ("ease", "")], {}, 20.0, 0.25) == ", about 60 s left without the models not timed yet (1)"
    assert _outlook([("hstu", ""), ("hstu", "")], {("hstu", ""): 60.0}, 0.0, 0.0) == ", about 2 min left"


def test_ctrl_c_leaves_a_stopped_run_and_what_was_done(store: Store, log_file: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid(log_file, GridModel(name="ease"), GridModel(name="grid-probe", config={"interrupt": True})), store)
    assert [r.status for r in store.runs("cell")] == ["stopped", "finished"]


def test_mistakes_are_refused_before_anything_runs(store: Store, log_file: Path) -> None:
    ease = GridModel(name="ease")
    for bad, error in ((GridModel(name="esae"), UnknownNameError), (GridModel(name="ease", label="b", config={"l3": 1}), DataError)):
        with pytest.raises(error):
            run_grid(grid(log_file, ease, bad), store)
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        run_grid(GridSettings(data=(DataSettings(name=str(log_file)), DataSettings(name="nowhere.csv")), models=(ease,)), store)
    with pytest.raises(UnknownNameError, match="NDGC"):
        run_grid(GridSettings(data=(DataSettings(name=str(log_file)),), models=(ease,), metrics=("NDGC@10",)), store)
    assert store.runs() == []
    for fields, says in (({"base": "bpr"}, "not a label"), ({"models": (ease, ease)}, "twice"), ({"models": ()}, "at least 1")):
        with pytest.raises(ValueError, match=says):
            GridSettings(**{"models": (ease,), **fields})


def write_grid(path: Path, log_file: Path, seeds: int, epochs: int) -> None:
    path.write_text(
        f"name = 'results'\n[grid]\nseeds = {seeds}\nmetrics = ['NDCG@10', 'MRR']\nbase = 'ease'\n[[grid.data]]\nname = '{log_file}'\n"
        f"[[grid.models]]\nname = 'ease'\n[[grid.models]]\nname = 'bpr'\nlabel = 'BPR & co'\nconfig = {{ epochs = {epochs}, dim = 8 }}\n"
    )


def test_a_killed_grid_goes_on_where_it_was(log_file: Path, tmp_path: Path, cli: Cli) -> None:
    file, path = tmp_path / "grid.toml", tmp_path / "store.sqlite"
    write_grid(file, log_file, seeds=8, epochs=100)
    child = Child(tmp_path, command_line, "evaluate", str(file), "--store", str(path))
    deadline = time.monotonic() + 60
    done: dict[str, float] = {}
    while len(done) < 2 and time.monotonic() < deadline and child.alive:
        time.sleep(0.05)
        if path.exists():
            with Store.open(path) as store:
                done = {r.id: r.updated for r in store.runs("cell") if r.status == "finished"}
    child.send(signal.SIGKILL)
    assert child.end()[0] == -signal.SIGKILL
    with Store.open(path) as store:
        done = {r.id: r.updated for r in store.runs("cell") if r.status == "finished"}
    assert 2 <= len(done) < 9
    code, out, _ = cli("evaluate", str(file), "--store", str(path), "--json")
    facts = json.loads(out)
    assert (code, facts["cells"], facts["reused"]) == (0, 9, len(done))
    with Store.open(path) as store:
        after = {r.id: r.updated for r in store.runs("cell") if r.status == "finished"}
    assert done.items() <= after.items()
    assert len(after) == 9


def test_the_command_prints_every_form(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    write_grid(file, log_file, seeds=2, epochs=2)
    code, out, err = cli("evaluate", str(file))
    assert code == 0
    assert "BPR & co" in out
    assert "0 of 3 cells were in the store" in err, "of this call"
    assert "in the store" not in out
    code, out, _ = cli("evaluate", str(file), "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["model"] for row in rows] == ["ease", "BPR & co"]
    facts = json.loads(cli("evaluate", str(file), "--format", "latex", "--out", str(tmp_path / "a" / "t.tex"), "--json")[1])
    assert facts["reused"] == 3
    assert float(rows[1]["MRR low"]) == pytest.approx(facts["rows"][1]["metrics"]["MRR"]["low"], abs=1e-5)
    assert r"BPR \& co" in (tmp_path / "a" / "t.tex").read_text()
    assert "| BPR \\& co |" in cli("evaluate", str(file), "--format", "markdown")[1]
    for arguments, says in (
        (("--part", "valid"), "--part does not go with"), (("--format", "html"), "rich, markdown, csv, latex"),
        (("--out", str(log_file / "x")), "cannot be written"),
    ):  # fmt: skip
        code, _, err = cli("evaluate", str(file), *arguments)
        assert code == 2
        assert says in one_line_error(err)


def test_the_exit_code_tells_of_failed_cells(cli: Cli, log_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        f"[grid]\nseeds = 2\nmetrics = ['MRR']\n[[grid.data]]\nname = '{log_file}'\n"
        "[[grid.models]]\nname = 'grid-probe'\nconfig = { fail = 1 }\n"
    )
    code, out, err = cli("evaluate", str(file), "--json")
    assert code == 2
    assert "1 of 2 cells failed" in one_line_error(err)
    assert json.loads(out)["rows"][0]["seeds"] == 1
    file.write_text("[grid]\nmodels = [{name = 'ease', lable = 'x'}]\n")
    code, _, err = cli("evaluate", str(file))
    assert code == 2
    assert "grid.models.0.lable" in one_line_error(err)


def test_code_that_differs_is_shown(cli: Cli, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "grid.toml"
    write_grid(file, log_file, seeds=1, epochs=1)
    monkeypatch.setattr("workbench.store.store.code_version", lambda: "0.0.9+abc")
    assert cli("evaluate", str(file))[0] == 0
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "store.sqlite"))
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli("evaluate", str(file), "--json")
    assert (code, json.loads(out)["other_code"]) == (0, ["0.0.9+abc"])


NASTY = st.text(st.sampled_from([*"a|&%_\\{}$#~^*`<>[]\"',;\n\r\t-=é\x00\u2028"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NASTY, NASTY), min_size=1, max_size=4), NASTY)
def test_no_text_breaks_a_table(texts: list[tuple[str, str]], column: str) -> None:
    table = Table("a title", (column, "x", "MRR"), tuple((*row, Figure(0.5, 0.25, 0.75, True, True)) for row in texts), column)
    plain = [" ".join("".join(c if c.isprintable() else " " for c in text).split()) for row in texts for text in row]

    records = list(csv.reader(io.StringIO(render(table, "csv"))))
    assert [r[:2] for r in records[1:]] == [plain[n : n + 2] for n in range(0, len(plain), 2)]
    assert all(r[2:] == ["0.5", "0.25", "0.75"] for r in records[1:])

    lines = [line for line in render(table, "markdown").split("\n") if line.startswith("| ")]
    assert len(lines) == 2 + len(texts)
    for line, row in zip(lines[2:], range(0, len(plain), 2), strict=True):
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]
        assert len(cells) == 3
        assert [re.sub(r"\\(.)", r"\1", c[1:-1]) for c in cells[:2]] == plain[row : row + 2]

    body = render(table, "latex").split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == len(texts)
    for line in body:
        assert line.endswith(r" \\")
        bare = re.sub(r"\\[&%$#_{}]", "", line[:-3])
        assert bare.count("&") == 2
        assert not set(bare) & set("%$#_~^")
        assert bare.count("{") == bare.count("}")
