"""GEPA on a model whose sensitivity to prompts is planted, through the real package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.chat import Budget, BudgetExceeded, MemoryCache, ResponseCache, connect
from agents.seeding import stream
from recsys_core.errors import DataError, UnavailableError
from tests.workbench.landscape import rankers, rows
from workbench.prompts.crossing import Crossing
from workbench.prompts.listwise import Listwise
from workbench.prompts.proposing import ChatProposer, ProposerError
from workbench.prompts.ranked import Ranked
from workbench.prompts.starting import PLAIN
from workbench.prompts.tasks import Row
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

pytest.importorskip("gepa", reason="the gepa extra is not installed")
pytest.importorskip("langchain_core")

from gepa.core.adapter import EvaluationBatch
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from workbench.prompts.optimizers.gepa import Adapter, Gepa

HINTS = ("Be bold.", "Mind the length of titles.", "Weigh the latest choices most.", "Count to ten.", "Prefer sequels.", "Read backwards.")
GOOD = "Weigh the latest choices most."


def planted(template: Template) -> float:
    """One hint is worth much, the others nothing."""
    return 0.9 if GOOD in template.task else 0.0


def null(template: Template) -> float:
    return 0.3


class Scripted:
    """Proposes the task with one more hint, drawn from the question; answers equal questions with equal repeat equally."""

    def __init__(self, hints: tuple[str, ...] = HINTS) -> None:
        self.hints = hints
        self.asked: list[tuple[str, int]] = []

    async def ask(self, text: str, repeat: int = 0) -> str:
        self.asked.append((text, repeat))
        task = text.split('<section name="task">\n')[1].split("\n</section>")[0]
        hint = self.hints[stream(text, repeat).integers(len(self.hints))]
        return f'The mistakes have much in common.\n<section name="task">\n{task} {hint}\n</section>'


def trials(quality: Callable[[Template], float], seed: int = 0, search: int = 60, start: Template = PLAIN) -> Trials:
    return Trials(start, rows(f"train{seed}", 30), rows(f"search{seed}", search), rankers(quality, seed=seed))


async def test_finds_what_is_planted_within_its_budget() -> None:
    """0.9 is worth about .2 of MRR; 12 rounds or more with 6 hints miss the good one with chance .11 at most."""
    found, claimed = 0, 0
    for seed in range(4):
        tried = trials(planted, seed, search=40)
        outcome = await Gepa(Scripted(), max_metric_calls=600, seed=seed).search(tried)
        assert len({(t.template.version, row.id) for t in tried.tried for row in t.rows}) <= 600
        found += bool(outcome.finalists) and GOOD in outcome.finalists[0].task
        claimed += outcome.claimed
        assert not outcome.claimed or GOOD in outcome.finalists[0].task
    assert found >= 3
    assert claimed >= 2


async def test_claims_nothing_of_a_null_landscape() -> None:
    outcomes = [await Gepa(Scripted(), max_metric_calls=140, seed=seed).search(trials(null, seed, search=20)) for seed in range(12)]
    assert sum(outcome.claimed for outcome in outcomes) <= 1


async def test_equal_seeds_give_equal_outcomes_and_a_replay_asks_nothing_new() -> None:
    first, again = Scripted(), Scripted()
    a = await Gepa(first, seed=3).search(trials(planted, search=20))
    b = await Gepa(again, seed=3).search(trials(planted, search=20))
    assert [t.version for t in a.finalists] == [t.version for t in b.finalists]
    assert (a.claimed, a.note) == (b.claimed, b.note)
    assert first.asked == again.asked
    assert len(set(first.asked)) == len(first.asked) > 5, "a question is asked twice only under another repeat index"


async def test_lineage_authors_and_features() -> None:
    tried = trials(planted)
    outcome = await Gepa(Scripted(), seed=1).search(tried)
    known = {t.template.version for t in tried.tried}
    for template in outcome.finalists:
        assert template.author == "gepa"
        assert template.parents[0] in known
        assert template.features == PLAIN.features


class Broken(Scripted):
    """Fails, from some question on, with an error of the test's choice."""

    def __init__(self, error: Exception, after: int = 2) -> None:
        super().__init__()
        self.error, self.after = error, after

    async def ask(self, text: str, repeat: int = 0) -> str:
        if len(self.asked) >= self.after:
            self.asked.append((text, repeat))
            raise self.error
        return await super().ask(text, repeat)


