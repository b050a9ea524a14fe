"""A prompt as an arm: in a simulation beside its first stage, in tables and lists, through one store, one budget and one count."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chat import Amount, Budget, BudgetExceeded, ChatRequest, Message, connect
from recsys_core import Histories, create, known_models
from recsys_core.data import Dataset, Jagged, leave_one_out, load_dataset
from recsys_core.errors import DataError, UnknownNameError
from recsys_core.models import model_class
from recsys_core.progress import silent
from tests.agents.fault_server import FaultServer, Step, hang, say
from tests.workbench.conftest import Cli, one_line_error, started
from tests.workbench.test_cli_llm import sensible
from tests.workbench.test_prompts_rankers import Planted, by_quality
from workbench.config import DataSettings, Experiment, LLMSettings, ModelSettings, SimulationSettings
from workbench.prompts.channel import Channel, open_channel, ranking_through
from workbench.prompts.rankers import ranker_for
from workbench.prompts.recommender import LLMRanker, template_of
from workbench.prompts.starting import PLAIN, showing
from workbench.prompts.tasks import Item, Row
from workbench.prompts.versions import from_toml, keep, to_toml
from workbench.simulate import simulate
from workbench.store import Store

pytest.importorskip("langchain_openai")
SHOWN = re.compile(r"^(C\d+)\. Film (\d+) ", re.MULTILINE)
AGENTS = ("--agents", "8", "--pages", "3", "--page-size", "4", "--fidelity-users", "0")


def highest_first(body: dict[str, Any]) -> Step:
    """A ranker that likes high numbers in titles, and an agent where it is asked to be one."""
    text = body["messages"][-1]["content"]
    offered = sorted(SHOWN.findall(text), key=lambda pair: -int(pair[1]))
    return say(" > ".join(label for label, _ in offered), 50, 10) if offered else sensible(body)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(highest_first) as running:
        yield running


@pytest.fixture(scope="module")
def log_file(films: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared test log with its titles, as RecBole files."""
    path = tmp_path_factory.mktemp("data") / "films.inter"
    rows = zip(films.users.decode(films.user), films.items.decode(films.item), films.rating, films.timestamp, strict=True)  # type: ignore[arg-type]
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    about = zip(films.items.ids, films.titles, films.tags, strict=True)
    lines = ["item_id:token\ttitle:token_seq\ttags:token_seq", *(f"{id_}\t{title}\t{tags[0]}" for id_, title, tags in about)]
    path.with_suffix(".item").write_text("\n".join(lines) + "\n")
    return path


def arm(server: FaultServer, **more: object) -> list[str]:
    """Names the ranker with a template and a model."""
    chosen = {"model": f"vllm:test@{server.url}", "template": "plain", "first_stage": "popularity", "candidates": 6} | more
    return ["--recommender", "llm", *(part for name, value in chosen.items() for part in ("--set", f"{name}={value}"))]


def number(log: Dataset, item: int) -> int:
    return int(log.title(item).split()[1])


# The arm in a simulation


