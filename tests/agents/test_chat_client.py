"""The client against a real server that fails on purpose, through the real OpenAI SDK and ChatOpenAI."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import suppress

import pytest

from agents.chat import (
    Budget,
    BudgetExceeded,
    CallFailed,
    CallRecord,
    ChatClient,
    ChatRequest,
    MemoryCache,
    Message,
    Price,
    ScoreRequest,
    connect,
)
from recsys_core.errors import DataError, UnavailableError, WorkbenchError
from tests.agents.fault_server import FaultServer, delayed, drip, hang, raw, say, status, truncated

pytest.importorskip("langchain_openai")


def question(text: str = "hello", **settings: object) -> ChatRequest:
    return ChatRequest((Message("system", "be brief"), Message("user", text)), **settings)  # type: ignore[arg-type]


def client(server: FaultServer, **settings: object) -> ChatClient:
    return connect(f"vllm:test@{server.url}", **{"backoff": 0.01, "timeout": 5.0, **settings})  # type: ignore[arg-type]


def one_line(error: BaseException) -> str:
    assert isinstance(error, WorkbenchError)
    assert "\n" not in str(error)
    return str(error)


async def test_an_answer_its_record_and_what_was_sent() -> None:
    records: list[CallRecord] = []
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    with FaultServer([say('{"a":1}', 100, 20)]) as server:
        c = client(server, on_call=records.append, price=Price(1.0, 10.0))
        response = await c.ask(question(schema=schema, max_tokens=33, temperature=0.5, seed=7))
    assert (response.text, response.prompt_tokens, response.completion_tokens) == ('{"a":1}', 100, 20)
    body = server.requests[0].body
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (33, 0.5, 7)
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    (record,) = records
    assert (record.kind, record.cached, record.prompt_tokens, record.completion_tokens, record.error) == ("chat", False, 100, 20, "")
    assert record.cost == pytest.approx((100 * 1.0 + 20 * 10.0) / 1e6)
    assert (c.counts.calls, c.counts.failures, c.counts.retries) == (1, 0, 0)


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), raw(b'{"choices": [{"mess'), raw(b"<html>oops</html>", "text/html"), raw(b"{}"), truncated()],
    ids=["500", "503", "429", "malformed", "web page", "other shape", "truncated"],
)
async def test_a_passing_fault_is_retried_and_counted(fault: object) -> None:
    with FaultServer([fault, fault, say("fine")]) as server:  # type: ignore[list-item]
        c = client(server)
        assert (await c.ask(question())).text == "fine"
    assert len(server.requests) == 3, "each retry is ours and counted, none the SDK's own"
    assert (c.counts.calls, c.counts.retries, c.counts.failures) == (1, 2, 0)


async def test_retries_are_bounded_and_the_failure_is_typed_and_recorded() -> None:
    records: list[CallRecord] = []
    with FaultServer([status(500)]) as server:
        c = client(server, retries=2, on_call=records.append)
        with pytest.raises(CallFailed, match="HTTP 500") as failed:
            await c.ask(question())
        assert "3 attempts" in one_line(failed.value)
    assert len(server.requests) == 3
    assert c.counts.failures == 1
    assert records[0].retries == 2
    assert "500" in records[0].error


async def test_retry_after_is_honoured_within_a_bound() -> None:
    with FaultServer([status(429, retry_after=0.4), say("ok")]) as server:
        started = time.monotonic()
        await client(server).ask(question())
        assert time.monotonic() - started >= 0.4
    with FaultServer([status(429, retry_after=3600), say("ok")]) as server:
        with pytest.raises(CallFailed, match="3600 s"):
            await client(server).ask(question())
        assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [hang(), drip("slow", 0.05)], ids=["hang", "drip"])
async def test_a_hang_is_cut_and_its_connection_freed(fault: object) -> None:
    with FaultServer([fault, say("fine")]) as server:  # type: ignore[list-item]
        c = client(server, timeout=0.4)
        started = time.monotonic()
        assert (await c.ask(question())).text == "fine"
        assert time.monotonic() - started < 3
        assert server.wait_idle(), "the cut call's connection is closed"
    assert c.counts.retries == 1


@pytest.mark.parametrize("code", [401, 403, 404])
async def test_an_endpoint_that_will_never_answer_stops_everything_at_once(code: int) -> None:
    with FaultServer([status(code, "bad key or model")]) as server:
        c = client(server)
        for _ in range(2):
            with pytest.raises(UnavailableError) as error:
                await c.ask(question())
        assert server.url in one_line(error.value)
        assert "bad key or model" in str(error.value)
    assert len(server.requests) == 1


async def test_a_spent_quota_is_not_worth_retrying() -> None:
    with FaultServer([status(429, "quota", error_code="insufficient_quota")]) as server, pytest.raises(UnavailableError, match="quota"):
        await client(server).ask(question())
    assert len(server.requests) == 1


async def test_nobody_listening_is_one_line_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(UnavailableError) as error:
        await connect(f"vllm:test@{url}", backoff=5.0).ask(question())
    assert url in one_line(error.value)
    assert time.monotonic() - started < 3


async def test_a_rejected_question_fails_alone() -> None:
    def script(body: dict) -> object:
        return status(400, "too long") if "bad" in str(body["messages"]) else say("ok")

    with FaultServer(script) as server:  # type: ignore[arg-type]
        c = client(server)
        for i in range(12):
            with pytest.raises(CallFailed, match="too long"):
                await c.ask(question(f"bad {i}"))
        assert (await c.ask(question("good"))).text == "ok", "bad questions do not open the breaker"
    assert len(server.requests) == 13


async def test_the_breaker_opens_after_eight_failed_questions() -> None:
    with FaultServer([status(500)]) as server:
        c = client(server, retries=0)
        for i in range(7):
            with pytest.raises(CallFailed):
                await c.ask(question(str(i)))
        for i in range(7, 10):
            with pytest.raises(UnavailableError, match="8 questions in a row"):
                await c.ask(question(str(i)))
    assert len(server.requests) == 8


async def test_garbage_is_asked_again_a_bounded_number_of_times() -> None:
    def parse(text: str) -> int:
        number = json.loads(text)["watch"][0]
        if number not in (1, 2, 3):
            raise ValueError(f"item number {number} is not on the page")
        return int(number)

    with FaultServer([say("as an AI"), say('{"watch":[77]}'), say('{"watch":[2]}')]) as server:
        c = client(server)
        answer = await c.ask_json(question(), parse)
    assert (answer.value, answer.error, c.counts.parse_failures) == (2, "", 2)
    assert len(set(answer.keys)) == 3
    assert [r.body["temperature"] for r in server.requests] == [0.0, 0.7, 0.7]
    assert len({r.body["seed"] for r in server.requests}) == 3

    with FaultServer([say('{"watch":[77]}')]) as server:
        c = client(server, retries=2)
        answer = await c.ask_json(question(), parse)
    assert answer.value is None
    assert "77 is not on the page" in answer.error
    assert (len(server.requests), c.counts.parse_failures) == (3, 3)


async def test_a_cut_answer_is_an_unusable_answer_not_a_crash() -> None:
    with FaultServer([say('{"watch":[1', finish="length"), say("[1]")]) as server:
        c = client(server)
        answer = await c.ask_json(question(schema={"type": "array"}), json.loads)
    assert (answer.value, c.counts.parse_failures) == ([1], 1)


async def test_a_failed_call_inside_a_structured_question_is_an_answer_without_value() -> None:
    with FaultServer([status(500)]) as server:
        answer = await client(server, retries=1).ask_json(question(), json.loads)
    assert answer.value is None
    assert "HTTP 500" in answer.error


async def test_the_cache_answers_the_second_time_and_across_clients() -> None:
    cache, records = MemoryCache(), []
    with FaultServer([say("once", 10, 5)]) as server:
        first = await client(server, cache=cache).ask(question())
        c = client(server, cache=cache, on_call=records.append)
        assert await c.ask(question()) == first
        assert len(server.requests) == 1
        await c.ask(question(repeat=1))
        assert len(server.requests) == 2, "a wanted repetition is a question of its own"
    assert [r.cached for r in records] == [True, False]
    assert (c.counts.calls, c.counts.cache_hits, c.counts.prompt_tokens) == (1, 1, 10)


async def test_equal_questions_in_flight_are_asked_once() -> None:
    with FaultServer([delayed(say("shared"), 0.2)]) as server:
        c = client(server)
        answers = await asyncio.gather(*(c.ask(question()) for _ in range(10)))
        assert {a.text for a in answers} == {"shared"}
        assert len(server.requests) == 1
        assert (c.counts.calls, c.counts.cache_hits) == (1, 9)

        leader, follower = (asyncio.create_task(c.ask(question("two"))) for _ in range(2))
        await asyncio.sleep(0.05)
        leader.cancel()
        assert (await follower).text == "shared", "a cancelled waiter leaves the others theirs"
        assert len(server.requests) == 2


async def test_cancelling_the_only_waiter_hangs_up() -> None:
    with FaultServer([hang()]) as server:
        task = asyncio.create_task(client(server, timeout=30).ask(question()))
        while not server.open:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        assert server.wait_idle()


async def test_concurrency_is_bounded() -> None:
    with FaultServer([delayed(say("ok"), 0.05)]) as server:
        c = client(server, concurrency=3)
        await asyncio.gather(*(c.ask(question(str(i))) for i in range(12)))
        assert server.most_open == 3


async def test_a_budget_stops_before_its_bound_and_names_it() -> None:
    with FaultServer([say("ok", 30, 10)]) as server:
        c = client(server, budget=Budget(calls=5))
        done = await asyncio.gather(*(c.ask(question(str(i))) for i in range(9)), return_exceptions=True)
        assert len(server.requests) == 5
        refused = [d for d in done if isinstance(d, BudgetExceeded)]
        assert len(refused) == 4
        assert "calls budget of 5" in one_line(refused[0])
        assert refused[0].exit_code == 4

        tokens = Budget(tokens=1000)
        c = client(server, budget=tokens)
        done = await asyncio.gather(*(c.ask(question(str(i))) for i in range(100)), return_exceptions=True)
        assert any("tokens budget of 1000" in one_line(d) for d in done if isinstance(d, BaseException))
        assert 0 < tokens.used.tokens <= 1000
        assert tokens.reserved.tokens == 0


async def test_retries_count_against_the_budget() -> None:
    with FaultServer([status(500)]) as server:
        with pytest.raises(BudgetExceeded):
            await client(server, retries=9, budget=Budget(calls=3)).ask(question())
        assert len(server.requests) == 3


async def test_wall_time_cuts_a_call_short() -> None:
    with FaultServer([hang()]) as server:
        started = time.monotonic()
        with pytest.raises(BudgetExceeded, match=r"wall-time budget of 0\.3 s"):
            await client(server, timeout=30, budget=Budget(wall=0.3)).ask(question())
        assert time.monotonic() - started < 2


async def test_an_answer_lost_on_the_way_is_booked_as_if_it_had_come() -> None:
    budget = Budget(tokens=10_000)
    with FaultServer([hang(), say("ok", 30, 10)]) as server:
        await client(server, timeout=0.3, budget=budget).ask(question(max_tokens=50))
    assert budget.used.tokens > 50 + 40
    assert budget.used.calls == 2


@pytest.mark.parametrize(
    ("faults", "bound", "attempts"),
    [
        ([hang(), status(500), say("ok", 30, 10)], Budget(), 3),
        ([hang()], Budget(), 3),
        ([truncated(), raw(b"{}"), status(500)], Budget(calls=2), 2),
        ([hang()], Budget(wall=0.2), 1),
    ],
    ids=["answered at last", "given up", "out of budget", "out of time"],
)
async def test_the_record_of_a_question_says_all_that_the_budget_was_charged(faults: list, bound: Budget, attempts: int) -> None:
    records: list[CallRecord] = []
    with FaultServer(faults) as server:
        c = client(server, timeout=0.3, retries=2, budget=bound, price=Price(1.0, 10.0), on_call=records.append)
        with suppress(CallFailed, BudgetExceeded):
            await c.ask(question(max_tokens=50))
    (record,) = records
    assert record.retries + 1 == bound.used.calls == attempts
    assert record.prompt_tokens + record.completion_tokens == bound.used.tokens > 0
    assert record.cost == pytest.approx(bound.used.cost)
    assert bool(record.error) == (len(server.requests) != 3 or len(faults) == 1)


async def test_a_question_that_is_cancelled_is_recorded_as_if_it_had_been_answered() -> None:
    records: list[CallRecord] = []
    with FaultServer([hang()]) as server:
        c = client(server, on_call=records.append)
        task = asyncio.create_task(c.ask(question(max_tokens=50)))
        while not server.open:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.05)
    (record,) = records
    assert record.completion_tokens == 50
    assert record.prompt_tokens + 50 == c.budget.used.tokens
    assert record.error == "stopped while it was asked"


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"total_tokens": 120}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -9000, "completion_tokens": -1},
     {"prompt_tokens": 10**30, "completion_tokens": 10**30}, {"prompt_tokens": "many", "completion_tokens": 2.5, "total_tokens": "all"}],
)  # fmt: skip
async def test_a_count_of_tokens_that_cannot_be_counts_as_the_bound(usage: object) -> None:
    answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "well"}}], "usage": usage}
    with FaultServer([raw(json.dumps(answer).encode())]) as server:
        c = client(server, cache=MemoryCache())
        response = await c.ask(question(max_tokens=3))
    assert (response.text, response.completion_tokens) == ("well", 3)
    assert response.prompt_tokens > len("be briefhello")
    assert c.budget.used.tokens == response.prompt_tokens + 3


async def test_a_remote_model_does_not_score() -> None:
    with FaultServer([say("x")]) as server:
        c = client(server)
        assert not c.can_score
        with pytest.raises(UnavailableError, match="embedded"):
            await c.score(ScoreRequest("a", ("b",)))


async def test_a_chat_model_given_in_python_has_its_own_retries_turned_off() -> None:
    from langchain_openai import ChatOpenAI

    with FaultServer([status(500)]) as server:
        model = ChatOpenAI(model="m", base_url=server.url, api_key="k", max_retries=5)  # type: ignore[arg-type]
        with pytest.raises(CallFailed):
            await connect(model, retries=0).ask(question())
        assert len(server.requests) == 1


async def test_any_langchain_model_will_do() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    c = connect(FakeListChatModel(responses=["one", "two"]), cache=MemoryCache())
    assert [(await c.ask(question(t))).text for t in ("a", "b", "a")] == ["one", "two", "one"]


def test_a_cost_budget_needs_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_LLM_PRICE", raising=False)
    with pytest.raises(DataError, match="WORKBENCH_LLM_PRICE"):
        connect("vllm:m@http://127.0.0.1:1/v1", budget=Budget(cost=1.0))
    monkeypatch.setenv("WORKBENCH_LLM_PRICE", "cheap")
    with pytest.raises(DataError, match="'cheap'"):
        connect("vllm:m@http://127.0.0.1:1/v1")
