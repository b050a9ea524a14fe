"""Keeping templates: each costs what one costs, and lands where it would if the store were read anew for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workbench.landscape import Simulated, rows
from workbench.optimization.keeping import TrialKeeper
from workbench.prompts.metrics import measure
from workbench.prompts.starting import PLAIN
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trial
from workbench.prompts.versions import Shelf, keep, kept
from workbench.store import Store

ROWS = tuple(rows("search", 4))


def trial(template: Template) -> Trial:
    ranked = tuple(asyncio.run(Simulated(template, 1.0).rank(ROWS)))
    return Trial(template, ROWS, ranked, measure(template.name, ROWS, [one.ranking for one in ranked], ("MRR",)))


def test_one_more_template_of_a_search_reads_none_of_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Store._rows
    fetched: list[int] = []

    def counted(store: Store, query: Any) -> list[Any]:
        found = read(store, query)
        fetched.append(len(found))
        return found

    with Store.open(tmp_path / "s.sqlite") as store:
        run = store.start_run("optimize", "n", {}, 0)
        for n in range(10):
            keep(store, replace(PLAIN, task=f"Rank, attempt {n}."))
        keeper = TrialKeeper(store, run)
        monkeypatch.setattr(Store, "_rows", counted)
        for n in range(5, 30):
            fetched.clear()
            keeper.keep("search", trial(replace(PLAIN, task=f"Rank, attempt {n}.")))
            assert sum(fetched) <= 1
        monkeypatch.undo()
        assert [t.task for _, t in kept(store)] == [f"Rank, attempt {n}." for n in range(30)]
        assert len(store.trials(run)) == 25


@st.composite
def families(draw: st.DrawFn) -> list[Template]:
    """Templates in any order, some twice: of equal wording or name, of parents that come before, later, or never."""
    known = [PLAIN, Template("orphan", "listwise", task="Rank.", parents=("0123456789ab",))]
    for n in range(draw(st.integers(1, 6))):
        others = draw(st.lists(st.sampled_from(known), max_size=2))
        task = draw(st.sampled_from([PLAIN.task, "Rank well.", f"Rank, attempt {n}."]))
        revised = draw(st.sampled_from(known)).revise(draw(st.sampled_from(["gepa", "human"])), *others, task=task)
        known.append(replace(revised, name=draw(st.sampled_from(["plain", "mine"]))))
    return draw(st.permutations(known + draw(st.lists(st.sampled_from(known), max_size=4))))


@settings(max_examples=20, deadline=None)
@given(family=families(), there=st.integers(0, 3))
def test_a_shelf_keeps_what_a_fresh_look_for_each_would(
    family: list[Template], there: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stores")
    with Store.open(folder / "anew.sqlite") as anew, Store.open(folder / "once.sqlite") as once:
        for store in (anew, once):
            store.add_prompt("persona", "You are a user.", "human")
            for template in family[:there]:
                keep(store, template)
        shelf = Shelf(once)
        for template in family:
            expected, found = keep(anew, template), shelf.keep(template)
            assert replace(found, created=0.0) == replace(expected, created=0.0)
        assert [t for _, t in kept(once)] == [t for _, t in kept(anew)] == list(dict.fromkeys(family))
