"""LLM agents through the command line against a real server, healthy, slow, failing and dead: nothing stored is lost or asked twice."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents.fault_server import FaultServer, Step, delayed, hang, say, status
from tests.processes import Child, command_line
from tests.workbench.conftest import Cli, one_line_error
from workbench.store import Store

pytest.importorskip("langchain_openai")
AGENTS = ("--agents", "20", "--pages", "3", "--page-size", "5", "--fidelity-users", "0")


def sensible(body: dict[str, Any]) -> Step:
    """A user that takes up to two items rated above 3.2 on average, rates them 5 and goes on."""
    lines = re.findall(r"^(\d+)\. .* \| .* \| ([\d.]+)$", body["messages"][-1]["content"], re.M)
    take = [{"n": int(n), "rating": 5} for n, mean in lines if float(mean) > 3.2][:2]
    return say(json.dumps({"take": take, "feeling": "satisfied", "next": True}), prompt_tokens=200, completion_tokens=20)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A healthy endpoint."""
    with FaultServer(sensible) as running:
        yield running


def spec(server: FaultServer) -> tuple[str, str]:
    return "--llm", f"vllm:test@{server.url}"


def facts(out: str) -> dict[str, Any]:
    return dict(json.loads(out))


def test_a_second_run_asks_nothing_and_gives_the_same_log(cli: Cli, log_file: Path, server: FaultServer) -> None:
    command = ("simulate", *spec(server), "--data", str(log_file), *AGENTS, "--json")
    code, out, _ = cli(*command)
    first = facts(out)
    assert code == 0
    assert first["actions"] > 0
    assert first["fallbacks"] == 0
    assert first["calls"]["asked"] == first["pages"] == len(server.requests)
    second = facts(cli(*command)[1])
    assert len(server.requests) == first["pages"]
    assert second["calls"]["asked"] == 0
    assert second["calls"]["cached"] == first["pages"]
    assert second["log_hash"] == first["log_hash"]
    assert second["run"] != first["run"]


def test_passing_errors_leave_no_trace_in_the_log(
    cli: Cli, log_file: Path, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.chat.failures.pause", lambda *_: 0.01)
    healthy = facts(cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, "--json")[1])
    turn = iter(range(10**6))

    def flaky(body: dict[str, Any]) -> Step:
        return status(500) if next(turn) % 3 == 0 else sensible(body)

    with FaultServer(flaky) as failing:
        # Another store, so that no answer comes from the cache; the same model name and questions.
        command = ("simulate", "--llm", f"vllm:test@{failing.url}", "--data", str(log_file), *AGENTS, "--retries", "8", "--json")
        code, out, _ = cli(*command, "--store", str(tmp_path / "other.sqlite"))
    again = facts(out)
    assert code == 0
    assert again["calls"]["retries"] > 0
    assert again["fallbacks"] == 0
    assert again["log_hash"] == healthy["log_hash"]


@pytest.mark.parametrize(
    "answer",
    [
        "I would watch all of them!",
        '{"take": [{"n": 99, "rating": 5}], "feeling": "satisfied", "next": true}',
        '{"take": [{"n": 1, "rating": 11}], "feeling": "satisfied", "next": true}',
        '{"take": [1], "feeling": "satisfied", "next": true}',
        '{"take": [], "feeling": "smug", "next": true}',
        "[[[[",
        "",
    ],
)
def test_garbage_is_a_counted_fallback(cli: Cli, log_file: Path, answer: str) -> None:
    with FaultServer([say(answer)]) as server:
        code, out, _ = cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, "--retries", "1", "--json")
    found = facts(out)
    assert code == 0
    assert found["fallbacks"] == found["pages"] > 0
    assert found["calls"]["parse_failures"] == 2 * found["pages"]
    code, _, err = cli("augment", "latest", "--models", "ease")
    assert code == 2
    assert "no interactions to train on" in one_line_error(err)


def test_garbage_cannot_pass_the_fidelity_test(cli: Cli, log_file: Path) -> None:
    with FaultServer([say("no")]) as server:
        code, _, err = cli("simulate", *spec(server), "--data", str(log_file), "--agents", "3", "--retries", "0")
    assert code == 2
    assert "answered none of" in one_line_error(err)


