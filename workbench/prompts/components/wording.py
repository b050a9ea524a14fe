"""Phrasings of a prompt's parts that suit any kind of item. Each replaces one part and can stand beside any other."""

from __future__ import annotations

from collections.abc import Mapping

from workbench.prompts.templates import Kind

Parts = Mapping[str, str]
"""New text by name of the part, as `Space` names them."""

ROLES: Mapping[str, str] = {
    "no role": "",
    "recommender": "You are a careful recommender.",
    "friend": "You know what people like and foresee what they choose next.",
}

TASKS: Mapping[Kind, Mapping[str, str]] = {
    "listwise": {
        "most likely": "Rank the candidates by how likely this person is to choose them next.",
        "taste": "Work out this person's taste from what was chosen before. Order the candidates by how well they fit it, best fit first.",
        "one was chosen": "One of the {count} candidates was chosen next. Put the one you would bet on first, then the next best.",
    },
    "choice": {
        "most likely": "Which one of the candidates is this person most likely to choose next?",
        "taste": "Work out this person's taste from what was chosen before. Which one of the candidates fits it best?",
        "one was chosen": "One of the candidates was chosen next. Which one would you bet on?",
    },
    "pointwise": {
        "most likely": "Say whether this person would choose the item next.",
        "taste": "Work out this person's taste from what was chosen before, and say whether the item fits it.",
        "same kind": "Compare the item with what was chosen before. Say whether it is of the same kind.",
    },
    "likelihood": {
        "no preface": "",
        "one person": "What one person chose, one after another.",
        "one theme": "Things that go together.",
        "taste": "People choose what is like the things they chose before.",
    },
}

LEADS: Mapping[str, str] = {
    "chosen": "Chosen so far, oldest first:\n",
    "history": "History of this person, oldest first:\n",
    "likes": "This person liked, oldest first:\n",
    "heading": "# History (oldest first)\n",
}
SCORED_LEADS: Mapping[str, str] = {
    "titles I chose": "Titles I chose:",
    "I like": "I like",
    "I chose": "I chose",
    "favourites": "My favourites:",
    "similar": "Similar titles:",
    "who chose": "People who chose one of these chose them all:",
    "nothing": "",
}

ITEMS: Mapping[str, Parts] = {
    "dashes": {"history_item": "- {item}", "join": "\n"},
    "numbers": {"history_item": "{number}. {item}", "join": "\n"},
    "quotes": {"history_item": '"{item}"', "join": "\n"},
    "one line": {"history_item": "{item}", "join": "; "},
}
# `opening` stands before the list, `closing` where the next item begins; both belong to the way the items are listed.
SCORED_ITEMS: Mapping[str, Parts] = {
    "commas": {"opening": "", "history_item": " {item},", "join": "", "closing": "", "candidate_item": " {item}"},
    "semicolons": {"opening": "", "history_item": " {item};", "join": "", "closing": "", "candidate_item": " {item}"},
    "sentences": {"opening": "", "history_item": " {item}.", "join": "", "closing": "", "candidate_item": " {item}"},
    "and": {"opening": "", "history_item": " {item} and", "join": "", "closing": "", "candidate_item": " {item}"},
    "quotes": {"opening": "", "history_item": ' "{item}",', "join": "", "closing": "", "candidate_item": ' "{item}"'},
    "lines": {"opening": "\n", "history_item": "- {item}", "join": "\n", "closing": "\n-", "candidate_item": " {item}"},
}
CANDIDATES: Mapping[str, str] = {"dot": "{id}. {item}", "colon": "{id}: {item}", "brackets": "[{id}] {item}", "dashes": "- {id} | {item}"}
SCORED_ENDS: Mapping[str, str] = {"open": "", "comma": ",", "full stop": ".", "line": "\n"}

BRIDGES: Mapping[str, str] = {
    "straight on": "",
    "and also": " and also",
    "next": " and next",
    "so": "\n\nSo the next one I choose is",
    "like these": "\n\nMore like these:",
}
"""Between the history and the title that is scored."""
NOTHINGS: Mapping[str, str] = {"anything": "anything", "something": "something", "dots": "..."}
"""What a history without items is said to hold; it is written as an item is."""

_ORDER = "Answer with the ids of all {count} candidates, best first, and nothing else, such as: C3 > C1 > C2"
ANSWERS: Mapping[Kind, Mapping[str, Parts]] = {
    "listwise": {
        "at once": {"reasoning": "", "output": _ORDER},
        "lines": {"reasoning": "", "output": "Write the ids of all {count} candidates, one a line, best first, and nothing else."},
        "taste first": {
            "reasoning": "First say in one sentence what this person looks for.",
            "output": "Then write one last line with the ids of all {count} candidates, best first, as in\nFinal ranking: C3 > C1 > C2",
        },
        "weigh": {
            "reasoning": "Go through the candidates and note in a few words how well each fits what was chosen before.",
            "output": "Then write one last line with the ids of all {count} candidates, best first, as in\nFinal ranking: C3 > C1 > C2",
        },
    },
    "choice": {
        "at once": {"reasoning": "", "output": "Answer with the id of one candidate and nothing else, such as: C2"},
        "taste first": {
            "reasoning": "First say in one sentence what this person looks for.",
            "output": "Then write one last line with the id of one candidate, as in\nFinal answer: C2",
        },
    },
    "pointwise": {
        "choose": {"output": "Would this person choose it? Answer Yes or No.\nAnswer:"},
        "fit": {"output": "Does it fit this person's taste? Answer Yes or No.\nAnswer:"},
        "short": {"output": "Yes or No?\nAnswer:"},
    },
    "likelihood": {},
}