def test_it_is_found_by_name_and_loads_no_language_model() -> None:
    assert "llm" in known_models()
    assert model_class("llm") is LLMRanker
    code = "import sys, recsys_core; recsys_core.known_models(); assert 'workbench' not in sys.modules; recsys_core.create('llm')"
    code += "; print({'langchain_core', 'transformers', 'openai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_simulation_with_a_prompt_beside_its_first_stage(cli: Cli, log_file: Path, server: FaultServer, tmp_path: Path) -> None:
    command = ("simulate", "--data", str(log_file), *AGENTS, "--json")
    code, out, _ = cli(*command, *arm(server))
    first = json.loads(out)
    assert code == 0
    assert (first["recommender"], first["ranking"]["complete"], first["ranking"]["invalid"]) == ("llm", first["pages"], 0)
    assert first["calls"]["asked"] == first["pages"] == len(server.requests)
    beside = json.loads(cli(*command, "--recommender", "popularity")[1])
    assert beside["ranking"] is beside["calls"] is None
    assert beside["log_hash"] != first["log_hash"]
    log = load_dataset(str(log_file))
    train = leave_one_out(log).train
    popular = sorted(range(len(log.items)), key=lambda item: (-train.item_counts[item], item))
    with Store.open(tmp_path / "store.sqlite") as store:
        pages = store.pages(first["run"])
        assert {page.arm for page in pages} == {"llm"}
        for user in {page.user for page in pages}:
            known = set(map(int, train.sequences()[user]))
            for page in (p for p in pages if p.user == user):
                # The six most popular that are new are put in order, highest number first; a page shows four of them.
                best = [item for item in popular if item not in known][:6]
                expected = sorted(best, key=lambda item: -number(log, item))[:4]
                assert [e.item for e in page.exposures] == expected
                known |= set(expected)
        totals = store.call_totals(first["run"])
        assert (totals.calls, totals.cached, totals.prompt_tokens) == (first["pages"], 0, 50 * first["pages"])
        kept = store.run(first["run"]).config["simulation"]["recommender"]["config"]
        assert from_toml(kept["template"]) == PLAIN
        assert kept["repetitions"] == 1
    again = json.loads(cli(*command, *arm(server))[1])
    assert (again["log_hash"], again["calls"]["asked"], len(server.requests)) == (first["log_hash"], 0, first["pages"])


def test_a_stored_template_is_named_and_a_run_keeps_its_text(cli: Cli, log_file: Path, server: FaultServer, tmp_path: Path) -> None:
    best = replace(PLAIN, name="best", task="Which of these {count} would they like?")
    with Store.open(tmp_path / "store.sqlite") as store:
        keep(store, best)
    code, out, _ = cli("simulate", "--data", str(log_file), *AGENTS, *arm(server, template="best"), "--json")
    assert code == 0
    assert all("Which of these 6 would" in seen.body["messages"][-1]["content"] for seen in server.requests)
    with Store.open(tmp_path / "store.sqlite") as store:
        config = store.run(json.loads(out)["run"]).config["simulation"]["recommender"]["config"]
        assert from_toml(config["template"]) == best
        before = len(store.runs())
        code, _, err = cli("simulate", "--data", str(log_file), *AGENTS, *arm(server, template="worst"))
        assert code == 2
        assert "'worst' is unknown" in one_line_error(err)
        assert len(store.runs()) == before


def test_agents_and_ranker_share_one_budget_and_a_resumed_run_asks_nothing_twice(cli: Cli, log_file: Path, server: FaultServer) -> None:
    llm = ("--llm", f"vllm:test@{server.url}")
    command = ("simulate", "--data", str(log_file), *AGENTS, *arm(server), *llm)
    code, _, err = cli(*command, "--max-tokens", "3000")
    assert code == 4
    assert "tokens budget of 3000" in one_line_error(err)
    spent = sum(60 if SHOWN.search(seen.body["messages"][-1]["content"]) else 220 for seen in server.requests)
    assert 1000 < spent <= 3000
    asked = len(server.requests)
    assert cli("simulate", "--resume", "latest", *llm)[0] == 4
    assert len(server.requests) == asked
    code, out, _ = cli("simulate", "--resume", "latest", *llm, "--max-tokens", "100000", "--json")
    whole = json.loads(out)
    assert code == 0
    # One question a page of the ranker, one of the agent.
    assert len(server.requests) == 2 * whole["pages"]
    prompts = [json.dumps(seen.body["messages"]) + str(seen.body.get("seed")) for seen in server.requests]
    assert len(set(prompts)) == len(prompts)


def test_unusable_answers_leave_the_first_stage_and_are_counted(cli: Cli, log_file: Path) -> None:
    command = ("simulate", "--data", str(log_file), *AGENTS, "--json")
    with FaultServer([say("I would rather not.")]) as refusing:
        found = json.loads(cli(*command, *arm(refusing))[1])
    beside = json.loads(cli(*command, "--recommender", "popularity")[1])
    assert found["ranking"]["invalid"] == found["ranking"]["retried"] == found["pages"] == beside["pages"]
    assert found["take_rate"] == beside["take_rate"]


