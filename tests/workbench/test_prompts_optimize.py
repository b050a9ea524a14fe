"""The driver of every search: it confirms on fresh rows, opens the test once, and claims nothing of noise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from scipy.stats import binom

from agents.chat import BudgetExceeded
from recsys_core.errors import DataError
from tests.workbench.landscape import rankers, rows
from workbench.prompts.optimize import Report, Rules, optimize, split_dev
from workbench.prompts.optimizer import Outcome
from workbench.prompts.sealed import MemoryJournal
from workbench.prompts.starting import PLAIN
from workbench.prompts.tasks import RankingTask
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

GOOD = "Think about what they liked most."


@cache
def task(dev: int = 120, test: int = 200) -> RankingTask:
    return RankingTask("made up", "landscape", rows("train", 10), rows("dev", dev), rows("test", test))


@dataclass(frozen=True)
class Greedy:
    """Tries wordings on all search rows and believes the best mean, as published loops do."""

    wordings: tuple[str, ...]
    after: Callable[[int], None] = lambda n: None
    name: str = "greedy"

    async def search(self, trials: Trials) -> Outcome:
        tried = []
        for n, wording in enumerate(self.wordings):
            self.after(n)
            template = trials.start.revise(self.name, task=wording)
            tried.append((float((await trials.measure(template, trials.search)).values.mean()), template))
        tried.sort(key=lambda pair: -pair[0])
        before = float((await trials.measure(trials.start, trials.search)).values.mean())
        return Outcome(tuple(t for _, t in tried), tried[0][0] > before)


def searched(quality: Callable[[Template], float], wordings: tuple[str, ...], seed: int = 0, **more: Any) -> Report:
    return asyncio.run(
        optimize(task(), PLAIN, Greedy(wordings), rankers(quality, seed=seed), Rules(metrics=("NDCG@5",), seed=seed), **more)
    )


def planted(template: Template) -> float:
    return 1.2 if template.task == GOOD else 0.4


NOISE = tuple(f"Wording {n}." for n in range(5))


def test_a_planted_improvement_is_found_confirmed_and_holds_on_the_test_rows() -> None:
    journal, parts = MemoryJournal(), []
    report = searched(planted, (*NOISE, GOOD), test=("a test", journal), watch=lambda part, trial: parts.append((part, len(trial.rows))))
    assert report.confirmed
    assert report.adopted.task == GOOD
    assert report.test is not None
    assert report.test.differences["MRR"].low > 0
    (opening,) = journal.openings()
    assert opening.template == report.favourite.version
    assert parts.count(("fresh", 60)) == 1 + Rules().finalists
    assert parts.count(("test", 200)) == 2
    assert [m.name for m in report.test.baselines] == ["random", "popularity", "word overlap", "tfidf"]
    assert report.curse is not None
    assert set(report.shrinkage) == {"favourite, search to fresh", "start, fresh to test", "favourite, fresh to test"}


def test_noise_is_believed_by_a_greedy_loop_and_confirmed_in_no_more_than_five_percent() -> None:
    reports = [searched(lambda _: 0.5, NOISE, seed) for seed in range(40)]
    assert sum(r.claimed for r in reports) > 20
    assert sum(r.confirmed for r in reports) <= binom.ppf(0.999, 40, 0.05)
    assert all(r.adopted == PLAIN for r in reports if not r.confirmed)
    for report in reports:
        assert report.confirmation
        shown = [c.difference for c in report.confirmation.comparisons].index(report.fresh.differences["MRR"].difference)
        assert report.adjusted_p == report.confirmation.adjusted[shown]
    flattered = [r.curse.apparent - r.curse.corrected for r in reports if r.curse]
    assert sum(flattered) / len(flattered) > 0.01


def test_a_search_without_a_finalist_ends_with_the_start_and_the_test_stays_sealed() -> None:
    class Nothing:
        name = "nothing"

        async def search(self, trials: Trials) -> Outcome:
            return Outcome((), False, "found nothing")

    report = asyncio.run(optimize(task(), PLAIN, Nothing(), rankers(planted)))
    assert (report.favourite, report.confirmed, report.confirmation, report.test) == (PLAIN, False, None, None)
    assert report.adjusted_p is None
    assert report.fresh.differences["MRR"].difference == 0


def test_a_search_that_spends_its_budget_ends_with_the_best_it_tried() -> None:
    def spent(n: int) -> None:
        if n == 2:
            raise BudgetExceeded("calls budget of 10 would be passed")

    released: list[bool] = []
    optimizer = Greedy((NOISE[0], GOOD, NOISE[1]), spent)
    report = asyncio.run(optimize(task(), PLAIN, optimizer, rankers(planted), after_search=lambda: released.append(True)))
    assert report.confirmed
    assert report.adopted.task == GOOD
    assert "calls budget" in report.stopped
    assert released == [True]


def test_the_search_sees_neither_fresh_nor_test_rows() -> None:
    whole = task()
    search, fresh = split_dev(whole, Rules())
    seen: dict[str, set[str]] = {}

    def watch(part: str, trial: Any) -> None:
        seen.setdefault(part, set()).update(row.id for row in trial.rows)

    asyncio.run(optimize(whole, PLAIN, Greedy(NOISE), rankers(planted), test=("t", MemoryJournal()), watch=watch))
    assert seen["search"] == {row.id for row in search}
    assert seen["fresh"] == {row.id for row in fresh}
    assert not seen["search"] & (seen["fresh"] | seen["test"])


def test_equal_seeds_give_equal_reports() -> None:
    a, b = (searched(planted, (*NOISE, GOOD), seed=3) for _ in range(2))
    assert a.fresh.differences == b.fresh.differences
    assert a.curse == b.curse


def test_a_template_that_shows_more_is_refused() -> None:
    class Cheat:
        name = "cheat"

        async def search(self, trials: Trials) -> Outcome:
            more = Template("cheat", "listwise", candidate_item="{id}. {title} {category}", fields=("category",))
            await trials.measure(more, trials.search)
            return Outcome((more,), True)

    with pytest.raises(DataError, match="category of candidates"):
        asyncio.run(optimize(task(), PLAIN, Cheat(), rankers(planted)))


@pytest.mark.parametrize("wrong", [{"search_share": 1.0}, {"finalists": 0}, {"alpha": 0.0}])
def test_rules_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="search_share is"):
        Rules(**wrong)


def test_one_dev_row_is_too_few() -> None:
    with pytest.raises(DataError, match="has 1 dev rows"):
        split_dev(task(dev=1), Rules())
