"""What a proposer may change, how its answer is read, and how a chat model is asked for one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.chat import Budget, BudgetExceeded, MemoryCache, connect
from recsys_core.errors import DataError, WorkbenchError
from tests.workbench.landscape import rankers, rows
from workbench.prompts.proposing import ChatProposer, ProposerError, propose, quoted, read_proposal, rules, sections_text
from workbench.prompts.starting import CHOICE, LIKELIHOOD, PLAIN, PO4ISR, POINTWISE, STARTING, showing
from workbench.prompts.templates import SECTIONS, Template
from workbench.prompts.trials import Trials

pytest.importorskip("langchain_core")

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

EDITABLE = ("role", "task", "history", "candidates", "reasoning", "output")
LOCKED = [name for name in Template.__dataclass_fields__ if name not in (*EDITABLE, "parents", "author")]
NEW = "Rank by the latest titles first."


def section(name: str, text: str) -> str:
    return f'<section name="{name}">\n{text}\n</section>'


def outcome(answer: str, template: Template = PLAIN) -> Template | str:
    """The revision, or the refusal's words."""
    try:
        return read_proposal(answer, template, "me")
    except DataError as refused:
        return str(refused)


def refusal(answer: str, template: Template = PLAIN) -> str:
    refused = outcome(answer, template)
    assert isinstance(refused, str), refused
    return refused


PIECES = st.sampled_from(
    [
        *("{count}", "{{count}}", "${count}", "{ history }", "{history}", "{candidates}", "{age}", '{"a": [1]}', "{", "}"),
        *(f'<section name="{name}">' for name in (*EDITABLE, "history_item", "x")),
        *("<think>", "</think>", "</section>", "<section>", "```", "```xml\n", "\n", "\n\n", " ", "\r\n"),
        *("C1 > C2 > C3", "Yes or No", "C2", "\x07", "\u2028", "ß", "\udc00"),
    ]
)
NAMES = st.sampled_from([*EDITABLE, "history_item", "fields", "x"])
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=16).map("".join)
ANSWERS = st.lists(TEXTS | st.builds(section, NAMES, TEXTS), max_size=6).map("\n".join)


