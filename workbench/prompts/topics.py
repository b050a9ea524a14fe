"""TopicScore (Liu et al. 2024, arXiv 2312.10463): do the topics that a ranker sees in a history hold, and do they cover it?

A judge, itself a language model, is shown one item of the history and all stated topics, and says of each topic whether the item is about
it. A topic is correct if some item is about it; an item is covered if it is about some topic. RecPrompt counts over all users at once,
merges topics of similar embeddings first, and adds the topics of candidates to correctness. Here every row has its own two values, so that
intervals and paired tests speak of rows, topics are as stated, and the history alone is judged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from agents.chat import Answer, ChatClient, ChatRequest, Message, request_key
from recsys_core.errors import DataError
from workbench.prompts.asking import together
from workbench.prompts.metrics import Measured
from workbench.prompts.placeholders import shown
from workbench.prompts.ranked import Ranked, Reply
from workbench.prompts.reading import visible
from workbench.prompts.tasks import Item, Row
from workbench.prompts.templates import Template

CORRECTNESS, COMPLETENESS = "topic correctness", "topic completeness"
TOPICS = Template(
    "topics",
    "listwise",
    task="Rank the candidates by how likely this person is to choose them next.",
    history="Chosen so far, oldest first:\n{history}",
    candidates="Candidates:\n{candidates}",
    reasoning="First find the topics that run through what was chosen, then judge each candidate by them.",
    output="Write two lines and nothing else: the topics, set apart by semicolons, and the ids of all {count} candidates, best first:\n"
    "Topics: first topic; second topic\n"
    "Ranking: C3 > C1 > C2",
)
"""A prompt whose answers state topics."""
_SYSTEM = "You check whether an item is about given topics. Answer in JSON only."
_MOST, _LONGEST = 10, 80
"""Topics an answer may state, and characters of one; what is beyond is left out."""
_LINE = re.compile(r"^[\W\d_]*(?:[^\W\d_]+(?:['’][^\W\d_]+)?[ \t]+){0,4}topics?\b[^:：\n]*[:：](.*)$", re.IGNORECASE | re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*•–]|\(?\d{1,2}[.):])[ \t]*(.+)$")
_ANSWER_TAG = re.compile(r"</?(?:answer|ranking|output)>", re.IGNORECASE)
_JSON_TRIES = 50


@dataclass(frozen=True)
class Judged:
    """What one reply says of one row's history.

    topics: as stated; about: for each item of the history that the prompt showed, oldest first, whether it is about each topic; None where
    the judge gave no usable answer, which counts against the topics, so that no summary gains by confusing the judge.
    """

    row: str
    topics: tuple[str, ...]
    about: tuple[tuple[bool, ...] | None, ...]

    @property
    def correctness(self) -> float:
        """The share of topics that some item is about; 0 where none is stated."""
        held = [any(item[n] for item in self.about if item) for n in range(len(self.topics))]
        return fmean(held) if held else 0.0

    @property
    def completeness(self) -> float:
        """The share of items that are about some topic."""
        return fmean(any(item or ()) for item in self.about)


@dataclass(frozen=True, eq=False)
class TopicScore:
    """measured: `topic correctness` and `topic completeness` of each row, the mean over its replies.

    replies, silent: replies judged, and those that state no topic; verdicts, unusable: items that the judge was asked about, and those on
    which it gave no usable answer.
    """

    measured: Measured
    judged: tuple[Judged, ...]
    replies: int
    silent: int
    verdicts: int
    unusable: int

    def __str__(self) -> str:
        figures = (f"{name} {self.measured.mean(name):.3f} [{low:.3f}, {high:.3f}]" for name, (low, high) in self._intervals())
        asked = f"{self.silent} of {self.replies} replies state no topic, {self.unusable} of {self.verdicts} verdicts unusable"
        return f"{', '.join(figures)}; {asked}"

    def _intervals(self) -> Iterator[tuple[str, tuple[float, float]]]:
        return ((name, self.measured.interval(name)) for name in self.measured.values)


async def topic_score(judge: ChatClient, template: Template, rows: Sequence[Row], ranked: Sequence[Ranked]) -> TopicScore:
    """Judges what a ranker with this template wrote about each row's history; rows without a history are left out.

    The judge's answer is asked for again at most `judge.retries` times. Raises DataError where no row has a history or replies, or the
    template shows none, and BudgetExceeded and UnavailableError as rankers do.
    """
    if not template.history_length:
        raise DataError(f"template {template.name!r} shows no history (history_length 0), so its answers have no topics to be judged")
    pairs = [(row, reply) for row, one in zip(rows, ranked, strict=True) for reply in one.replies if row.history]
    if not pairs:
        raise DataError(f"none of {len(rows)} rows has a history and an answer about it; judge rows with both")
    judged = await together(_judged(judge, template, row, reply) for row, reply in pairs)
    names = list(dict.fromkeys(one.row for one in judged))
    of_row = {name: [one for one in judged if one.row == name] for name in names}
    values = {
        CORRECTNESS: np.array([fmean(one.correctness for one in of_row[name]) for name in names]),
        COMPLETENESS: np.array([fmean(one.completeness for one in of_row[name]) for name in names]),
    }
    verdicts = [item for one in judged if one.topics for item in one.about]
    return TopicScore(
        Measured(template.name, tuple(names), values),
        tuple(judged),
        replies=len(judged),
        silent=sum(not one.topics for one in judged),
        verdicts=len(verdicts),
        unusable=sum(item is None for item in verdicts),
    )


def stated_topics(text: str) -> tuple[str, ...]:
    """The topics that an answer states, its reasoning left out: at most 10, each once, on one line. Never raises.

    Read from JSON under a key with the word topic (a list, or an object whose keys are the topics), else from a line such as `Topics: a; b`
    or a list below one; of several such places the first that states any.
    """
    answer = visible(_ANSWER_TAG.sub("\n", text), ())
    for stated in (*_from_json(answer), *_from_lines(answer)):
        topics = dict.fromkeys(shown(topic.strip(" \t\"'*_`.,;:"), _LONGEST) for topic in stated)
        topics.pop("-", None)  # what stands for an empty text
        if topics:
            return tuple(topics)[:_MOST]
    return ()


def _from_json(text: str) -> Iterator[list[str]]:
    for value in _objects(text):
        for key, held in value.items():
            if "topic" in key.casefold() and isinstance(held, list | dict):
                yield [topic for topic in held if isinstance(topic, str)]


def _from_lines(text: str) -> Iterator[list[str]]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not (found := _LINE.match(line)):
            continue
        if found[1].strip(" \t*_"):
            # Semicolons where there are any, for a topic may hold a comma.
            yield re.split(r"[;|]" if re.search(r"[;|]", found[1]) else ",", found[1])
            continue
        listed = []
        for below in lines[number + 1 :]:
            if not (bullet := _BULLET.match(below)):
                break
            listed.append(bullet[1])
        yield listed


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, outermost only."""
    decoder, start = json.JSONDecoder(), 0
    for _ in range(_JSON_TRIES):
        start = text.find("{", start)
        if start < 0:
            return
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        yield value