def test_an_unreachable_endpoint_ends_the_run_and_a_living_one_finishes_it(cli: Cli, log_file: Path, server: FaultServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    code, _, err = cli("simulate", "--llm", f"vllm:test@http://127.0.0.1:{port}/v1", "--data", str(log_file), *AGENTS)
    said = one_line_error(err)
    assert code == 3
    assert time.monotonic() - start < 30
    assert f"127.0.0.1:{port}" in said
    run = said.rsplit(" ", 1)[-1].rstrip(")")
    (listed,) = json.loads(cli("runs", "--json")[1])
    assert (listed["id"], listed["status"]) == (run, "failed")
    code, out, _ = cli("simulate", "--resume", run, *spec(server), "--json")
    assert code == 0
    assert facts(out)["fallbacks"] == 0


def test_a_budget_is_never_passed_and_more_of_it_goes_on(cli: Cli, log_file: Path, server: FaultServer) -> None:
    code, _, err = cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, "--max-tokens", "4000")
    said = one_line_error(err)
    assert code == 4
    assert "tokens budget of 4000" in said
    spent = len(server.requests) * 220
    assert 0 < spent <= 4000
    code, out, _ = cli("simulate", "--resume", "latest", *spec(server), "--max-tokens", "100000", "--json")
    assert code == 0
    whole = facts(out)
    assert len(server.requests) == whole["pages"]


def test_a_budget_is_of_the_whole_run_however_often_it_is_resumed(cli: Cli, log_file: Path, server: FaultServer) -> None:
    code, _, err = cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, "--max-tokens", "2000")
    assert code == 4
    asked = len(server.requests)
    for more, said in (((), "tokens budget of 2000"), (("--max-tokens", "1500"), "tokens budget of 1500"), ((), "tokens budget of 2000")):
        code, _, err = cli("simulate", "--resume", "latest", *spec(server), *more)
        assert code == 4
        assert f"{said} would be passed: {220 * asked} used" in one_line_error(err)
        assert len(server.requests) == asked
    code, _, err = cli("simulate", "--resume", "latest", *spec(server), "--max-tokens", "3500")
    assert code == 4
    assert 220 * asked < 220 * len(server.requests) <= 3500
    assert cli("simulate", "--resume", "latest", *spec(server), "--max-tokens", "100000")[0] == 0


def test_what_a_failing_endpoint_may_have_billed_counts_when_the_run_is_resumed(cli: Cli, log_file: Path) -> None:
    command = ("--timeout", "0.3", "--retries", "1", "--concurrency", "1")
    with FaultServer([hang()]) as server:
        code, _, err = cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, *command, "--max-tokens", "5000")
        assert code == 4
        assert "tokens budget of 5000" in one_line_error(err)
        asked = len(server.requests)
        assert asked > 2
        code, _, err = cli("simulate", "--resume", "latest", *spec(server), *command)
        assert code == 4
        assert len(server.requests) == asked


def test_a_resumed_run_asks_as_it_began(cli: Cli, log_file: Path, server: FaultServer) -> None:
    how = ("--concurrency", "2", "--timeout", "0.5", "--retries", "0")
    assert cli("simulate", *spec(server), "--data", str(log_file), *AGENTS, *how, "--max-tokens", "1")[0] == 4
    with FaultServer(lambda body: delayed(sensible(body), 0.1)) as slow:
        assert cli("simulate", "--resume", "latest", *spec(slow), "--max-tokens", "100000")[0] == 0
    assert slow.most_open == 2