@st.composite
def templates(draw: st.DrawFn) -> Template:
    plain = TEXTS.map(lambda text: re.sub(r"[\r\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "", text))
    words = plain.map(lambda text: re.sub(r"\{\W*(history|candidates)\W*\}", "", text))
    texts = {name: draw(plain) for name in ("role", "task", "reasoning", "output")}
    return Template(
        "made",
        "listwise",
        history=f"{draw(words)} {{history}}",
        candidates=f"{draw(words)} {{candidates}}",
        history_length=draw(st.integers(0, 2)),
        **texts,
    )


@settings(max_examples=100, deadline=None)
@given(templates())
def test_what_is_shown_is_read_back_as_no_change(template: Template) -> None:
    assert re.search("changes nothing|holds no section", refusal(sections_text(template) + "\n", template))


@settings(max_examples=150, deadline=None)
@given(ANSWERS, st.sampled_from([*STARTING.values(), showing(PLAIN, ("category",))]))
@example('<section name="history">\n{history} {history}\n</section>', PLAIN)
@example(f'<section name="task">\n{"x" * 30_000}\n</section>', PLAIN)
def test_no_answer_breaks_what_is_locked(answer: str, template: Template) -> None:
    revised = outcome(answer, template)
    if isinstance(revised, str):
        assert len(revised.splitlines()) == 1
        return
    assert revised.features == template.features
    assert [getattr(revised, name) for name in LOCKED] == [getattr(template, name) for name in LOCKED]
    assert revised.version != template.version
    assert revised.parents == (template.version,)
    # Whatever the words are, every candidate and every item of the history reaches the prompt.
    row = rows("train", 1)[0]
    text = revised.render(row.history, row.candidates).text
    if template.kind != "likelihood":
        assert all(item.title in text for item in (*row.history, *row.candidates))


@pytest.mark.parametrize(
    "answer",
    [
        section("task", NEW),
        f"Sure! Here it is:\n\n```xml\n{section('task', NEW)}\n```\nI hope it helps.",
        f"<section name='TASK'>{NEW}</section>",
        f"<section name=task >\n\n  {NEW}\n\n</ section >",
        f"**<section name=“task”>**\n```\n{NEW}\n```\n</section>".replace("**\n```", "\n```"),
        f"<think>\nMaybe\n{section('task', 'a draft')}\n</think>\n{section('task', NEW)}",
        f"Thoughts without an opening tag.\n{section('task', 'a draft')}</think>\n\n{section('task', NEW)}",
        f"{section('task', 'a first try')}\nNo, better:\n{section('task', NEW)}",
        f'I changed <section name="task"> as asked.\n{section("task", NEW)}',
        f'<section name="task">\n{NEW}\n<section name="reasoning">\n</section>',
        section("task", NEW).replace("\n", "\r\n"),
        f"{sections_text(PLAIN).replace(PLAIN.task, NEW)}",
        f"{section('history_item', '- {title} {abstract}')}\n{section('task', NEW)}",
    ],
)
def test_a_change_is_found_however_it_is_wrapped(answer: str) -> None:
    assert read_proposal(answer, PLAIN, "me") == PLAIN.revise("me", task=NEW)


def test_sections_left_out_stay_and_empty_ones_go() -> None:
    revised = read_proposal(section("reasoning", ""), PO4ISR, "me")
    assert revised == PO4ISR.revise("me", reasoning="")


@pytest.mark.parametrize("spelled", ["{count}", "${count}", "{{count}}", "{ Count }", "${ COUNT }"])
def test_a_placeholder_that_can_mean_one_thing_is_mended(spelled: str) -> None:
    assert read_proposal(section("task", f"Rank all {spelled} of them."), PLAIN, "me").task == "Rank all {count} of them."


def test_braces_that_are_no_placeholders_stay() -> None:
    literal = PLAIN.revise("me", task="Write {{count}} as it stands, and {anything}.")
    revised = read_proposal(section("task", "Still {{count}} and {anything}, like {{count}}."), literal, "me")
    assert revised.task == "Still {{count}} and {anything}, like {{count}}."
    json = 'As JSON: {"n": {count}, "ranking": ["C3", "C1"]}'
    assert read_proposal(section("output", json), PLAIN, "me").output == json


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("Your prompt is fine as it is.", "no section"),
        ("", "no section"),
        (section("task", PLAIN.task), "changes nothing"),
        (section("candidate_item", "{id} {abstract}"), "candidate_item cannot be changed"),
        (f'<section name="task">\n{NEW}', "not closed"),
        (f'{section("task", NEW)}\n<section name="output">\nAnswer with', "section output is not closed"),
        (section("task", "Rank for a person of age {age}."), "{age}"),
        (section("task", "Rank {candidates}."), "{candidates}"),
        (section("history", "Chosen before:"), "history holds {history} 0 times"),
        (section("candidates", "{candidates} or {candidates}"), "candidates holds {candidates} 2 times"),
        (section("task", "x" * 4001), "keep it to 4000"),
        (section("task", "bell \x07"), "'\\x07'"),
        (section("output", "Answer in prose."), "C3 > C1 > C2"),
        (section("output", ""), "C3 > C1 > C2"),
        ("<think>\nI never come to an end", "no section"),
    ],
)
def test_a_refusal_says_what_is_wrong(answer: str, told: str) -> None:
    assert told in refusal(answer)


@pytest.mark.parametrize(
    ("template", "taken", "refused"),
    [
        (PLAIN, "Answer as <START>C3, C1, C2<END> with all ids.", "Answer with the titles, best first."),
        (PLAIN, "1. C2\n2. C1\n3. C3", "Answer with one word."),
        (CHOICE, "Reply with a single id, like C4", "Reply with the ids in order, like C4 > C2"),
        (POINTWISE, "Say yes or no.\nAnswer:", "Give a mark from 1 to 5.\nAnswer:"),
    ],
)
def test_the_form_of_the_answer_must_stay_readable(template: Template, taken: str, refused: str) -> None:
    assert read_proposal(section("output", taken), template, "me").output == taken
    assert "form of the answer" in refusal(section("output", refused), template)


def test_a_form_that_never_showed_an_example_binds_nobody() -> None:
    free = PLAIN.revise("me", output="Answer as you like.")
    assert read_proposal(section("output", "Answer briefly."), free, "me").output == "Answer briefly."


def test_a_likelihood_template_offers_no_candidates_section_and_no_count() -> None:
    assert 'name="candidates"' not in sections_text(LIKELIHOOD)
    assert "{count}" not in rules(LIKELIHOOD)
    assert read_proposal(section("history", "Games I played:{history}"), LIKELIHOOD, "me").history == "Games I played:{history}"
    assert "{count}" in refusal(section("task", "One of {count}:"), LIKELIHOOD)
    assert "candidates cannot be changed" in refusal(section("candidates", "{candidates}"), LIKELIHOOD)


@pytest.mark.parametrize("template", STARTING.values(), ids=str)
def test_the_rules_name_what_may_be_written(template: Template) -> None:
    shown = re.findall(r'<section name="(\w+)">', sections_text(template))
    told = rules(template)
    assert set(shown) <= set(SECTIONS)
    assert all(name in told for name in shown)
    assert "name cannot be changed" in refusal(told, template)  # an echo is no proposal


