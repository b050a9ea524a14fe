"""Prompt searches through the command line against a real server: plan, search, kill, resume, test, and what is refused."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.fault_server import FaultServer, Step, delayed, say
from tests.processes import Child, command_line
from tests.workbench.conftest import Cli, one_line_error
from workbench.llm import used_by
from workbench.store import Store

pytest.importorskip("langchain_openai")
PLANTED = "Prefer the kind of film they took most often."
KINDS = ("western", "musical", "thriller", "comedy", "horror")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions of one kind of film as PO4ISR writes them: the target is the one candidate of that kind."""
    folder = tmp_path_factory.mktemp("po4isr") / "filmed"
    folder.mkdir()
    draw = random.Random(0)
    for name, rows in (("train_50", 8), ("valid", 40), ("test_seed_42", 30)):
        sessions = []
        for _ in range(rows):
            kind, *others = draw.sample(KINDS, 5)
            titles = [f"A {other} of {draw.randrange(1000)}" for other in (*others, *others)]
            target = f"A {kind} of {draw.randrange(1000)}"
            titles.insert(place := draw.randrange(9), target)
            taken = [f"A {kind} of {draw.randrange(1000)}" for _ in range(4)]
            text = "Current session interactions: " + listed(taken) + "\nCandidate set: " + listed(titles)
            sessions.append({"input": text, "target": target, "target_index": place + 1})
        (folder / f"{name}.json").write_text(json.dumps(sessions))
    return folder


def listed(titles: list[str]) -> str:
    return "[" + ",".join(f'{n}."{title}"' for n, title in enumerate(titles, 1)) + "]"


def model(body: dict[str, Any]) -> Step:
    """Ranks by kind where the prompt says what matters, else by title; asked for sections, it proposes to say so."""
    text = body["messages"][-1]["content"]
    if "<section" in text:
        return say(f'Kinds matter.\n<section name="task">\nRank the candidates. {PLANTED}\n</section>')
    # However items are listed; candidates stand last, behind whatever worked examples there are.
    offered = {id_: (kind, number) for id_, kind, number in re.findall(r"\b(C\d+)\b[^\n]*?A (\w+) of (\d+)", text)}
    taken = re.findall(r"^(?!.*\bC\d).*?A (\w+) of", text, re.M) or KINDS
    liked = max(taken, key=taken.count)
    order = sorted(offered, key=lambda id_: (PLANTED in text and offered[id_][0] != liked, offered[id_][1]))
    return say(" > ".join(order), prompt_tokens=300, completion_tokens=30)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(model) as running:
        yield running


def search(filmed: Path, server: FaultServer, *more: str) -> tuple[str, ...]:
    return ("optimize", f"po4isr:{filmed}", "--llm", f"vllm:test@{server.url}", "--optimizer", "recprompt", "--set", "iterations=2", *more)


def test_a_search_finds_confirms_and_tests_and_a_second_one_asks_nothing(cli: Cli, filmed: Path, server: FaultServer) -> None:
    code, out, err = cli(*search(filmed, server, "--json"))
    assert code == 0, err
    found = json.loads(out)
    assert "20 rows to search by; 20 to confirm on" in err
    assert found["confirmed"]
    assert found["dev"]["after"]["MRR"]["value"] > 0.95
    assert found["test"]["rows"] == 30
    difference = found["test"]["difference"]["MRR"]
    assert 0 < difference["low"] <= difference["value"] <= difference["high"]
    assert set(found["test"]["baselines"]) == {"random", "popularity", "word overlap", "tfidf"}
    assert sum(counts["calls"] for counts in found["calls"]) == len(server.requests)
    asked = len(server.requests)
    again = json.loads(cli(*search(filmed, server, "--json"))[1])
    assert len(server.requests) == asked
    assert again["test"] == found["test"]
    assert again["run"] != found["run"]
    assert (found["test_openings"], again["test_openings"]) == (1, 2)

    code, out, _ = cli("prompts", "diff", "plain", found["favourite"]["version"])
    assert code == 0
    assert f"+ Rank the candidates. {PLANTED}" in out
    openings = json.loads(cli("prompts", "openings", "--json")[1])
    assert [o["template"] for o in openings] == [found["favourite"]["version"]] * 2
    assert all("workbench optimize" in o["reason"] for o in openings)
    listed = json.loads(cli("prompts", "list", "--json")[1])
    (child,) = [row for row in listed if row["version"] == found["favourite"]["version"]]
    assert child["author"] == "recprompt"
    assert child["parent"] == found["start"]["version"]