def test_agents_are_answered_while_the_ranker_waits(log_file: Path, tmp_path: Path) -> None:
    """The second page's ranking and the first agent's answer come only when both have been asked for."""
    both, ranked, played = threading.Barrier(2), count(), count()

    def together(body: dict[str, Any]) -> Step:
        ranks = SHOWN.search(body["messages"][-1]["content"])
        if next(ranked) == 1 if ranks else next(played) == 0:
            both.wait(20)
        return highest_first(body)

    logs = []
    for script, cohort in ((together, 1), (highest_first, 4)):
        with FaultServer(script) as server, Store.open(tmp_path / str(cohort)) as store:
            spec = f"vllm:test@{server.url}"
            ranker = ModelSettings(name="llm", config={"model": spec, "template": "plain", "first_stage": "popularity", "candidates": 6})
            bounds = {"agents": 4, "pages": 2, "page_size": 4, "cohort": cohort, "fidelity_users": 0}
            chosen = SimulationSettings(policy="llm", recommender=ranker, llm=LLMSettings(spec=spec), **bounds)
            outcome = simulate(store, Experiment(name="t", data=DataSettings(name=str(log_file))), chosen, silent)
            assert outcome.result.fallbacks == 0
            assert outcome.counts is not None
            assert outcome.counts.calls == len(server.requests) == 2 * outcome.result.pages
            logs.append(outcome.log_hash)
    assert logs[0] == logs[1]


# The arm in tables and lists


