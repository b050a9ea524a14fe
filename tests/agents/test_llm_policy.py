"""LLM agents: what they are told, how their answers are read, and what happens when there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import prompts
from agents.chat import Answer, CallFailed, ChatRequest, ScoreRequest, Scores, connect
from agents.llm import LLMPolicy, parse_answer, parse_reaction
from agents.persona import LogProfile, build_personas
from agents.statistical import StatisticalPolicy
from agents.types import FEELINGS, PageContext, PageItem
from recsys_core.data import Split
from recsys_core.errors import DataError
from tests.agents.fault_server import FaultServer, say

LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0)


class Scripted:
    """A client that answers from functions; agents.chat's own tests cover the real one."""

    model_id = "scripted"

    def __init__(self, answer: Callable[[ChatRequest], str], scores: Callable[[ScoreRequest], list[float]] | None = None) -> None:
        self.answer, self.scores, self.asked = answer, scores, []
        self.can_score = scores is not None

    async def ask_json(self, request: ChatRequest, parse: Callable[[str], Any]) -> Answer[Any]:
        self.asked.append(request)
        try:
            return Answer(parse(self.answer(request)), keys=("k",))
        except ValueError as error:
            return Answer(None, str(error), ("k",))

    async def score(self, request: ScoreRequest) -> Scores:
        self.asked.append(request)
        assert self.scores is not None
        return Scores(tuple(self.scores(request)), "s")


@pytest.fixture(scope="module")
def contexts(split: Split) -> list[PageContext]:
    profile, rng = LogProfile(split.train), np.random.default_rng(0)
    personas = build_personas(profile, np.arange(40))
    return [PageContext(p, 1, profile.page_items(rng.choice(80, 10, replace=False)), "", (), 3) for p in personas]


@pytest.fixture(scope="module")
def fallback(split: Split) -> StatisticalPolicy:
    return StatisticalPolicy.fit(split.train)


def take(*numbers: int, rating: float = 4, go_on: bool = True, feeling: str = "satisfied") -> str:
    return json.dumps({"take": [{"n": n, "rating": rating} for n in numbers], "feeling": feeling, "next": go_on})


async def test_an_answer_becomes_a_decision(contexts: list[PageContext], fallback: StatisticalPolicy) -> None:
    policy = LLMPolicy(Scripted(lambda r: take(2, 7, go_on=False)), fallback, LEVELS)  # type: ignore[arg-type]
    decision = (await policy.decide(contexts))[5]
    assert [(w.number, w.rating) for w in decision.watched] == [(2, 4.0), (7, 4.0)]
    assert decision.leave
    assert decision.preference == tuple(float(n in (2, 7)) for n in range(1, 11))
    assert decision.calls == ("k",)
    assert not decision.fallback


async def test_an_item_leaves_the_feeling_of_its_rating_and_a_page_the_told_one(
    contexts: list[PageContext], fallback: StatisticalPolicy
) -> None:
    usual = replace(contexts[0], persona=replace(contexts[0].persona, mean_rating=3.5, rating_std=1.0))
    for rating, feeling in ((1, "annoyed"), (5, "delighted")):
        answer = take(2, rating=rating, feeling="bored")
        (decision,) = await LLMPolicy(Scripted(lambda r, answer=answer: answer), fallback, LEVELS).decide([usual])  # type: ignore[arg-type, misc]
        assert (decision.feeling, [w.feeling for w in decision.watched]) == ("bored", [feeling])


async def test_an_unusable_answer_falls_back_and_says_so(contexts: list[PageContext], fallback: StatisticalPolicy) -> None:
    policy = LLMPolicy(Scripted(lambda r: take(11)), fallback, LEVELS)  # type: ignore[arg-type]
    decision, expected = (await policy.decide(contexts[:1]))[0], (await fallback.decide(contexts[:1]))[0]
    assert decision.fallback == "statistical: item number 11 is not on the page"
    assert decision.watched == expected.watched


async def test_failed_scores_fall_back_too(contexts: list[PageContext], fallback: StatisticalPolicy) -> None:
    def broken(request: ScoreRequest) -> list[float]:
        raise CallFailed("no answer")

    policy = LLMPolicy(Scripted(lambda r: take(), broken), fallback, LEVELS)  # type: ignore[arg-type]
    assert (await policy.decide(contexts[:1]))[0].fallback == "statistical: no answer"