def test_interrupted_and_killed_runs_resume_without_asking_twice(log_file: Path, tmp_path: Path) -> None:
    """A real SIGINT, then a kill -9, then resume: the log equals that of a run nobody touched, and no page is paid twice."""
    with FaultServer(sensible) as fast:
        whole_store = tmp_path / "whole.sqlite"
        code, _, err = Child(tmp_path, command_line, *command(whole_store, fast, log_file)).end()
        assert code == 0, err
    with Store.open(whole_store) as opened:
        whole, expected = len(opened.pages("latest")), opened.log_hash("latest")
    with FaultServer(lambda body: delayed(sensible(body), 0.3)) as slow:
        store = tmp_path / "store.sqlite"
        arguments = command(store, slow, log_file)
        for how in (signal.SIGINT, signal.SIGKILL):
            child = Child(tmp_path, command_line, *arguments)
            run, before = wait_for_work(store, slow, len(slow.requests) + 4)
            child.send(how)
            code, _, err = child.end(60)
            assert code == (4 if how == signal.SIGINT else -signal.SIGKILL), err
            if how == signal.SIGINT:
                assert f"--resume {run} --store {store}" in one_line_error(err)
            with Store.open(store) as opened:
                assert before <= len(opened.pages(run)) < whole
            arguments = ["simulate", "--store", str(store), "--resume", run, *spec(slow)]
        code, _, err = Child(tmp_path, command_line, *arguments, "--json").end()
        assert code == 0, err
        with Store.open(store) as opened:
            assert opened.run(run).status == "finished"
            assert opened.log_hash(run) == expected
        # Questions in flight when the process died may be asked again; one whose answer arrived may not.
        assert whole <= len(slow.requests) <= whole + 2 * 12


def test_of_two_processes_that_resume_one_run_the_second_is_refused_and_spends_nothing(log_file: Path, tmp_path: Path) -> None:
    go_on = threading.Event()

    def waiting(body: dict[str, Any]) -> Step:
        go_on.wait(60)
        return sensible(body)

    with FaultServer(waiting) as server:
        store = tmp_path / "store.sqlite"
        start = ["simulate", "--store", str(store), *spec(server), "--data", str(log_file), *AGENTS, "--max-tokens", "1"]
        assert Child(tmp_path, command_line, *start).end()[0] == 4
        resume = ["simulate", "--store", str(store), "--resume", "latest", *spec(server), "--max-tokens", "100000"]
        first = Child(tmp_path, command_line, *resume)
        while first.alive and len(server.requests) < 20:
            time.sleep(0.01)
        code, _, err = Child(tmp_path, command_line, *resume).end(60)
        assert code == 2
        assert "has just given a sign of life; wait for it, or end it" in one_line_error(err)
        assert "go on with" not in err, "it is at work: nothing is to be resumed"
        assert len(server.requests) == 20, "the second asked"
        go_on.set()
        assert first.end()[0] == 0
    with Store.open(store) as opened:
        (run,) = opened.runs()
        assert run.status == "finished"
        assert [event.status for event in opened.status(run.id)] == ["started", "stopped", "resumed", "finished"]


def command(store: Path, server: FaultServer, log_file: Path) -> list[str]:
    return ["simulate", "--store", str(store), *spec(server), "--data", str(log_file), *AGENTS, "--concurrency", "2"]


def wait_for_work(store: Path, server: FaultServer, requests: int, seconds: float = 60) -> tuple[str, int]:
    """Waits until so many requests have come and the newest run has stored pages; its id and how many there are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if store.exists() and len(server.requests) >= requests:
            with Store.open(store) as opened:
                for run in opened.runs():
                    if run.pages:
                        return run.id, run.pages
        time.sleep(0.02)
    raise AssertionError(f"{requests} requests and stored pages did not come in {seconds} s")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB; needs root."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_what_was_stored_can_be_read(cli: Cli, log_file: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(1200)
    store = str(disk / "store.sqlite")
    command_ = ("simulate", "--data", str(log_file), "--agents", "60", "--pages", "40", "--page-size", "2", "--fidelity-users", "0")
    assert cli(*command_, "--agents", "2", "--store", store)[0] == 0
    kept = json.loads(cli("runs", "--store", store, "--json")[1])[0]
    for _ in range(20):
        code, _, err = cli(*command_, "--store", store)
        if code:
            break
    said = one_line_error(err)
    assert code == 4
    assert "full" in said
    assert "free" in said
    code, out, _ = cli("runs", kept["id"], "--store", store, "--json")
    assert code == 0
    assert json.loads(out)["pages"] == kept["pages"]
