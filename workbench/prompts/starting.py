"""Templates written by people, to start from. All are about items of any kind and show titles only; `showing` adds fields."""

from __future__ import annotations

from dataclasses import replace

from recsys_core.errors import unknown_name
from workbench.prompts.templates import Template

_ORDER = "Answer with the ids of all {count} candidates, best first, and nothing else, such as: C3 > C1 > C2"

PLAIN = Template(
    "plain",
    "listwise",
    task="Rank the candidates by how likely this person is to choose them next.",
    history="Chosen so far, oldest first:\n{history}",
    candidates="Candidates:\n{candidates}",
    output=_ORDER,
)
RECPROMPT = Template(
    "recprompt",
    "listwise",
    role="You are a recommender that orders items for one reader after their own taste.",
    task="You are given what a reader has opened, oldest first, and {count} candidates with their ids.\n"
    "Judge how well each candidate fits the topics and interests that the opened items show, and put the candidates in order.",
    history="Opened:\n{history}",
    candidates="Candidates:\n{candidates}",
    output=_ORDER,
)
PO4ISR = Template(
    "po4isr",
    "listwise",
    task="These items were chosen in one session, oldest first. What comes next depends on what the person is after.",
    history="Session:\n{history}",
    candidates="Candidates:\n{candidates}",
    reasoning="Work in steps.\n"
    "1. Find groups of session items that belong together; one item may stand alone or in several groups.\n"
    "2. Say for each group what the person seems to want.\n"
    "3. Choose the want that explains the latest items best.\n"
    "4. Order the {count} candidates by how well they meet it.",
    output="Write the steps in a few short sentences. Then write one last line with the ids of all {count} candidates, best first, as in\n"
    "Final ranking: C3 > C1 > C2",
)
POINTWISE = Template(
    "pointwise",
    "pointwise",
    task="Say whether this person would choose the item next.",
    history="Chosen so far, oldest first:\n{history}",
    candidates="Item:\n{candidates}",
    candidate_item="- {title}",
    output="Would this person choose it? Answer Yes or No.\nAnswer:",
)
CHOICE = Template(
    "choice",
    "choice",
    task="Which one of the candidates is this person most likely to choose next?",
    history="Chosen so far, oldest first:\n{history}",
    candidates="Candidates:\n{candidates}",
    output="Answer with the id of one candidate and nothing else, such as: C2",
)
LIKELIHOOD = Template(
    "likelihood",
    "likelihood",
    # A list inside a sentence tells a small model more than one in lines, and a neutral verb suits any kind of item.
    history="Titles I chose:{history}",
    history_item=" {title},",
    candidates="",
    candidate_item=" {title}",
    join="",
    nothing="",
)

STARTING = {t.name: t for t in (PLAIN, RECPROMPT, PO4ISR, POINTWISE, CHOICE, LIKELIHOOD)}


def starting(name: str, fields: tuple[str, ...] = ()) -> Template:
    """A starting template by name, showing item fields too; raises UnknownNameError that lists the names."""
    if name not in STARTING:
        raise unknown_name("template", name, sorted(STARTING))
    return showing(STARTING[name], fields)


def showing(template: Template, fields: tuple[str, ...]) -> Template:
    """The template with fields after each title: another template, not a version of it, since what is shown is locked.

    A likelihood template shows them in its history only: in the text that is scored, a field would count as if it were title.
    """
    if not fields:
        return template
    more = "".join(f" | {{{name}}}" for name in fields)
    aside = f"{{title}} ({', '.join(f'{{{name}}}' for name in fields)})"
    scored = template.kind == "likelihood"
    return replace(
        template,
        name=f"{template.name}+{'+'.join(fields)}",
        fields=(*template.fields, *fields),
        history_item=template.history_item.replace("{title}", aside) if scored else template.history_item + more,
        candidate_item=template.candidate_item if scored else template.candidate_item + more,
    )