async def test_likelihood_takes_what_scores_high_at_the_asked_rate(contexts: list[PageContext], fallback: StatisticalPolicy) -> None:
    def first_is_best(request: ScoreRequest) -> list[float]:
        return [float(-n) for n in range(len(request.continuations))]

    def react(request: ChatRequest) -> str:
        assert request.schema is not None
        count = request.schema["properties"].get("ratings", {}).get("minItems", 0)
        return json.dumps({"ratings": [5] * count, "feeling": "delighted"})

    policy = LLMPolicy(Scripted(react, first_is_best), fallback, LEVELS, take_rate=0.3)  # type: ignore[arg-type]
    assert policy.elicit == "likelihood"
    people = [replace(c.persona, activity=1 + c.persona.user % 3) for c in contexts]
    pages = [PageContext(p, page, c.items, "", (), 3) for p, c in zip(people, contexts, strict=True) for page in range(10)]
    decisions = await policy.decide(pages)
    assert not any(d.fallback for d in decisions)
    numbers = [w.number for d in decisions for w in d.watched]
    assert sum(n <= 5 for n in numbers) > 2 * sum(n > 5 for n in numbers)
    rates = np.array([len(d.watched) / 10 for d in decisions])
    activity = np.array([c.persona.activity for c in pages])
    assert abs(rates[activity == 2].mean() - 0.3) < 0.05
    assert rates[activity == 1].mean() < rates[activity == 2].mean() < rates[activity == 3].mean()


def test_likelihood_needs_a_model_that_scores(fallback: StatisticalPolicy) -> None:
    with pytest.raises(DataError, match="cannot score continuations"):
        LLMPolicy(Scripted(lambda r: take()), fallback, LEVELS, elicit="likelihood")  # type: ignore[arg-type]


def test_the_prompt_says_who_what_and_nothing_of_the_future(contexts: list[PageContext], split: Split) -> None:
    for context in contexts:
        text = prompts.decision_prompt(context, LEVELS)
        lines = re.findall(r"^(\d+)\. (.*) \| (.*) \| ([\d.]+)$", text, re.M)
        assert [int(n) for n, *_ in lines] == list(range(1, 11))
        assert [title for _, title, *_ in lines] == [i.title for i in context.items]
        assert len(text) < 1200
        outside = text.replace("\n".join(f"{n}. {t} | {g} | {m}" for n, t, g, m in lines), "")
        user = context.persona.user
        later = {split.train.title(int(split.valid.targets[user][0])), split.train.title(int(split.test.targets[user][0]))}
        assert not any(title in outside for title in later)


@given(st.text(max_size=300))
def test_a_title_cannot_open_a_line_of_its_own(title: str) -> None:
    item = PageItem(1, 0, title, (), 3.0, 1)
    assert len(prompts.page_text((item,)).splitlines()) == 1
    assert len(prompts.one_line(title)) <= 120


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_answer, parse_reaction):
        try:
            parsed = parse(text, (1, 2, 3), LEVELS)
        except (ValueError, KeyError, TypeError):
            continue
        assert {n for n, _ in parsed.taken} <= {1, 2, 3}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["n", "rating", "x"]), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, JSON, st.sampled_from([*FEELINGS, "smug"]), JSON)
def test_any_json_is_parsed_or_refused(taken: Any, ratings: Any, feeling: str, go_on: Any) -> None:
    answer, reaction = {"take": taken, "feeling": feeling, "next": go_on}, {"ratings": ratings, "feeling": feeling}
    for parse, body in ((parse_answer, answer), (parse_reaction, reaction)):
        try:
            parsed = parse(json.dumps(body), (1, 2, 3), LEVELS)
        except (ValueError, KeyError, TypeError):
            continue
        assert all(n in (1, 2, 3) and r in LEVELS for n, r in parsed.taken)
        assert parsed.feeling in FEELINGS
        assert parsed.go_on is (go_on if parse is parse_answer else True)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(LEVELS)), max_size=8))
def test_repeated_numbers_count_once(pairs: list[tuple[int, float]]) -> None:
    body = {"take": [{"n": n, "rating": r} for n, r in pairs], "feeling": "bored", "next": False}
    parsed = parse_answer(json.dumps(body), (1, 2, 3), LEVELS)
    first = {}
    for n, r in pairs:
        first.setdefault(n, r)
    assert dict(parsed.taken) == first


async def test_what_the_endpoint_is_sent(contexts: list[PageContext], fallback: StatisticalPolicy) -> None:
    pytest.importorskip("langchain_openai")
    with FaultServer([say(take(1))]) as server:
        policy = LLMPolicy(connect(f"vllm:test@{server.url}"), fallback, LEVELS)
        (decision,) = await policy.decide(contexts[:1])
    assert not decision.fallback
    body = server.requests[0].body
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["take"]["items"]["properties"]["n"]["enum"] == list(range(1, 11))
    assert schema["properties"]["take"]["items"]["properties"]["rating"]["enum"] == [1, 2, 3, 4, 5]
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