def test_long_and_hostile_answers_are_read_at_once() -> None:
    started = time.monotonic()
    for text in ("{" * 100_000, "<section " * 20_000, "\n" * 100_000, "</think>" * 20_000, "`" * 100_000, "*" * 100_000):
        refusal(text)
        refusal(section("task", f"{text}{{x}}"))
    assert time.monotonic() - started < 5


@given(TEXTS)
def test_what_is_quoted_is_one_line_that_opens_no_section(text: str) -> None:
    line = quoted(text, 60)
    assert line
    assert len(line) <= 60
    assert line.splitlines() == [line]
    assert not re.search(r"<\s*/?\s*(section|think)\b", line, re.IGNORECASE)


class Scripted:
    """Gives these answers in turn and keeps what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, int]]()

    async def ask(self, text: str, repeat: int = 0) -> str:
        self.asked.append((text, repeat))
        return self.answers[len(self.asked) - 1]


def trials() -> Trials:
    return Trials(PLAIN, rows("train", 4), rows("search", 4), rankers(lambda _: 0.0))


def test_a_refusal_is_put_before_the_proposer() -> None:
    proposer, tried = Scripted("nothing", section("task", "for {age}"), section("task", NEW)), trials()
    revised = asyncio.run(propose(proposer, "question", PLAIN, tried, "me", repeat=2))
    assert revised == PLAIN.revise("me", task=NEW)
    assert [repeat for _, repeat in proposer.asked] == [6, 7, 8]
    assert proposer.asked[0][0] == "question"
    assert "no section" in proposer.asked[1][0]
    assert "{age}" in proposer.asked[2][0]
    assert [r.what for r in tried.rejected] == ["nothing", '‹section name="task"> for {age} ‹/section>']


def test_a_template_that_was_tried_is_no_proposal() -> None:
    tried = trials()
    asyncio.run(tried.measure(PLAIN.revise("me", task=NEW), tried.search))
    assert asyncio.run(propose(Scripted(*[section("task", NEW)] * 3), "question", PLAIN, tried, "me")) is None
    assert len(tried.rejected) == 3
    assert "tried before" in tried.rejected[0].why


class Saying(BaseChatModel):
    """Answers by a function of how often it was asked before; the function may raise."""

    say: Callable[[int], str]
    asked: list[Any]

    @property
    def _llm_type(self) -> str:
        return "saying"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.asked.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.say(len(self.asked) - 1)))])


def model(say: Callable[[int], str]) -> Saying:
    return Saying(say=say, asked=[])


def test_a_chat_model_is_asked_once_for_each_repetition() -> None:
    cache, chat = MemoryCache(), model(lambda n: f"answer {n}")

    async def session() -> list[str]:
        proposer = ChatProposer(connect(chat, cache=cache, backoff=0))
        return [await proposer.ask("why?"), await proposer.ask("why?", 1), await proposer.ask("why?"), await proposer.ask("so?")]

    first = asyncio.run(session())
    assert first == ["answer 0", "answer 1", "answer 0", "answer 2"]
    assert asyncio.run(session()) == first
    assert len(chat.asked) == 3


@pytest.mark.parametrize("blank", ["", " \n", "<think>\nstill thinking", "<think>all thought</think>\n"])
def test_blank_answers_are_asked_for_again_and_then_loud(blank: str) -> None:
    proposer = ChatProposer(connect(model(lambda n: blank if n < 2 else "words"), backoff=0))
    assert asyncio.run(proposer.ask("why?")) == "words"
    silent = model(lambda _: blank)
    with pytest.raises(ProposerError, match=r"gave nothing: .*\(4 tries\)"):
        asyncio.run(ChatProposer(connect(silent, backoff=0)).ask("why?"))
    assert len(silent.asked) == 4


def test_a_model_that_cannot_be_asked_ends_the_search() -> None:
    def broken(_: int) -> str:
        raise ConnectionError("nobody there")

    async def many() -> None:
        proposer = ChatProposer(connect(model(broken), retries=0, backoff=0))
        for n in range(12):  # the client calls an endpoint down after some failures, by another error
            with pytest.raises(ProposerError, match="nobody there") as raised:
                await proposer.ask("why?", n)
            assert isinstance(raised.value, WorkbenchError)

    asyncio.run(many())


def test_a_spent_budget_is_no_proposers_fault() -> None:
    with pytest.raises(BudgetExceeded):
        asyncio.run(ChatProposer(connect(model(lambda _: "words"), budget=Budget(calls=0))).ask("why?"))


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(DataError, match="max_tokens"):
        ChatProposer(connect(model(lambda _: "words")), max_tokens=0)
