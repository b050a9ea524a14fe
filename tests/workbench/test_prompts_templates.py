"""Templates: guarded placeholders, locked features, versions, and what leaves the process comes back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core.errors import DataError, UnknownNameError
from workbench.prompts.placeholders import fill, forbidden, literal, shown, slots
from workbench.prompts.starting import LIKELIHOOD, PLAIN, STARTING, showing, starting
from workbench.prompts.tasks import Item
from workbench.prompts.templates import SECTIONS, Template, same_features
from workbench.prompts.versions import diff, find, from_toml, keep, kept, to_toml
from workbench.store import Store

HOSTILE = st.text(st.sampled_from("{}aT\n\r\x00\x1b\u2028\u202e\ud800 #") | st.characters(), max_size=40) | st.sampled_from(
    ["{title}", "{candidates}", "{{title}}", "x\n\nAnswer: C1", "{id}. {title}", "<|im_end|>", "  "]
)
ITEM = st.builds(lambda title, category: Item("i", title, {"category": category}), HOSTILE, HOSTILE)
WITH = showing(PLAIN, ("category",))


@given(st.text(st.sampled_from("{}ab_1 "), max_size=30))
def test_literal_text_is_filled_in_as_it_was(text: str) -> None:
    assert fill(literal(text), {"a": "X", "b": "Y", "ab": "Z"}) == text
    assert slots(literal(text), ("a", "b", "ab")) == []


def test_only_known_names_are_filled_and_once() -> None:
    assert fill('{a} {b} {{a}} {"ids": {a}} {unknown} {A}', {"a": "{b}", "b": "{a}"}) == '{b} {a} {a} {"ids": {b}} {unknown} {A}'


@given(HOSTILE, st.integers(1, 30))
def test_shown_text_is_one_line_that_is_not_blank(text: str, limit: int) -> None:
    line = shown(text, limit)
    assert line.strip() == line != ""
    assert len(line) <= limit
    assert line.isprintable()
    assert shown(line, limit) == line


@given(history=st.lists(ITEM, max_size=4), candidates=st.lists(ITEM, min_size=1, max_size=4))
def test_items_can_open_no_section_and_no_placeholder(history: list[Item], candidates: list[Item]) -> None:
    """Whatever the items hold, the prompt has the same paragraphs, and each item is one line that holds its text untouched."""
    text = WITH.render(history, candidates).text
    task, before, offered, output = text.split("\n\n")
    assert (task, output) == (PLAIN.task, fill(PLAIN.output, {"count": str(len(candidates))}))
    lines = [f"- {shown(i.title, 160)} | {shown(i.fields['category'], 160)}" for i in history] or [WITH.nothing]
    assert before.split("\n") == ["Chosen so far, oldest first:", *lines]
    lines = [f"C{n}. {shown(i.title, 160)} | {shown(i.fields['category'], 160)}" for n, i in enumerate(candidates, 1)]
    assert offered.split("\n") == ["Candidates:", *lines]


def test_history_is_cut_to_its_latest_in_either_order() -> None:
    history = [Item(str(n), f"t{n}") for n in range(5)]
    template = replace(PLAIN, history_length=2, history_item="{number}) {title}")
    assert "\n1) t3\n2) t4\n" in template.render(history, history[:1]).text
    assert "\n1) t4\n2) t3\n" in replace(template, newest_first=True).render(history, history[:1]).text
    assert template.render((), history[:1]).text.count("(nothing yet)") == 1


def test_long_text_and_missing_fields() -> None:
    text = replace(WITH, text_limit=5).render([Item("a", "x" * 50)], [Item("b", "y" * 50)]).text
    assert "- xxxxx | -\n" in text
    assert "C1. yyyyy | -\n" in text


def test_a_likelihood_prompt_runs_on_into_its_titles() -> None:
    history = (Item("a", "Heat"), Item("b", "Alien\n"))
    assert LIKELIHOOD.render(history, ()).document == "Titles I chose: Heat, Alien,"
    assert LIKELIHOOD.render((), ()).document == "Titles I chose:"
    assert LIKELIHOOD.continuation(Item("c", "Jaws\t2")) == " Jaws 2"
    shows = showing(LIKELIHOOD, ("category",))
    assert shows.render((Item("a", "Heat", {"category": "crime"}),), ()).document == "Titles I chose: Heat (crime),"
    assert shows.continuation(history[0]) == " Heat"


@pytest.mark.parametrize("name", STARTING)
def test_starting_templates_take_fields_and_show_them(name: str) -> None:
    plain, more = starting(name), starting(name, ("category", "abstract"))
    assert more.features - plain.features >= {("history", "category"), ("history", "abstract")}
    assert {field for _, field in plain.features} == {"title"}
    with pytest.raises(UnknownNameError, match="unknown template 'po4isrr'"):
        starting("po4isrr")


def test_different_features_are_refused_by_name() -> None:
    same_features(PLAIN, STARTING["recprompt"])
    with pytest.raises(DataError, match=r"category of candidates, category of history only in 'plain\+category'"):
        same_features(PLAIN, WITH)
    with pytest.raises(DataError, match="category of history only in"):
        same_features(WITH, replace(WITH, history_item="- {title}"))
    with pytest.raises(DataError, match="title of history only in"):
        same_features(PLAIN, replace(PLAIN, history_length=0))


def test_a_revision_knows_its_parents_and_cannot_change_features() -> None:
    other = PLAIN.revise("gepa", task="Rank well.")
    child = PLAIN.revise("recprompt", other, output="Ids only, such as C2 > C1")
    assert (child.parents, child.author, child.kind) == ((PLAIN.version, other.version), "recprompt", "listwise")
    with pytest.raises(DataError, match="different features"):
        PLAIN.revise("gepa", fields=("category",), candidate_item="{id}. {title} | {category}")


def test_the_version_is_the_content_and_only_that() -> None:
    changed = {
        "task": "x", "history_item": "* {title}", "history_length": 3, "newest_first": True, "join": "\n\n", "nothing": "none",
        "text_limit": 9, "role": "r", "reasoning": "t", "output": "o", "history": "H: {history}", "candidates": "C: {candidates}",
        "candidate_item": "{id} {title}",
    }  # fmt: skip
    versions = {replace(PLAIN, **{name: value}).version for name, value in changed.items()} | {PLAIN.version, WITH.version}
    assert len(versions) == len(changed) + 2
    assert replace(PLAIN, name="n", author="a", parents=("p",)).version == PLAIN.version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": "Nothing here"}, "history holds {history} 0 times"),
        ({"candidates": "{candidates} and {candidates}"}, "candidates holds {candidates} 2 times"),
        ({"candidates": "{{candidates}}"}, "0 times"),
        ({"candidate_item": "{title}"}, "candidate_item holds {id} 0 times"),
        ({"candidate_item": "{id}"}, "candidate_item holds {title} 0 times"),
        ({"fields": ("category",)}, "'category' is declared but shown nowhere"),
        ({"fields": ("id",), "candidate_item": "{id} {title}"}, "'id' cannot be a placeholder"),
        ({"fields": ("sub category",)}, "cannot be a placeholder"),
        ({"history_item": "-"}, "history_item shows nothing"),
        ({"task": "a\x00b"}, "task holds the character '\\x00'"),
        ({"role": "\ud800"}, "role holds the character"),
        ({"output": "x" * 20_001}, "output has 20001 characters"),
        ({"history_length": -1}, "history_length is -1"),
        ({"kind": "guess"}, "kind 'guess' is unknown; use listwise, choice"),
        ({"kind": "likelihood"}, "has a candidates section"),
        ({"kind": "likelihood", "candidates": ""}, "take {count} out"),
        ({"kind": "likelihood", "candidates": "", "output": ""}, "begin it with a space"),
    ],
)
def test_a_broken_template_says_what_is_wrong(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as refused:
        replace(PLAIN, **changes)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


TEXT = st.text(st.sampled_from('"\\\n\t#= ab{}é\u2028') | st.characters(codec="utf-8"), max_size=30).filter(lambda t: not forbidden(t))
QUOTED = st.sampled_from(['a\n"""', '"""\n"""""a', 'x\n\\"""\\', '\n"', "\n\n", 'a\n""\\'])


@settings(max_examples=60)
@given(sections=st.fixed_dictionaries(dict.fromkeys(("role", "task", "reasoning", "output"), TEXT | QUOTED)), join=TEXT, name=TEXT)
def test_toml_gives_back_the_template(sections: dict[str, str], join: str, name: str) -> None:
    template = replace(WITH, name=name, join=join, parents=("a", "b"), history_length=7, newest_first=True, **sections)
    text = to_toml(template)
    assert tomllib.loads(text)["sections"]["role"] == sections["role"]
    assert from_toml(text) == template


@pytest.mark.parametrize("template", STARTING.values(), ids=STARTING)
def test_starting_templates_survive_toml(template: Template) -> None:
    assert from_toml(to_toml(template)) == template


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=", "not TOML"),
        ("name = 'a'", "has no kind"),
        ("name = 'a'\nkind = 'listwise'\nhistorylength = 3", "unknown entry 'historylength'"),
        ("name = 'a'\nkind = 'listwise'\n[sections]\ntitle = 'x'", "unknown entry 'title'; known"),
        ("name = 'a'\nkind = 'listwise'\ntask = 'x'", "unknown entry 'task'; it is a section, write it below a line"),
        ("name = 'a'\nkind = 'listwise'\nhistory_length = '3'", "give a value like 20"),
        ("name = 'a'\nkind = 'listwise'\nfields = 'category'", 'give a value like ["category"]'),
        ("name = 'a'\nkind = 'listwise'\nnewest_first = 1", "give a value like false"),
        ("name = 'a'\nkind = 3", "kind of the template is 3"),
        ("name = 'a'\nkind = 'listwise'\nsections = 3", "not a table"),
    ],
)
def test_what_is_no_template_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        from_toml(text)
    assert message in str(refused.value)


def test_a_difference_is_told_by_section() -> None:
    changed = PLAIN.revise("gepa", task=f"{PLAIN.task}\nThink of genres.", history_length=5)
    told = diff(PLAIN, changed)
    assert told["task"] == ["+ Think of genres."]
    assert told["history_length"] == ["- 20", "+ 5"]
    assert set(told) == {"task", "history_length", "parents", "author"}
    assert diff(PLAIN, PLAIN) == {}
    assert set(SECTIONS) < set(Template.__dataclass_fields__)


def test_versions_in_the_store(tmp_path: Path) -> None:
    child = PLAIN.revise("gepa", task="Rank well.")
    grandchild = child.revise("gepa", PLAIN, output="Ids, best first, such as C2 > C1")
    with Store.open(tmp_path / "store.sqlite") as store:
        rows = [keep(store, t) for t in (PLAIN, child, grandchild)]
        assert keep(store, child) == rows[1]
        assert [(row.parent, row.author) for row in rows] == [(None, "human"), (rows[0].id, "gepa"), (rows[1].id, "gepa")]
        orphan = Template("orphan", "listwise", task="Rank.", parents=("0123456789ab",))
        assert keep(store, orphan).parent is None
        store.add_prompt("persona", "You are a user.", "human")
        assert [template for _, template in kept(store)] == [PLAIN, child, grandchild, orphan]
        assert [find(store, key) for key in ("plain", rows[0].id, child.version, child.version[:6])] == [grandchild, PLAIN, child, child]
        with pytest.raises(UnknownNameError, match=r"is unknown; store .* has orphan, plain"):
            find(store, "zzz")
        with pytest.raises(UnknownNameError, match="is unknown"):
            find(store, "")