def test_evaluated_listed_and_compared_without_asking_twice(cli: Cli, log_file: Path, server: FaultServer, tmp_path: Path) -> None:
    model = f"vllm:test@{server.url}"
    grid = tmp_path / "grid.toml"
    config = f"{{ model = '{model}', template = 'plain', first_stage = 'popularity', candidates = 6 }}"
    grid.write_text(
        f"[grid]\nseeds = 1\nmetrics = ['HR@5']\nbase = 'popularity'\n[[grid.data]]\nname = '{log_file}'\n"
        f"[[grid.models]]\nname = 'popularity'\n[[grid.models]]\nname = 'llm'\nconfig = {config}\n"
    )
    code, out, _ = cli("evaluate", str(grid), "--json")
    assert code == 0
    rows = {row["model"]: row for row in json.loads(out)["rows"]}
    assert "plain" in rows["llm"]["training"]
    asked = len(server.requests)
    assert asked == 60
    with Store.open(tmp_path / "store.sqlite") as store:
        assert store.call_totals(rows["llm"]["runs"][0]).calls == 60
    settings = ("--set", f"model={model}", "--set", "template=plain", "--set", "first_stage=popularity", "--set", "candidates=6")
    folder = tmp_path / "model"
    assert cli("train", "llm", "--data", str(log_file), *settings, "--out", str(folder))[0] == 0
    code, out, _ = cli("evaluate", str(folder), "--data", str(log_file), "--part", "test", "--metrics", "HR@5", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["rows"][0]["metrics"]["HR@5"][0] == rows["llm"]["metrics"]["HR@5"]["mean"]
    with Store.open(tmp_path / "store.sqlite") as store:
        totals = store.call_totals(facts["run"])
    # The same questions as the grid's, but for the order of the candidates, which is drawn from the seed alone.
    assert (totals.calls, totals.cached, len(server.requests)) == (60, 60, asked)
    log = load_dataset(str(log_file))
    code, out, _ = cli("recommend", str(folder), "--data", str(log_file), "--history", log.items.ids[0], "--k", "6", "--json")
    (answer,) = json.loads(out)
    numbers = [int(item["title"].split()[1]) for item in answer["items"]]
    assert numbers == sorted(numbers, reverse=True)
    assert cli("recommend", str(folder), "--data", str(log_file), "--history", log.items.ids[0])[0] == 0
    assert len(server.requests) == asked + 1


def test_an_experiment_file_takes_it_everywhere(cli: Cli, log_file: Path, server: FaultServer, tmp_path: Path) -> None:
    model = f"{{ name = 'llm', config = {{ model = 'vllm:test@{server.url}', template = 'plain', first_stage = 'popularity' }} }}"
    file = tmp_path / "experiment.toml"
    file.write_text(
        f"baselines = [{{ name = 'popularity' }}, {model}]\n[data]\nname = '{log_file}'\n"
        f"[[simulations]]\nagents = 4\npages = 2\nfidelity_users = 0\nrecommender = {model}\n"
        f"[loop]\nseeds = 1\nmetrics = ['MRR']\nmodels = [{model}]\n"
    )
    code, out, _ = cli("demo", "--config", str(file), "--json")
    assert code == 0
    report = json.loads(out)
    assert [row["model"] for row in report["baselines"]] == ["popularity", "llm"]
    assert {row["arm"] for row in report["loop"]["scores"]} == {"none", "popularity", "shown", "synthesized"}
    with Store.open(tmp_path / "store.sqlite") as store:
        runs = {run.kind: run for run in store.runs()}
        assert store.call_totals(runs["evaluate"].id).calls == 60
        assert store.call_totals(runs["simulate"].id).calls == report["simulations"][0]["calls"]["asked"] > 0
        asked = store.call_totals(runs["augment"].id)
        # An arm in which the six most popular are the same asks what was asked before.
        assert (asked.calls, asked.cached > 0) == (4 * 60, True)
        assert from_toml(runs["augment"].config["loop"]["models"][0]["config"]["template"]) == PLAIN


# The ranker by itself


def test_what_is_excluded_takes_no_place_among_the_candidates(films: Dataset, server: FaultServer) -> None:
    settings = {"model": f"vllm:test@{server.url}", "template": "plain", "first_stage": "popularity", "candidates": 5}
    ranker = create("llm", **settings).fit(films)
    popular = create("popularity").fit(films)
    histories = Histories.of([[0, 1], [2], []])
    banned = Jagged.from_rows([popular.recommend(histories, 7).items[0], np.arange(78), np.arange(80)])
    lists, first = ranker.recommend(histories, 8, banned), popular.recommend(histories, 8, banned)
    assert sorted(lists.items[0][:5]) == sorted(first.items[0][:5])
    assert [number(films, i) for i in lists.items[0][:5]] == sorted((number(films, i) for i in first.items[0][:5]), reverse=True)
    np.testing.assert_array_equal(lists.items[0][5:], first.items[0][5:])
    assert (np.diff(lists.scores[0]) < 0)[:4].all()
    assert lists.items[1].tolist() == [79, 78, -1, -1, -1, -1, -1, -1]
    assert (lists.items[2] == -1).all()
    assert np.isneginf(lists.scores[2]).all()
    assert ranker.recommend(histories, 2).items.shape == (3, 2)
    with pytest.raises(DataError, match="k is 0"):
        ranker.recommend(histories, 0)
    with pytest.raises(DataError, match="not been trained"):
        create("llm").recommend(histories, 1)


def test_templates_are_text_files_or_names_and_must_show_what_there_is(films: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(to_toml(replace(PLAIN, name="mine")))
    assert template_of(str(tmp_path / "mine.toml")).name == "mine"
    assert template_of(to_toml(PLAIN)) == template_of("plain") == PLAIN
    assert create("llm", template="plain").config.model_dump()["template"] == to_toml(PLAIN)
    for key, error in (("nowhere", UnknownNameError), (str(tmp_path / "none.toml"), DataError), ("kind = 7", DataError)):
        with pytest.raises(error):
            create("llm", template=key)
    with pytest.raises(DataError, match="shows the field 'abstract'; items of a dataset have tags only"):
        create("llm", template=to_toml(showing(PLAIN, ("abstract",)))).fit(films)
    assert create("llm", template=to_toml(showing(PLAIN, ("tags",))), first_stage="popularity").fit(films).items is films.items


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 6), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.sampled_from([None, "used", "held"]))
def test_no_batch_passes_a_shared_budget(bound: int, mine: int, sizes: list[int], what: str | None) -> None:
    """The caller's loop stands still with `mine` calls used or set aside; batches of rows follow one another."""

    async def caller() -> int:
        model = Planted(by_quality)
        channel = Channel(budget=Budget(calls=bound + mine))
        if what == "used":
            channel.budget.settle(Amount(calls=0), Amount(calls=mine))
        elif what == "held":
            await channel.budget.reserve(Amount(calls=mine))
        room = bound + (0 if what else mine)
        for number, size in enumerate(sizes):
            rows = [Row(f"{number}/{n}", (), (Item("a", f"film {number}"), Item("b", f"film {n + 10}")), {}) for n in range(size)]
            try:
                channel.rank(lambda **kept: connect(model, **kept), lambda client: ranker_for(client, PLAIN), rows)
            except BudgetExceeded:
                assert sum(sizes[: number + 1]) > room
                break
        else:
            assert sum(sizes) <= room
        assert channel.counts.calls == model.asked.total() <= room
        assert channel.budget.used.calls == model.asked.total() + (mine if what == "used" else 0)
        return int(model.asked.total())

    assert asyncio.run(caller()) <= sum(sizes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 4), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_batches_beside_other_questions_pass_no_shared_budget(bound: int, mine: int, sizes: list[int]) -> None:
    """One loop in which the caller asks, too, and batches of rows are ranked at the same time."""

    async def caller() -> None:
        model = Planted(by_quality, pause=0.001)
        channel = Channel(budget=Budget(calls=bound))
        client = connect(model, budget=channel.budget)
        asked = [client.ask(ChatRequest((Message("user", f"mine {n}"),))) for n in range(mine)]
        batches = [
            channel.rank_async(
                lambda **kept: connect(model, **kept),
                lambda client: ranker_for(client, PLAIN),
                [Row(f"{number}/{n}", (), (Item("a", f"film {number}"), Item("b", f"film {n + 10}")), {}) for n in range(size)],
            )
            for number, size in enumerate(sizes)
        ]
        ended = await asyncio.gather(*asked, *batches, return_exceptions=True)
        refused = [error for error in ended if isinstance(error, BaseException)]
        assert all(isinstance(error, BudgetExceeded) for error in refused)
        wanted = mine + sum(sizes)
        assert bool(refused) == (wanted > bound)
        assert channel.budget.used.calls == model.asked.total() == min(wanted, bound) == channel.counts.calls + client.counts.calls
        assert channel.budget.reserved == Amount(calls=0)

    asyncio.run(caller())