@pytest.mark.parametrize("error", [ProposerError("down"), BudgetExceeded("spent"), UnavailableError("gone"), KeyError("a bug")])
async def test_a_reflection_model_that_fails_is_loud(error: Exception) -> None:
    proposer = Broken(error)
    with pytest.raises(type(error)) as raised:
        await Gepa(proposer).search(trials(planted))
    assert raised.value is error
    assert len(proposer.asked) == 3, "gepa asks again after an exception that it can catch"


async def test_a_ranker_that_fails_is_loud() -> None:
    class Spent:
        template = PLAIN

        def calls(self, row: Row) -> int:
            return 1

        async def rank(self, given: list[Row], repeat: int = 0) -> list[Ranked]:
            raise BudgetExceeded("tokens are spent")

    tried = Trials(PLAIN, rows("train", 9), rows("search", 9), lambda template: Spent() if template != PLAIN else rankers(null)(template))
    with pytest.raises(BudgetExceeded, match="tokens are spent"):
        await Gepa(Scripted()).search(tried)


async def test_what_fails_in_the_feedback_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.prompts.optimizers.gepa.feedback", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await Gepa(Scripted()).search(trials(null))


class Breaking(Scripted):
    """Breaks the template first, and writes a good one once it is told why that could not be taken."""

    async def ask(self, text: str, repeat: int = 0) -> str:
        if "could not be taken" in text:
            return await super().ask(text, repeat)
        self.asked.append((text, repeat))
        return '<section name="candidates">\nNo placeholder here.\n</section>'


async def test_a_broken_proposal_is_refused_with_its_reason_and_asked_for_again() -> None:
    proposer, tried = Breaking(), trials(planted)
    outcome = await Gepa(proposer).search(tried)
    assert outcome.finalists
    assert all("candidates" in refused.why for refused in tried.rejected[:1])
    assert any("could not be taken" in text and "{candidates} 0 times" in text for text, _ in proposer.asked)


async def test_a_proposer_that_never_gives_a_template_ends_with_the_budget() -> None:
    class Chatter(Scripted):
        async def ask(self, text: str, repeat: int = 0) -> str:
            self.asked.append((text, repeat))
            return "I would rather talk about the weather."

    proposer, tried = Chatter(), trials(planted)
    outcome = await Gepa(proposer, max_metric_calls=140).search(tried)
    assert (outcome.finalists, outcome.claimed) == ((), False)
    assert "0 proposals" in outcome.note
    assert len(tried.rejected) == len(proposer.asked) > 3
    assert "talk about the weather" in proposer.asked[-1][0], "refusals are told"


async def on_loop(body: Callable[[Adapter, Trials], Any], proposer: Any = None) -> Any:
    """Runs a body as gepa would run: in a thread, against the loop."""
    tried, crossing = trials(planted, search=8), Crossing()
    adapter = Adapter(crossing, tried, proposer or Scripted())
    return await crossing.run(lambda: body(adapter, tried))


async def test_adapter_scores_rows_and_traces_them() -> None:
    def body(adapter: Adapter, tried: Trials) -> tuple[Any, Any]:
        batch = [tried.train[2], tried.train[0], tried.train[2]]
        candidate = adapter.candidate(PLAIN)
        return adapter.evaluate(batch, dict(candidate)), adapter.evaluate(batch, candidate, capture_traces=True)

    plain, traced = await on_loop(body)
    assert plain.trajectories is None
    assert plain.scores == traced.scores
    assert [trace.rows[0].id for trace in traced.trajectories] == [output.row for output in traced.outputs]
    assert [output.row for output in traced.outputs] == ["train0-2", "train0-0", "train0-2"]
    assert traced.scores[0] == traced.scores[2]
    assert all(isinstance(score, float) and 0 <= score <= 1 for score in traced.scores)


async def test_adapter_shows_ranks_and_right_answers() -> None:
    def body(adapter: Adapter, tried: Trials) -> tuple[Any, EvaluationBatch]:
        batch = adapter.evaluate(list(tried.train[:5]), adapter.candidate(PLAIN), capture_traces=True)
        return adapter.make_reflective_dataset(adapter.candidate(PLAIN), batch, ["task", "output"]), batch

    dataset, batch = await on_loop(body)
    assert set(dataset) == {"task", "output"}
    assert json.loads(json.dumps(dataset)) == dataset
    (record,) = dataset["task"]
    assert record["Feedback"].count("should be 1st") == sum(score < 1 for score in batch.scores)


