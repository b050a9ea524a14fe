"""The dashboard page over a real store: what a person sees is what is stored."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workbench.conftest import write_csv
from tests.workbench.test_resume_store import page as stored_page
from tests.workbench.test_resume_store import persona
from workbench.cli.ui import step
from workbench.config import DataSettings, Experiment, LoopSettings, ModelSettings, SimulationSettings
from workbench.experiment import run_experiment
from workbench.prompts.starting import PLAIN
from workbench.prompts.versions import keep, to_toml
from workbench.report import subject
from workbench.store import Comparison, PromptTrial, Store

pytest.importorskip("streamlit")
APP = Path(__file__).resolve().parents[1] / "app.py"


@pytest.fixture(autouse=True)
def main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back the main module, in whose place Streamlit leaves the page: processes of later tests would import it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture(scope="module")
def store_file(films, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A store with one small experiment."""
    folder = tmp_path_factory.mktemp("app")
    write_csv(folder / "films.csv", films)
    ease = (ModelSettings(name="ease"),)
    experiment = Experiment(
        data=DataSettings(name=str(folder / "films.csv")),
        baselines=ease,
        simulations=(SimulationSettings(agents=12),),
        loop=LoopSettings(models=ease),
    )
    with Store.open(folder / "store.sqlite") as store:
        run_experiment(store, experiment, step)
    return folder / "store.sqlite"


def test_runs_metrics_and_an_agents_pages(store_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("WORKBENCH_STORE", str(store_file))
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    with Store.open(store_file) as store:
        runs = store.runs()
        simulated = next(r for r in runs if r.kind == "simulate")
        pages = store.pages(simulated.id, store.agents(simulated.id)[0].persona.user)
        augmented = next(r for r in runs if r.kind == "augment")
        differences = store.comparisons(augmented.id)
    assert app.dataframe[0].value["run"].tolist() == [r.id for r in runs]
    (run_box,) = [s for s in app.selectbox if s.label == "Run"]
    run_box.select_index(runs.index(simulated)).run()
    assert not app.exception
    assert app.header[0].value == simulated.id
    facts = f"finished · statistical agents on ease · {simulated.dataset} · seed 0 · 12 agents · {simulated.pages} pages"
    assert app.text[0].value == facts
    assert app.dataframe[0].value["what"].tolist() == [subject(r) for r in runs]
    (by_page,) = [d.value for d in app.dataframe if "take rate" in d.value.columns]
    assert (by_page["agents"].sum(), by_page["page"].tolist()) == (simulated.pages, list(range(1, len(by_page) + 1)))
    (trust,) = [d.value for d in app.dataframe if "judge" in d.value.columns]
    assert {*trust["test"]} == {"uniform negatives", "popularity negatives", "ratings"}
    shown = [d.value for d in app.dataframe if "position" in d.value.columns]
    assert len(shown) == len(pages)
    for frame, page in zip(shown, pages, strict=True):
        assert frame["position"].tolist() == list(range(1, len(page.exposures) + 1))
        assert (frame["taken"] != "").sum() == len(page.actions)
    (run_box,) = [s for s in app.selectbox if s.label == "Run"]
    run_box.select_index(runs.index(augmented)).run()
    assert not app.exception
    (shown_differences,) = [d.value for d in app.dataframe if "difference" in d.value.columns]
    assert shown_differences["difference"].tolist() == [c.difference for c in differences]
    assert {*shown_differences["arm"]} == {"popularity", "shown", "synthesized"}


def test_a_prompt_search_shows_its_trials_and_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    path = tmp_path / "store.sqlite"
    child = PLAIN.revise("recprompt", task="Put first what resembles the **latest** items.")
    with Store.open(path) as store:
        run = store.start_run("optimize", "made up", {}, 0)
        for number, template in enumerate((PLAIN, child)):
            prompt = keep(store, template).id
            store.add_trial(run, PromptTrial(number, prompt, "search", "MRR", 20, 0.3 + number / 10, 0.2, 0.5, 1.0))
        store.add_comparisons(run, [Comparison("recprompt", "start", "favourite", "test", "MRR", 0.1, 0.01, 0.2, 0.04)])
        store.record_status(run, "finished")
    monkeypatch.setenv("WORKBENCH_STORE", str(path))
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    trials, differences = (d.value for d in app.dataframe[1:3])
    assert trials["mean"].tolist() == [0.3, 0.4]
    assert differences["p"].tolist() == [0.04]
    (box,) = [s for s in app.selectbox if s.label == "Template"]
    box.select_index(1).run()
    assert not app.exception
    assert "+ Put first what resembles the **latest** items." in app.code[0].value
    assert app.code[1].value == to_toml(child).strip(), "with the places that items fill"


def test_pages_of_a_run_at_work_are_counted_anew_when_there_are_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "s.sqlite"))
    with Store.open(tmp_path / "s.sqlite") as store:
        run = store.start_run("simulate", "growing", {}, 0)
        sink = store.sink(run)
        app = AppTest.from_file(str(APP), default_timeout=60)
        for users in (1, 2, 3):
            sink.agents([persona(users)], "policy")
            sink.pages([stored_page(users, 0)])
            app.run()
            assert not app.exception
            pages = next(frame.value for frame in app.dataframe if "take rate" in frame.value)
            assert pages["agents"].tolist() == [users]
            assert pages["shown"].tolist() == [10 * users]
            (agents,) = (box for box in app.selectbox if box.label == "Agent")
            assert len(agents.options) == users


def test_a_missing_store_is_said_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("WORKBENCH_STORE", str(tmp_path / "absent.sqlite"))
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    assert "no store at" in app.error[0].value
    assert not (tmp_path / "absent.sqlite").exists()


@pytest.fixture
def served(store_file: Path) -> Iterator[str]:
    """`workbench dashboard` as a process, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "workbench.cli.main", "dashboard", "--store", str(store_file), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=2)
                break
            except OSError:
                assert time.monotonic() < end, "the dashboard did not start"
                time.sleep(0.2)
        yield f"http://localhost:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


@pytest.mark.browser
def test_in_a_real_browser(served: str, store_file: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine; install Debian's package chromium")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        errors: list[str] = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(served)
        page.get_by_text("Recommender workbench").wait_for(timeout=60_000)
        page.get_by_text("Metrics").first.wait_for(timeout=60_000)
        page.get_by_role("combobox", name="Run").click()
        page.get_by_role("option").filter(has_text="simulate-").first.click()
        page.get_by_text("Page 1").first.wait_for(timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=os.environ.get("WORKBENCH_SCREENSHOT", str(tmp_path / "dashboard.png")), full_page=True)
        browser.close()
    assert errors == []