async def _judged(judge: ChatClient, template: Template, row: Row, reply: Reply) -> Judged:
    topics = stated_topics(reply.text)
    items = row.history[-template.history_length :]
    if not topics:
        return Judged(row.id, (), ((),) * len(items))
    asked = [_question(template, item, topics) for item in items]
    # Items that read the same are asked about once.
    distinct = {request_key(judge.model_id, request): request for request in asked}
    answers: list[Answer[tuple[bool, ...]]] = await together(
        judge.ask_json(request, lambda text: _verdicts(text, len(topics))) for request in distinct.values()
    )
    found = {key: answer.value for key, answer in zip(distinct, answers, strict=True)}
    return Judged(row.id, topics, tuple(found[request_key(judge.model_id, request)] for request in asked))


def _question(template: Template, item: Item, topics: Sequence[str]) -> ChatRequest:
    read = {name: item.fields.get(name, "") for place, name in sorted(template.features) if place == "history"} | {"title": item.title}
    about = [f"{name}: {shown(text, template.text_limit)}" for name, text in read.items()]
    listed = [f"{number}. {topic}" for number, topic in enumerate(topics, 1)]
    asked = "Is the item about the topic? Give true or false under the number of each topic."
    prompt = "\n".join(["Item", *about, "", "Topics", *listed, "", asked])
    numbers = [str(n) for n in range(1, len(topics) + 1)]
    schema = {
        "type": "object",
        "properties": {number: {"type": "boolean"} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
    }
    return ChatRequest((Message("system", _SYSTEM), Message("user", prompt)), schema, max_tokens=16 + 8 * len(topics))


def _verdicts(text: str, count: int) -> tuple[bool, ...]:
    """Yes or no for topics 1 .. count; raises ValueError, KeyError or TypeError for an answer that leaves one out or says neither."""
    said = next(_objects(visible(text, ())), None)
    if said is None:
        raise ValueError("no JSON object")
    return tuple(_YES_NO[str(said[str(number)]).strip().casefold()] for number in range(1, count + 1))


_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