BROKEN = st.sampled_from(["", "{candidates}{candidates}", "no slot", "\x00{candidates}"])


@given(text=BROKEN)
async def test_adapter_scores_a_candidate_that_is_no_template_as_rejected(text: str) -> None:
    def body(adapter: Adapter, tried: Trials) -> None:
        candidate = adapter.candidate(PLAIN) | {"candidates": text}
        batch = adapter.evaluate(list(tried.train[:4]), candidate, capture_traces=True)
        assert batch.scores == [0.0] * 4
        assert batch.outputs == [None] * 4
        dataset = adapter.make_reflective_dataset(candidate, batch, ["task"])
        assert "template 'plain': candidates" in dataset["task"][0]["Feedback"]
        assert len(tried.rejected) == 1
        assert not tried.tried
        assert adapter.reflect(candidate, dataset, ["task"]).keys() == {"task"}

    await on_loop(body)


async def test_adapter_changes_only_the_components_it_is_asked_to() -> None:
    def body(adapter: Adapter, tried: Trials) -> None:
        candidate = adapter.candidate(PLAIN)
        batch = adapter.evaluate(list(tried.train[:3]), candidate, capture_traces=True)
        assert adapter.reflect(candidate, adapter.make_reflective_dataset(candidate, batch, ["role"]), ["role"]) == {}
        assert adapter.reflect(candidate, adapter.make_reflective_dataset(candidate, batch, ["task"]), ["task"]).keys() == {"task"}

    await on_loop(body)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"max_metric_calls": 100}, "give at least 126"), ({"minibatch": 0}, "minibatch is 0"), ({"attempts": 0}, "attempts 0")],
)
async def test_bad_settings(settings: dict[str, int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        await Gepa(Scripted(), **settings).search(trials(planted))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.prompts.optimizers.gepa.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match=r"pip install '\.\[gepa\]'"):
        Gepa(Scripted())


async def test_without_train_rows() -> None:
    with pytest.raises(DataError, match="no train rows"):
        await Gepa(Scripted()).search(Trials(PLAIN, [], rows("search", 9), rankers(null)))


class Both(BaseChatModel):
    """Ranks and proposes in words: in order of the ids, or backwards if the prompt says so, and every proposal says so."""

    asked: list[str] = []  # noqa: RUF012 - a field, copied for each model

    @property
    def _llm_type(self) -> str:
        return "both"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        text = str(messages[-1].text)
        self.asked.append(text)
        if "<section" in text:
            said = '<section name="task">\nRank backwards.\n</section>'
        else:
            ids = re.findall(r"^(C\d+)\.", text, re.MULTILINE)
            said = " > ".join(reversed(ids) if "backwards" in text else ids)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])


async def through_clients(model: Both, cache: ResponseCache, budget: Budget | None = None) -> Any:
    client = connect(model, cache=cache, budget=budget)
    last = [Row(f"{row.id}", row.history, row.candidates, {row.candidates[-1].id: 1.0}) for row in rows("both", 24)]
    tried = Trials(PLAIN, last[:8], last[8:], lambda template: Listwise(client, template))
    return await Gepa(ChatProposer(client), max_metric_calls=80).search(tried)


async def test_through_the_real_client_a_replay_sends_nothing() -> None:
    """The planted answer is always last, so 'backwards' takes MRR from .1 to 1."""
    cache, model, again = MemoryCache(), Both(), Both()
    outcome = await through_clients(model, cache)
    assert outcome.claimed
    assert outcome.finalists[0].task == "Rank backwards."
    assert model.asked
    assert (await through_clients(again, cache)).finalists == outcome.finalists
    assert again.asked == []


async def test_a_stopped_search_goes_on_where_it_was() -> None:
    cache, models = MemoryCache(), [Both(), Both(), Both()]
    for model in models[:2]:
        with pytest.raises(BudgetExceeded):
            await through_clients(model, cache, Budget(calls=20))
        assert len(model.asked) == 20
    outcome = await through_clients(models[2], cache)
    whole = Both()
    assert (await through_clients(whole, MemoryCache())).finalists == outcome.finalists
    assert sorted(text for model in models for text in model.asked) == sorted(whole.asked)
