"""Answers of models: every usual way to write an order parses back, and no text yields a candidate that was not offered."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench.prompts.answers import parse_choice, parse_ranking, parse_yes_no
from workbench.prompts.matching import WRAPPED_ID, Offer, key, plain
from workbench.prompts.placeholders import shown
from workbench.prompts.readers import read_po4isr, read_recprompt
from workbench.prompts.starting import PLAIN
from workbench.prompts.tasks import Item

SHARED = Path(os.environ.get("WORKBENCH_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
Shown = Sequence[tuple[str, str]]
"""Label and title, best first."""
FULL_WIDTH = str.maketrans("0123456789C>", "０１２３４５６７８９Ｃ＞")


def items(*titles: str) -> list[Item]:
    return [Item(f"id-{n}", title) for n, title in enumerate(titles, 1)]


def lines(form: str) -> Callable[[Shown], str]:
    return lambda order: "\n".join(form.format(rank=n, id=label, title=title) for n, (label, title) in enumerate(order, 1))


def joined(text: str, form: str = "{id}") -> Callable[[Shown], str]:
    return lambda order: text.join(form.format(id=label) for label, _ in order)


def records(order: Shown) -> str:
    return json.dumps(
        {"ranking": [{"rank": n, "id": i, "title": t, "reason": "as C1 and C2"} for n, (i, t) in enumerate(order, 1)]}, indent=2
    )


BY_ID = {
    "chain": joined(" > "),
    "commas": joined(", "),
    "spaces": joined(" "),
    "arrows": joined(" -> "),
    "brackets": joined(" > ", "[{id}]"),
    "bold": joined(", ", "**{id}**"),
    "words": joined(", then "),
    "lines": joined("\n"),
    "numbered": lines("{rank}. {id}"),
    "numbered with titles": lines("{rank}. {id}: {title}"),
    "parenthesis": lines("{rank}) {id} - {title}"),
    "both": lines("({rank}) {id} – {title}"),
    "bullets": lines("- {id}. {title}"),
    "stars": lines("* **{id}**: {title}"),
    "code": lines("- `{id}` {title}"),
    "quoted": lines('{rank}. "{id}" "{title}"'),
    "ranks": lines("Rank {rank}: {id} ({title})"),
    "hashes": lines("#{rank} {id}"),
    "ordinals": lines("{rank}th: Candidate {id}"),
    "explained": lines("{rank}. {id}: {title}\n   It is close to C1 and C2.\n"),
    "json": lambda order: json.dumps([label for label, _ in order]),
    "json numbers": lambda order: json.dumps([int(label[1:]) for label, _ in order]),
    "json object": lambda order: json.dumps({"ranking": [label for label, _ in order]}),
    "json records": records,
    "json ranks": lambda order: json.dumps({label: n for n, (label, _) in enumerate(order, 1)}),
    "json by rank": lambda order: json.dumps({str(n): label for n, (label, _) in enumerate(order, 1)}),
    "json entries": lambda order: json.dumps([f"{label}: {title}" for label, title in order]),
    "fenced": lambda order: f"Here it is:\n```json\n{json.dumps([label for label, _ in order], indent=1)}\n```\nHope that helps!",
    "cut json": lambda order: '{"ranking": [' + ", ".join(f'"{label}"' for label, _ in order),
    "headed": lambda order: f"**Final ranking:** {' > '.join(label for label, _ in order)}.",
    "sentence": lambda order: f"I would rank them {' > '.join(label for label, _ in order)} for this person.",
    "full width": lambda order: " > ".join(label for label, _ in order).translate(FULL_WIDTH),
    "circled": lambda order: "\n".join(f"{chr(0x245F + n)}{label}" for n, (label, _) in enumerate(order, 1)),
    "reasoned": lambda order: f"<think>\nC1 > C2? C2, C1, C3.\n</think>\n\n{lines('{rank}. {id}')(order)}",
    "answer tags": lambda order: f"First thoughts: C1, C2, C3.\n<answer>\n{', '.join(label for label, _ in order)}\n</answer>",
    "draft first": lambda order: (
        f"My draft:\n{lines('{rank}. {id}')(sorted(order))}\n\nFinal ranking:\n{lines('{rank}. {id}: {title}')(order)}"
    ),
}
TABLE = lambda order: f"| Rank | Id | Title |\n|---|---|---|\n{lines('| {rank} | {id} | {title} |')(order)}"  # noqa: E731
BY_TITLE = {
    "numbered": lines("{rank}. {title}"),
    "bold": lines("{rank}. **{title}**"),
    "quoted": lines('{rank}) "{title}"'),
    "bullets": lines("- {title}"),
    "explained": lines("{rank}. {title} - because it fits."),
    "upper case": lambda order: lines("{rank}. {title}")([(label, title.upper()) for label, title in order]),
    "lines": lines("{title}"),
    "json": lambda order: json.dumps([title for _, title in order], ensure_ascii=False),
    "json records": lambda order: json.dumps([{"title": title, "reason": "it fits"} for _, title in order]),
    "with ids behind": lines("{title} ({id})"),
    "table": lines("| {rank} | {title} |"),
}

AWKWARD = st.text(st.sampled_from("abC123 >,.:;-()[]\"'{}*#`é０"), max_size=14) | st.sampled_from(
    ["C1", "C2", "3", "1. C2", "1984", "2001: A Space Odyssey", "Catch C4", "Heat (1995)", "<b>", "ignore all; C3 > C1", ""]
)
WORDS = st.lists(
    st.sampled_from(["red", "blue", "7", "12", "1984", "moon", "rider", "II", "of", "storm"]), min_size=2, max_size=4, unique=True
).map(" ".join)


@st.composite
def ranked(draw: st.DrawFn, titles: st.SearchStrategy[str]) -> tuple[list[Item], list[int]]:
    offered = items(*draw(st.lists(titles, min_size=3, max_size=12)))
    return offered, draw(st.permutations(range(len(offered))))


def write(style: Callable[[Shown], str], offered: list[Item], order: list[int]) -> str:
    return style([(f"C{n + 1}", shown(offered[n].title, 160)) for n in order])


@pytest.mark.parametrize("style", BY_ID)
@settings(max_examples=15, deadline=None)
@given(case=ranked(AWKWARD))
def test_any_order_by_id_parses_back_whatever_the_titles(style: str, case: tuple[list[Item], list[int]]) -> None:
    offered, order = case
    # An id, a space and what is both that candidate's title and an id can be read either way.
    assume(style not in ("spaces", "code") or not any(WRAPPED_ID.match(plain(item.title)) for item in offered))
    answer = parse_ranking(write(BY_ID[style], offered, order), offered)
    assert answer.order == tuple(offered[n].id for n in order)
    assert (answer.status, answer.missing) == ("complete", 0)


@settings(max_examples=15, deadline=None)
@given(case=ranked(WORDS))
def test_any_order_in_a_table_parses_back(case: tuple[list[Item], list[int]]) -> None:
    offered, order = case
    assert parse_ranking(write(TABLE, offered, order), offered).order == tuple(offered[n].id for n in order)


@pytest.mark.parametrize("style", BY_TITLE)
@settings(max_examples=15, deadline=None)
@given(titles=st.lists(WORDS, min_size=3, max_size=10, unique=True), data=st.data())
def test_any_order_by_title_parses_back(style: str, titles: list[str], data: st.DataObject) -> None:
    offered = items(*titles)
    order = data.draw(st.permutations(range(len(offered))))
    answer = parse_ranking(write(BY_TITLE[style], offered, order), offered)
    assert answer.order == tuple(offered[n].id for n in order)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from("Cc0123456789 \n>.,:[]{}()\"'|<>/*#thinkanswer・①Ｃ３") | st.characters(), max_size=200),
    case=ranked(AWKWARD),
)
def test_any_text_gives_only_what_was_offered_and_never_raises(text: str, case: tuple[list[Item], list[int]]) -> None:
    offered, _ = case
    ids = {item.id for item in offered}
    answer = parse_ranking(text, offered)
    assert set(answer.order) <= ids
    assert len(set(answer.order)) == len(answer.order) == len(offered) - answer.missing
    assert min(answer.duplicates, answer.unknown, answer.missing) >= 0
    assert parse_choice(text, offered) in {None, *ids}
    assert parse_yes_no(text) in (None, True, False)


@given(
    order=st.permutations(range(6)),
    noise=st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["C7", "C99", "C0", "C1", "C3"])), max_size=4),
    cut=st.integers(0, 6),
)
def test_repeated_invented_and_missing_ids_are_counted(order: list[int], noise: list[tuple[int, str]], cut: int) -> None:
    offered = items("a", "b", "c", "d", "e", "f")
    names = [f"C{n + 1}" for n in order[:cut]]
    for place, name in noise:
        names.insert(min(place, len(names)), name)
    known = [n for n in names if 1 <= int(n[1:]) <= 6]
    answer = parse_ranking("\n".join(f"{n}. {name}" for n, name in enumerate(names, 1)), offered)
    if known:
        assert answer.order == tuple(f"id-{n[1:]}" for n in dict.fromkeys(known))
        assert (answer.duplicates, answer.unknown) == (len(known) - len(set(known)), len(names) - len(known))
    assert answer.missing == 6 - len(set(known))
    assert answer.status == ("invalid" if not known else "partial" if answer.missing else "complete")


FILMS = items("Heat (1995)", "Shining, The", "Catch C4 now", "FIFA Soccer 12", "1984", "Final Fantasy X", "C2", "Alien", "Heat (1986)")


@pytest.mark.parametrize(
    ("text", "order", "unknown"),
    [
        ("1. The Shining\n2. Alien: a classic", (2, 8), 0),
        ("1. FIFA Soccer 13\n2. Final Fantasy IX\n3. Alien", (8,), 0),
        ("1. Alien\n2. FIFA Soccer 13\n3. Final Fantasy IX", (8,), 2),
        ("1. Alien\n2. Fifa Socer 12\n3. Catch C4  now!", (8, 4, 3), 0),
        ("1. Alien\n2. Heat", (8,), 1),
        ("1. Heat (1986)\n2. Heat (1995)", (9, 1), 0),
        ("1. C1: Shining, The\n2. C8: Alien", (8,), 1),
        ("1. 1984\n2. C2\n3. C7", (5, 2, 7), 0),
        ("C1: 0.9\nC2: 0.4\nC3: 0.7", (), 0),
        ('{"C1": 0.9, "C2": 0.4}', (), 0),
        ("C1: 3\nC2: 1\nC3: 2", (2, 3, 1), 0),
        ("- C1 = 0.3\n- C2 = 0.7", (), 0),
        ("1. C2: 0.7\n2. C1: 0.3", (2, 1), 0),
        ("- C2 (1995)\n- C1 (1994)", (2, 1), 0),
        ("<think>C1 > C2 > C3", (), 0),
        ("Sure.\n<THINK>C1 > C2 > C3", (), 0),
        ("C3 > C1 <think>or C2 > C1 > C3", (3, 1), 0),
        ("C1 > C2 > C3 was my first thought.</think>C2 > C3 > C1", (2, 3, 1), 0),
        ("I compared C1 and C2 and like C1 more.", (), 0),
        ("", (), 0),
        ("I cannot rank these.", (), 0),
        ("1. The user likes horror.\n2. The user likes war.\n\nRanking:\n1. C2\n2. C3", (2, 3), 0),
        ("[3] > [1] > [2]", (3, 1, 2), 0),
        ("Ranking: 3, 1, 2", (3, 1, 2), 0),
        ("1. Catching C-four (C3)\n2. Some alien film [C8]", (3, 8), 0),
        ("1. Alien (C3)\n2. Catch C4 now (C3)", (3,), 1),
        ("The answer is \\boxed{C3 > C1}", (3, 1), 0),
        ("START C3, C1, C2 END", (3, 1, 2), 0),
        ("ranked = ['C3', 'C1', 'C2']", (3, 1, 2), 0),
        ("•C3\n•C1", (3, 1), 0),
        ("1\\. C3\n2\\. C1", (3, 1), 0),
        ("a) C3\nb) C1\niv. C2", (3, 1, 2), 0),
        ("**1.** C3 – fits\n**2.** Item 1", (3, 1), 0),
        ("C3 or C1, then C2", (), 1),
        ("C1 through C9", (1,), 0),
        ('{"best": "C3", "all": ["C3", "C1"]}', (3, 1), 0),
        ('{"ranking": "C3, C1"}', (3, 1), 0),
        ("C3.5 > C12 > C1", (1,), 1),
    ],
)
def test_nothing_is_guessed(text: str, order: tuple[int, ...], unknown: int) -> None:
    answer = parse_ranking(text, FILMS)
    assert answer.order == tuple(f"id-{n}" for n in order)
    assert answer.unknown == unknown


def test_a_number_that_is_another_candidates_title_means_neither() -> None:
    assert parse_ranking("1. 3\n2. 2", items("3", "b", "c")).order == ("id-2",)


def test_a_title_near_two_means_neither() -> None:
    answer = parse_ranking("1. Alien\n2. Grand Prix Racing C", items("Grand Prix Racing A", "Grand Prix Racing B", "Alien"))
    assert (answer.order, answer.unknown) == (("id-3",), 1)


@pytest.mark.skipif(not (SHARED / "po4isr").is_dir(), reason="needs the shared data folder (WORKBENCH_SHARED_DATA)")
@pytest.mark.parametrize("source", ["games", "ml-1m", "mind"])
def test_real_titles_in_every_style(source: str) -> None:
    """Games have long titles with commas, quotes and numbers; films are called 54; headlines hold anything."""
    mind = SHARED / "mind-sample" / "valid_with_categories.csv"
    rows = read_recprompt(mind) if source == "mind" else read_po4isr(SHARED / "po4isr" / source / "valid.json")
    rng = np.random.default_rng(0)
    for row in rows[:15]:
        offered = list(PLAIN.as_shown(row.candidates))
        titles_differ = len({key(plain(item.title)) for item in offered}) == len(offered)
        for style in (*BY_ID.values(), TABLE, *(BY_TITLE.values() if titles_differ else ())):
            order = [int(n) for n in rng.permutation(len(offered))]
            text = write(style, offered, order)
            assert parse_ranking(text, offered).order == tuple(offered[n].id for n in order), text


@given(st.lists(WORDS | AWKWARD, min_size=2, max_size=8), AWKWARD)
def test_a_title_means_the_one_candidate_that_has_it(titles: list[str], text: str) -> None:
    place = Offer(titles).by_title(plain(text))
    if place is not None and place >= 0:
        mine = key(plain(titles[place]))
        assert sum(key(plain(t)) == mine for t in titles) == 1 or titles.count(text) == 1


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("C2", 2),
        ("**C2**", 2),
        ("The best is C2.", 2),
        ('{"choice": "C2"}', 2),
        ("2", 2),
        ("Alien: it fits", 1),
        ("C1 is nice, but C2 fits better.\nAnswer: C2", 2),
        ("<think>C1? C1!</think>C2", 2),
        ("C1 > C2", None),
        ("C1 or C2", None),
        ("C9", None),
        ("", None),
    ],
)
def test_choices(text: str, chosen: int | None) -> None:
    assert parse_choice(text, items("Alien", "Blob")) == (f"id-{chosen}" if chosen else None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", True), (" no.", False), ("**Yes**, no doubt", True), ("Answer: No", False), ('{"answer": true}', True),
        ("<think>no</think>\nYES", True), ("I would say yes.", True), ("I say yes and no.", None), ("Nothing to say", None), ("", None),
    ],
)  # fmt: skip
def test_yes_and_no(text: str, said: bool | None) -> None:
    assert parse_yes_no(text) is said


@pytest.mark.parametrize(
    "piece", ["[", '{"a":', "C1 ", "((((", "1. x\n", "c0", "C1, ", "<think>", "</think>", "[1]", "**", " \n", "\"'", "- Aliem\n", "|"]
)
def test_hostile_text_is_read_in_time(piece: str) -> None:
    started = time.process_time()
    parse_ranking(piece * 10_000, items(*(f"Alien number {n}" for n in range(100))))
    assert time.process_time() - started < 3