def test_searches_at_one_budget_are_compared_on_the_same_rows(cli: Cli, filmed: Path, server: FaultServer) -> None:
    budget = ("--max-calls", "600", "--json")
    runs = [json.loads(cli(*search(filmed, server, *budget))[1])]
    few = ("--set", "evaluations=60", *budget)
    code, out, err = cli("optimize", f"po4isr:{filmed}", "--llm", f"vllm:test@{server.url}", "--optimizer", "components", *few)
    assert code == 0, err
    runs.append(json.loads(out))
    code, out, _ = cli("prompts", "compare", *(run["run"] for run in runs), "--json")
    compared = json.loads(out)
    assert code == 0
    assert [c["optimizer"] for c in compared] == ["recprompt", "components"]
    for one, run in zip(compared, runs, strict=True):
        assert one["value"] == pytest.approx(run["test"]["after"]["MRR"]["value"])
        assert one["questions"] == sum(counts["calls"] + counts["cache_hits"] for counts in run["calls"])
    assert compared[0]["difference"]["low"] > 0
    assert compared[0]["adjusted_p"] >= compared[0]["difference"]["p"]
    other = json.loads(cli(*search(filmed, server, "--seed", "1", "--test", "9", *budget))[1])
    code, _, err = cli("prompts", "compare", runs[0]["run"], other["run"])
    assert code == 2
    assert "different test rows" in one_line_error(err)


def test_people_read_the_result_and_what_the_store_keeps(cli: Cli, filmed: Path, server: FaultServer, tmp_path: Path) -> None:
    code, out, _ = cli(*search(filmed, server))
    assert code == 0
    assert "Fresh dev rows, which the search has not seen (20)" in out
    assert "Sealed test rows, opened once in this store (30)" in out
    assert "Better: MRR +" in out
    with Store.open(tmp_path / "store.sqlite") as store:
        (run,) = store.runs("optimize")
        trials = store.trials(run.id)
        assert run.status == "finished"
        assert {trial.part for trial in trials} == {"train", "search", "fresh", "test"}
        assert [trial.number for trial in trials] == list(range(len(trials)))
        arms = {(e.arm, e.part) for e in store.evaluations(run.id)}
        assert arms == {(arm, part) for arm in ("start", "favourite", "baseline") for part in ("fresh", "test")}
        assert {c.part for c in store.comparisons(run.id)} == {"fresh", "test"}
        assert store.call_totals(run.id).calls == len(server.requests)


def test_a_killed_search_resumes_and_repeats_no_answered_call(filmed: Path, tmp_path: Path) -> None:
    """A real SIGINT, then a kill -9, then resume: the same figures as a search nobody touched."""
    with FaultServer(model) as fast:
        whole = run_json(tmp_path, command(filmed, fast, tmp_path / "whole.sqlite"))
        expected = len(fast.requests)
    # Slow while it is stopped, and fast for the rest.
    with FaultServer(lambda body: delayed(model(body), 0.1 if len(slow.requests) < 60 else 0)) as slow:
        store = tmp_path / "store.sqlite"
        arguments = command(filmed, slow, store)
        for wanted, how in ((10, signal.SIGINT), (40, signal.SIGKILL)):
            child = Child(tmp_path, command_line, *arguments)
            end = time.monotonic() + 60
            while len(slow.requests) < wanted and time.monotonic() < end:
                time.sleep(0.02)
            child.send(how)
            code, _, err = child.end(60)
            assert code == (4 if how == signal.SIGINT else -signal.SIGKILL), err
            with Store.open(store) as opened:
                (run,) = opened.runs("optimize")
            if how == signal.SIGINT:
                assert f"workbench optimize --resume {run.id}" in one_line_error(err)
            arguments = ["optimize", "--store", str(store), "--resume", run.id, "--concurrency", "2"]
        done = run_json(tmp_path, arguments)
        for part in ("dev", "test"):
            assert done[part] == whole[part]
        assert done["run"] == run.id
        # Two calls may be under way at each of the two stops; whatever was answered is not asked again.
        assert expected <= len(slow.requests) <= expected + 2 * 2
        with Store.open(store) as opened:
            assert opened.run(run.id).status == "finished"
            trials = opened.trials(run.id)
            assert [trial.number for trial in trials] == list(range(len(trials)))
            assert len({(t.prompt_id, t.part, t.n, t.mean) for t in trials}) == len(trials)


def command(filmed: Path, server: FaultServer, store: Path) -> list[str]:
    # The task, and all that follows it, is the stored run's on a resume.
    return ["optimize", "--store", str(store), *search(filmed, server)[1:], "--concurrency", "2"]