def test_one_interrupt_stops_a_run_whose_ranker_hangs(log_file: Path, tmp_path: Path) -> None:
    """Ctrl-C while a cohort waits for the ranker: the run stops at once, not after the time-out of a question."""
    silent = iter([False, *[True] * 10**6])
    with FaultServer(lambda body: hang(300) if next(silent) else highest_first(body)) as hanging:
        head = [sys.executable, "-m", "workbench.cli.main", "simulate", "--store", str(tmp_path / "store.sqlite")]
        command = [*head, "--data", str(log_file), *AGENTS, *arm(hanging)]
        child = started(command)
        deadline = time.monotonic() + 120
        while len(hanging.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 4, err
        assert "interrupted" in one_line_error(err)
        assert "pending" not in err
    with Store.open(tmp_path / "store.sqlite") as store:
        (run,) = store.runs()
        assert (run.status, run.pages) == ("stopped", 0)


def test_an_interrupt_drops_what_a_caller_without_a_loop_has_asked(films: Dataset, interrupt: Callable[[], None]) -> None:
    def press(body: dict[str, Any]) -> Step:
        interrupt()
        return hang(300)

    with FaultServer(press) as hanging:
        settings = {"model": f"vllm:test@{hanging.url}", "template": "plain", "first_stage": "popularity", "candidates": 5}
        ranker = create("llm", **settings).fit(films)
        with pytest.raises(KeyboardInterrupt):
            ranker.recommend(Histories.of([[0, 1]]), 5)
        assert hanging.wait_idle()


def test_channels_nest_and_close(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        assert open_channel() is None
        with ranking_through(store) as outer:
            with ranking_through(store) as inner:
                assert open_channel() is inner
            assert open_channel() is outer
        assert open_channel() is None
