"""Asking a model for a better template: what it is shown, what it may change, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from agents.chat import ChatClient, ChatRequest, Message
from recsys_core.errors import DataError, UnavailableError
from workbench.prompts.answers import parse_choice, parse_ranking
from workbench.prompts.placeholders import shown
from workbench.prompts.tasks import Item
from workbench.prompts.templates import Kind, Template
from workbench.prompts.trials import Trials

_SLOTS = {
    "role": ("count",),
    "task": ("count",),
    "history": ("history",),
    "candidates": ("candidates", "count"),
    "reasoning": ("count",),
    "output": ("count",),
}
"""The sections a proposer may write, and the placeholders it may use in each. Item formats are not among them: features are locked."""
_LONGEST = 4_000
"""Characters of a proposed section; every one is paid for in every call. A section that was longer may stay as long as it was."""
_ATTEMPTS = 16
"""Repeat indices that one question has for its repetitions after empty answers."""
_THOUGHT = r"(?:think|thinking|thought|scratchpad)"
_THOUGHT_END = re.compile(rf"^[ \t]*</{_THOUGHT}>|</{_THOUGHT}>[ \t]*$", re.IGNORECASE | re.MULTILINE)
_OPEN = re.compile(r"^[ \t*_`>#-]*<section\s+name\s*=\s*[\"'“”]?([^\"'“”<>\n]{1,40})[\"'“”]?\s*>", re.IGNORECASE | re.MULTILINE)
_CLOSE = re.compile(r"</\s*section\s*>", re.IGNORECASE)
_TAG = re.compile(rf"<(?=\s*/?\s*(?:section|{_THOUGHT})\b)", re.IGNORECASE)
_FENCED = re.compile(r"\A(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\1\Z", re.DOTALL)
_BRACED = re.compile(r"(?<!\{)\$?(\{+)[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*(\}+)")
_OFFERED = [Item(str(n), chr(0xE000 + n)) for n in range(1, 100)]
"""Candidates whose titles nobody writes: an example in a prompt can name them by id only."""
_READABLE: Mapping[Kind, tuple[Callable[[str], bool], str]] = {
    "listwise": (lambda text: bool(parse_ranking(text, _OFFERED).order), "an order of ids such as C3 > C1 > C2"),
    "choice": (lambda text: parse_choice(text, _OFFERED) is not None, "exactly one id such as C2"),
    "pointwise": (lambda text: bool(re.search(r"\byes\b", text, re.I) and re.search(r"\bno\b", text, re.I)), "the words Yes and No"),
}
"""By kind: whether an output section shows the answer's form in a way that the parser reads, and what it has to show."""
_ASKED: Mapping[Kind, str] = {
    "listwise": "The model is shown all candidates at once and answers with their order.",
    "choice": "The model is shown a few candidates at a time and answers with the best of them.",
    "pointwise": "The model is shown one candidate at a time and answers whether it would be chosen.",
    "likelihood": "The model answers nothing: a candidate's score is how likely its title is as the next words; end where it can follow.",
}


class ProposerError(UnavailableError):
    """The proposer cannot be asked or says nothing: a search without proposals is none, so it ends."""


class Proposer(Protocol):
    """Anything that answers a question in text."""

    async def ask(self, text: str, repeat: int = 0) -> str:
        """The answer, never blank. repeat: tells wanted repetitions apart. Raises ProposerError, and BudgetExceeded as a client does."""
        ...


class ChatProposer:
    """A chat model that proposes. Its client's cache answers equal questions with equal `repeat`, so a resumed search repeats no call."""

    def __init__(self, client: ChatClient, temperature: float = 0.7, max_tokens: int = 1500) -> None:
        if temperature < 0 or max_tokens < 1:
            raise DataError(f"temperature is {temperature:g} and max_tokens {max_tokens}; give at least 0 and 1")
        self.client, self.temperature, self.max_tokens = client, temperature, max_tokens

    async def ask(self, text: str, repeat: int = 0) -> str:
        """See Proposer. A blank answer is asked for again as often as the client retries."""
        request = ChatRequest((Message("user", text),), max_tokens=self.max_tokens, temperature=self.temperature, repeat=repeat * _ATTEMPTS)
        try:
            answer = await self.client.ask_json(request, _said)
        except UnavailableError as error:
            raise ProposerError(f"the proposer cannot be asked: {error}") from error
        if answer.value is None:
            raise ProposerError(f"proposer {self.client.model_id!r} gave nothing: {answer.error}; run again to resume")
        return answer.value


def sections_text(template: Template) -> str:
    """The sections that a proposer may change, each between tags on lines of their own, in the order of the prompt."""
    return "\n".join(f'<section name="{name}">\n{text}\n</section>' for name, text in _editable(template).items())


def rules(template: Template) -> str:
    """What a proposer is told about the form of its answer, and about what it cannot change."""
    names = list(_editable(template))
    told = [
        _ASKED[template.kind],
        "Write each section that you change, whole, in this form:",
        '<section name="NAME">\nits new text\n</section>',  # no section's name, so that an echo of this is no proposal
        f"NAME is one of {', '.join(names)}. A section that you leave out stays as it is; an empty one is taken out of the prompt.",
        *(f"{{{name}}} must stand exactly once in {name}; it is replaced." for name in names if name in ("history", "candidates")),
        "" if template.kind == "likelihood" else "{count}, the number of candidates, may stand anywhere but in history.",
        "There are no other placeholders. How an item is written, and what is shown of it, cannot be changed.",
    ]
    if template.kind in _READABLE:
        told.append(f"A program reads the model's answer: the output section must show its form, with {_READABLE[template.kind][1]}.")
    return "\n".join(line for line in told if line)