def run_json(folder: Path, arguments: list[str]) -> dict[str, Any]:
    code, out, err = Child(folder, command_line, *arguments, "--json").end()
    assert code == 0, err
    return dict(json.loads(out))


def test_a_plan_asks_nothing(cli: Cli, filmed: Path, server: FaultServer) -> None:
    code, out, _ = cli(*search(filmed, server, "--plan", "--json"))
    plan = json.loads(out)
    assert code == 0
    assert plan["rows"] == {"search": 20, "fresh": 20, "test": 30}
    assert 0 < plan["detectable"]["test"] < plan["detectable"]["dev"] < 1
    # Start and three finalists on the fresh rows, two templates on the test rows, each with one retry.
    assert plan["final"]["most"]["calls"] == 2 * (4 * 20 + 2 * 30)
    assert server.requests == []


def test_simulated_pages_are_dev_rows_and_real_users_the_test(cli: Cli, log_file: Path, server: FaultServer) -> None:
    assert cli("simulate", "--data", str(log_file), "--agents", "20", "--fidelity-users", "0", "--page-size", "5")[0] == 0
    arguments = ("--llm", f"vllm:test@{server.url}", "--train", "0", "--dev", "6", "--test", "10", "--plan", "--json")
    code, out, err = cli("optimize", "simulated:latest", *arguments)
    assert code == 0, err
    plan = json.loads(out)
    assert plan["rows"]["search"] + plan["rows"]["fresh"] <= 6
    assert plan["rows"]["test"] == 10
    assert "prior" in plan["baselines"]
    for task in (("simulated:latest",), (f"rerank:{log_file}", "--candidates", "10")):
        code, out, err = cli("optimize", *task, *arguments[:2], "--plan", "--json")
        assert code == 0, err
        plan = json.loads(out)
        assert plan["rows"]["fresh"] >= 1
        assert 10 <= plan["rows"]["test"] < 100
    code, _, err = cli("optimize", "simulated:nothing", *arguments)
    assert code == 2
    assert "nothing" in one_line_error(err)


def test_a_budget_is_never_passed_and_what_it_leaves_is_confirmed(cli: Cli, filmed: Path, server: FaultServer) -> None:
    code, out, err = cli(*search(filmed, server, "--max-calls", "310", "--json"))
    assert code == 0, err
    found = json.loads(out)
    assert len(server.requests) <= 310
    assert "calls budget" in found["stopped"]
    assert found["dev"]["rows"] == 20
    code, _, err = cli(*search(filmed, server, "--max-calls", "279"))
    assert code == 2
    assert "final scoring alone may take 280" in one_line_error(err)


def test_the_budget_of_a_search_is_of_all_its_sittings(filmed: Path, tmp_path: Path) -> None:
    """Stopped three times, it searches no further than one sitting may, and the share of the end is there at the end."""
    more = ("--max-calls", "320")
    with FaultServer(lambda body: delayed(model(body), 0.1 if len(slow.requests) < 80 else 0)) as slow:
        store = tmp_path / "store.sqlite"
        arguments = [*command(filmed, slow, store), *more]
        for wanted in (15, 30, 70):
            child = Child(tmp_path, command_line, *arguments)
            end = time.monotonic() + 60
            while len(slow.requests) < wanted and time.monotonic() < end:
                time.sleep(0.02)
            child.send(signal.SIGINT)
            assert child.end(60)[0] == 4
            arguments = ["optimize", "--store", str(store), "--resume", "latest", "--concurrency", "2"]
        done = run_json(tmp_path, arguments)
    # 280 are kept for the end.
    assert "calls budget of 40 would be passed" in done["stopped"]
    with Store.open(store) as opened:
        assert sum(trial.n for trial in opened.trials("latest") if trial.part in ("train", "search")) <= 40
        used = used_by(opened, "latest").calls
        # Asked for again at each sitting, most of them by the store alone.
        totals = opened.call_totals("latest")
        assert totals.questions <= len(slow.requests) < totals.calls
    # Up to two questions a stop were counted and had not arrived.
    assert len(slow.requests) <= used <= len(slow.requests) + 3 * 2
    assert done["test"]["rows"] == 30


