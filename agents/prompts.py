"""The words an LLM agent is given, short because every token is paid for on every page. Item titles are data, one line each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.types import FEELINGS, PageContext, PageItem, Persona

SYSTEM = "You play one user of a recommender system. Answer as that user, in JSON only."
Levels = tuple[float, ...]
"""The rating values an agent may give, ascending, in the dataset's units."""
FEELING = {"enum": list(FEELINGS)}
TRAITS = {
    "activity": {1: "You rarely take anything.", 2: "You take what looks good.", 3: "You take many things."},
    "conformity": {1: "You rate by your own taste.", 2: "", 3: "You mostly agree with average ratings."},
    "diversity": {1: "You stay with what you know.", 2: "", 3: "You like variety."},
}


def persona_text(persona: Persona) -> str:
    """Who the agent is, in a few short sentences."""
    parts = []
    if persona.liked_titles:
        parts.append(f"You loved: {'; '.join(one_line(t) for t in persona.liked_titles)}.")
    if persona.liked_tags:
        parts.append(f"You like {', '.join(persona.liked_tags)}.")
    if persona.disliked_tags:
        parts.append(f"You avoid {', '.join(persona.disliked_tags)}.")
    parts += [text for trait, levels in TRAITS.items() if (text := levels[getattr(persona, trait)])]
    return " ".join([*parts, f"You rate {persona.mean_rating:g} on average."])


def page_text(items: tuple[PageItem, ...]) -> str:
    """The page, one numbered line an item."""
    return "\n".join(f"{i.number}. {one_line(i.title)} | {', '.join(i.tags) or '-'} | {i.mean_rating:.1f}" for i in items)


def decision_prompt(context: PageContext, levels: Levels) -> str:
    """Asks for the whole page decision: what is taken and rated, the feeling, and whether to go on."""
    shown = page_text(context.items)
    return "\n".join(
        part
        for part in (
            persona_text(context.persona),
            context.memory,
            f"Page {context.page + 1}:",
            shown,
            f"Take only what you really want, rate each {_scale(levels)}, say how the page felt and whether you look at the next page.",
        )
        if part
    )


def reaction_prompt(context: PageContext, taken: tuple[PageItem, ...], levels: Levels) -> str:
    """Asks for ratings of items already chosen, and the feeling. Who the agent is is told by genres and habits: titles cost most tokens."""
    who = persona_text(replace(context.persona, liked_titles=()))
    chosen = page_text(taken) if taken else "nothing"
    asked = f"Rate each {_scale(levels)} and say how the page felt."
    return "\n".join(part for part in (who, context.memory, f"On page {context.page + 1} you took:", chosen, asked) if part)


def decision_schema(numbers: tuple[int, ...], levels: Levels, most: int) -> dict[str, Any]:
    """JSON schema of the whole decision; `numbers` are those on the page, `levels` the ratings allowed, `most` the items a page."""
    entry = {
        "type": "object",
        "properties": {"n": {"enum": list(numbers)}, "rating": {"enum": _json_numbers(levels)}},
        "required": ["n", "rating"],
        "additionalProperties": False,
    }
    return _answer({"take": {"type": "array", "items": entry, "maxItems": most}, "feeling": FEELING, "next": {"type": "boolean"}})


def reaction_schema(count: int, levels: Levels) -> dict[str, Any]:
    """JSON schema of the reaction to `count` chosen items."""
    ratings = {"type": "array", "items": {"enum": _json_numbers(levels)}, "minItems": count, "maxItems": count}
    return _answer({**({"ratings": ratings} if count else {}), "feeling": FEELING})


def taste_prompt(persona: Persona) -> str:
    """A list that a title continues: its likelihood behind the latest titles, against `EMPTY_TASTE`, is how well it fits them.

    Latest titles told more than best-rated ones, and a list in a sentence more than one in lines.
    """
    return f"{EMPTY_TASTE} {', '.join(one_line(t) for t in persona.recent_titles)}," if persona.recent_titles else EMPTY_TASTE


EMPTY_TASTE = "Titles I chose:"


def one_line(text: str, limit: int = 120) -> str:
    """Untrusted text as data: control characters and line breaks become spaces, so a title cannot open a new line of the prompt."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:limit]


def _scale(levels: Levels) -> str:
    return f"{levels[0]:g}-{levels[-1]:g}"


def _json_numbers(levels: Levels) -> list[float | int]:
    """4.0 as 4: that is how people and models write it."""
    return [int(x) if x == int(x) else x for x in levels]


def _answer(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