def read_proposal(text: str, template: Template, author: str) -> Template:
    """The revision of a template that a proposer's answer asks for.

    Takes sections as `sections_text` writes them, the last of one name, in markdown, behind reasoning; sections left out stay as they are
    and ones that may not be changed are ignored. Raises DataError, in words for the proposer, for an answer that is cut, changes nothing,
    breaks or invents a placeholder, is too long, or describes an answer that could not be read.
    """
    before, told = _editable(template), _sections(_visible(text))
    changes = {}
    for name, body in told.items():
        if name in before and body != before[name].strip():
            if len(body) > (most := max(_LONGEST, len(before[name]))):
                raise DataError(f"section {name} has {len(body)} characters; keep it to {most}")
            changes[name] = _placed(name, _unfenced(body), before[name], template.kind)
    changes = {name: after for name, after in changes.items() if after != before[name].strip()}
    if not changes:
        ignored = "".join(f"; {name} cannot be changed" for name in told if name not in before)
        raise DataError(f"the answer changes nothing{ignored}; write a section that differs from the one you were shown")
    if "output" in changes and template.kind in _READABLE:
        readable, example = _READABLE[template.kind]
        if readable(template.output) and not readable(changes["output"]):
            raise DataError(f"section output no longer shows the form of the answer, which a program reads; show {example}")
    return template.revise(author, **changes)


async def propose(
    proposer: Proposer, text: str, template: Template, trials: Trials, author: str, *, attempts: int = 3, repeat: int = 0
) -> Template | None:
    """A revision that was not tried before, or None after `attempts` answers of which none could be taken.

    Each refusal is written down with `trials.reject` and put before the proposer with its next attempt. Raises as `Proposer.ask`.
    """
    asked = text
    for attempt in range(attempts):
        answer = await proposer.ask(asked, repeat * attempts + attempt)
        try:
            revised = read_proposal(answer, template, author)
            if any(trial.template.version == revised.version for trial in trials.tried):
                raise DataError("these sections were tried before; write something new")
            return revised
        except DataError as refused:
            begin = _OPEN.search(answer)
            trials.reject(quoted(answer[begin.start() :] if begin else answer, 200), str(refused))
            asked = f"{text}\n\nYour last answer could not be taken: {quoted(str(refused), 400)}"
    return None


def quoted(text: str, limit: int) -> str:
    """Untrusted text, such as a title or a model's answer, for a proposer: one line, cut, its tags defused."""
    return defused(shown(text, limit))


def defused(text: str) -> str:
    """Text in which no tag can open or close a section, or pass for a thought."""
    return _TAG.sub("‹", text)


def _editable(template: Template) -> dict[str, str]:
    """The sections that are rendered, by name. One that spells a tag itself could not be read back and is left as it is."""
    skipped = {"history"} if not template.history_length else set()
    if template.kind == "likelihood":
        skipped.add("candidates")
    return {name: text for name in _SLOTS if name not in skipped and not _TAG.search(text := getattr(template, name))}


def _visible(text: str) -> str:
    """An answer without the reasoning before it: what follows the last closing tag that ends or begins a line; nothing if none closes it.

    Other tags of this kind belong to a section, which may ask the ranking model to reason between them.
    """
    after = _THOUGHT_END.split(text.replace("\r\n", "\n"))[-1]
    return "" if re.match(rf"\s*<{_THOUGHT}>", after, re.IGNORECASE) else after


def _said(text: str) -> str:
    if not _visible(text).strip():
        raise ValueError("it is blank, or reasoning only; a larger max_tokens may help")
    return text


def _sections(text: str) -> dict[str, str]:
    """The body of each section in an answer, by name; raises DataError where there is none or the last is cut off."""
    found: dict[str, str] = {}
    openings = list(_OPEN.finditer(text))
    for number, opening in enumerate(openings):
        last = number + 1 == len(openings)
        rest = text[opening.end() : len(text) if last else openings[number + 1].start()]
        closing = _CLOSE.search(rest)
        name = opening[1].strip().lower()
        if not closing and last:
            raise DataError(f"section {name} is not closed, so the answer may be cut off; end it with </section>, and write less")
        found[name] = (rest[: closing.start()] if closing else rest).strip()
    if not found:
        raise DataError('the answer holds no section; write each between <section name="task"> and </section> on lines of their own')
    return found


def _unfenced(body: str) -> str:
    fenced = _FENCED.match(body)
    return fenced[2].strip() if fenced else body


def _placed(name: str, body: str, before: str, kind: Kind) -> str:
    """A section with its placeholders in the one form that is filled; raises DataError for one that nothing fills.

    `${count}`, `{{count}}` and `{ Count }` can only mean one thing, unless the section spelled them so before.
    """
    known = () if kind == "likelihood" and name != "history" else _SLOTS[name]

    def one(found: re.Match[str]) -> str:
        if found[0] in before:
            return found[0]
        opened, slot, closed = found[1], found[2].lower(), found[3]
        if slot not in known:
            allowed = ", ".join(f"{{{slot}}}" for slot in known) or "none"
            raise DataError(f"section {name} holds {found[0]}, which nothing fills; its placeholders: {allowed}")
        pairs = min(len(opened), len(closed))  # braces beyond these belong to the text around, such as JSON
        return f"{opened[pairs:]}{{{slot}}}{closed[pairs:]}"

    return _BRACED.sub(one, body)