def test_a_template_is_tested_for_a_reason_beside_another_that_shows_the_same(cli: Cli, filmed: Path, server: FaultServer) -> None:
    test = ("prompts", "test", "plain", f"po4isr:{filmed}", "--llm", f"vllm:test@{server.url}", "--test", "12")
    code, out, _ = cli(*test, "--reason", "a test", "--against", "recprompt", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["openings"] == 1
    assert set(found["difference"]["MRR"]) == {"value", "low", "high", "p"}
    assert len(server.requests) == 24
    stored = json.loads(cli("runs", found["run"], "--json")[1])
    assert (stored["kind"], stored["status"], stored["calls"]["calls"], stored["calls"]["cached"]) == ("test", "finished", 24, 0)
    assert stored["calls"]["prompt_tokens"] == found["calls"]["prompt_tokens"] > 0
    kept = {(e["arm"], e["metric"]): (e["mean"], e["low"], e["high"]) for e in stored["evaluations"]}
    assert kept["template", "MRR"] == pytest.approx([found["template"]["MRR"][name] for name in ("value", "low", "high")], abs=1e-6)
    assert {arm for arm, _ in kept} == {"template", "against", "baseline"}
    assert stored["comparisons"][0]["difference"] == found["difference"][stored["comparisons"][0]["metric"]]["value"]
    assert "against recprompt" in cli("runs")[1]
    again = json.loads(cli(*test, "--reason", "once more", "--against", "recprompt", "--json")[1])
    calls = json.loads(cli("runs", again["run"], "--json")[1])["calls"]
    assert (calls["calls"], calls["cached"], calls["cost"], len(server.requests)) == (24, 24, 0, 24)
    code, _, err = cli(*test, "--reason", " ")
    assert code == 2
    assert "opened for no reason" in one_line_error(err)
    code, _, err = cli(*test, "--reason", "a test", "--against", "likelihood")
    assert code == 2
    assert "gives no likelihoods" in one_line_error(err)
    assert len(json.loads(cli("prompts", "openings", "--json")[1])) == 2
    assert len(json.loads(cli("runs", "--json")[1])) == 2, "what is refused leaves no run"


def test_a_test_that_is_stopped_keeps_what_it_asked(filmed: Path, tmp_path: Path) -> None:
    with FaultServer(lambda body: delayed(model(body), 0.2)) as slow:
        store = tmp_path / "store.sqlite"
        test = ("prompts", "test", "plain", f"po4isr:{filmed}", "--llm", f"vllm:test@{slow.url}", "--test", "12", "--reason", "a test")
        child = Child(tmp_path, command_line, *test, "--max-calls", "7", "--store", str(store))
        code, _, err = child.end(60)
        assert code == 4, err
        asked = len(slow.requests)
        with Store.open(store) as opened:
            (run,) = opened.runs()
            assert (run.kind, run.status) == ("test", "stopped")
            assert opened.call_totals(run.id).calls == asked == 7
        assert Child(tmp_path, command_line, *test, "--store", str(store)).end(60)[0] == 0
        assert len(slow.requests) == 12, "what was answered is not asked again"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("optimize", "filmed"), "task 'filmed' is not of the form po4isr:"),
        (("optimize", "po4isr:nowhere"), "cannot be read"),
        (("optimize", "po4isr:FILMS", "--optimizer", "magic"), "optimizer 'magic'"),
        (("optimize", "po4isr:FILMS", "--set", "magic=1"), "magic"),
        (("optimize", "po4isr:FILMS", "--metric", "luck"), "luck"),
        (("optimize", "po4isr:FILMS", "--template", "nothing"), "built in are choice, likelihood"),
        (("optimize", "--resume", "latest"), "no store"),
        (("prompts", "show", "nothing"), "built in are choice, likelihood"),
        (("prompts", "add", "mine.txt"), "is not a .toml file"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    cli: Cli, filmed: Path, server: FaultServer, arguments: tuple[str, ...], said: str
) -> None:
    more = ("--llm", f"vllm:test@{server.url}") if arguments[0] == "optimize" else ()
    code, _, err = cli(*(a.replace("FILMS", str(filmed)) for a in arguments), *more)
    assert code == 2
    assert said in one_line_error(err)
    assert server.requests == []


def test_a_template_goes_out_as_toml_and_comes_back_as_a_version(cli: Cli, tmp_path: Path) -> None:
    _, toml, _ = cli("prompts", "show", "plain")
    file = tmp_path / "mine.toml"
    file.write_text(toml.replace('name = "plain"', 'name = "mine"').replace("choose them next", "take them next"))
    code, out, _ = cli("prompts", "add", str(file))
    assert code == 0
    assert out.startswith("mine ")
    _, out, _ = cli("prompts", "diff", "plain", "mine", "--json")
    assert set(json.loads(out)) == {"task", "name"}
