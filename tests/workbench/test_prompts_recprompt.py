"""RecPrompt on a landscape of known quality: the fixed loop finds what is there and claims nothing else; the published one claims noise."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from agents.seeding import stream
from recsys_core.errors import DataError
from tests.workbench.landscape import rankers, rows
from workbench.prompts.optimizer import Outcome
from workbench.prompts.optimizers import recprompt
from workbench.prompts.optimizers.recprompt import RecPrompt
from workbench.prompts.proposing import ProposerError, sections_text
from workbench.prompts.starting import PLAIN
from workbench.prompts.templates import Template
from workbench.prompts.trials import Trials

PLANTED = "Weigh the latest titles most."


def section(name: str, text: str) -> str:
    return f'Because.\n<section name="{name}">\n{text}\n</section>'


class Scripted:
    """Proposes by a function of the question and its repeat index, and keeps what it was asked."""

    def __init__(self, say: Callable[[str, int], str]) -> None:
        self.say, self.asked = say, list[tuple[str, int]]()

    async def ask(self, text: str, repeat: int = 0) -> str:
        self.asked.append((text, repeat))
        return self.say(text, repeat)


def guessing(seed: int, chance: float = 0.0) -> Scripted:
    """Hints of no worth, and now and then the planted one; no two answers are alike, equal questions have equal answers."""

    def say(text: str, repeat: int) -> str:
        draw = stream(seed, "proposal", text, repeat)
        hint = PLANTED if draw.random() < chance else f"Remember hint {draw.integers(10**9)}."
        return section("task", f"{PLAIN.task}\n{hint}")

    return Scripted(say)


def planted(worth: float) -> Callable[[Template], float]:
    return lambda template: worth if PLANTED in template.task else 0.0


NULL = planted(0.0)
TRAIN, SEARCH = rows("train", 40), rows("search", 150)


def run(optimizer: RecPrompt, quality: Callable[[Template], float] = NULL, search: int = 60, seed: int = 0) -> tuple[Outcome, Trials]:
    trials = Trials(PLAIN, TRAIN, SEARCH[:search], rankers(quality, seed=seed))
    return asyncio.run(optimizer.search(trials)), trials


@pytest.mark.parametrize("seed", range(3))
def test_fixed_finds_the_planted_improvement(seed: int) -> None:
    outcome, trials = run(RecPrompt(guessing(seed, 0.5), iterations=6, seed=seed), planted(1.0), search=150, seed=seed)
    assert outcome.claimed
    (found,) = outcome.finalists
    assert PLANTED in found.task
    assert found.author == "recprompt"
    assert len({(t.template.version, row.id) for t in trials.tried for row in t.rows}) <= 7 * 150 + 2 * 6 * 24


def test_only_the_published_loop_claims_what_is_not_there() -> None:
    """Of 40 searches on templates that are all alike, the fixed loop may claim what level .05 allows, the published one 4 of 5."""
    seeds = 40
    fixed = sum(run(RecPrompt(guessing(s), iterations=3, sample=3, seed=s), search=30, seed=s)[0].claimed for s in range(seeds))
    paper = sum(run(RecPrompt(guessing(s), "paper", iterations=4, seed=s), search=20, seed=s)[0].claimed for s in range(seeds))
    assert fixed <= binom.ppf(0.999, seeds, 0.05)
    assert paper >= binom.ppf(0.001, seeds, 4 / 5)
    assert binom.ppf(0.001, seeds, 4 / 5) > 2 * binom.ppf(0.999, seeds, 0.05)


def test_levels_of_all_races_add_up_to_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []
    race = recprompt.race

    async def watched(*args: Any, **settings: Any) -> Any:
        levels.append(settings["alpha"])
        return await race(*args, **settings)

    monkeypatch.setattr(recprompt, "race", watched)
    run(RecPrompt(guessing(0), iterations=5, sample=4, alpha=0.1), search=16)
    assert len(levels) == 5
    assert sum(levels) == pytest.approx(0.1)


def test_fixed_builds_on_its_own_best_and_tells_why() -> None:
    """The planted words come first, then more words of no worth; later questions show the accepted template and what was refused."""

    def say(text: str, repeat: int) -> str:
        hint = PLANTED if repeat == 0 else "no section at all" if repeat == 3 else f"More {repeat}."
        return hint if repeat == 3 else section("task" if repeat == 0 else "reasoning", hint)

    proposer = Scripted(say)
    outcome, trials = run(RecPrompt(proposer, iterations=4, sample=12), planted(1.5), search=80)
    best = outcome.finalists[0]
    assert best == PLAIN.revise("recprompt", task=PLANTED)
    assert outcome.note == "1 of 4 iterations brought a template that won its race"
    questions = [text for text, _ in proposer.asked]
    assert sections_text(PLAIN) in questions[0]
    assert all(sections_text(best) in text for text in questions[1:])
    assert all(len(re.findall(r"^Chosen: C\d+, ranked \d+\w\w of 10, should be 1st", text, re.MULTILINE)) == 4 for text in questions)
    assert f"- {PLAIN.version}: 0." in questions[1]
    assert "holds no section" in questions[2]
    assert "Your last answer could not be taken" in questions[2]
    assert f"not shown to be better than {best.version}" in questions[3]
    assert [repeat for _, repeat in proposer.asked] == [0, 3, 4, 6, 9]
    assert all(t.template.parents in ((), (PLAIN.version,), (best.version,)) for t in trials.tried)


def test_fixed_shows_its_proposer_train_rows_only() -> None:
    proposer = guessing(1, 0.5)
    _, trials = run(RecPrompt(proposer, iterations=4), planted(2.0), search=40)
    assert all("of train" in text and "of search" not in text for text, _ in proposer.asked)
    # Nor figures of search rows: those in the last question are what is known of train rows, but for the last proposal.
    searched = {row.id for row in trials.search}
    told = dict(re.findall(r"^- (\w{12}): (\d\.\d{3} \S+ \d\.\d{3} on \d+) rows", proposer.asked[-1][0], re.MULTILINE))
    assert PLAIN.version in told
    for template in {t.template.version: t.template for t in trials.tried if t.template.version in told}.values():
        values = [value for row, value in trials.known(template).items() if row not in searched]
        assert told[template.version] == f"{np.mean(values):.3f} +- {np.std(values, ddof=1) / np.sqrt(len(values)):.3f} on {len(values)}"


def test_fixed_offers_what_stayed_undecided() -> None:
    outcome, _ = run(RecPrompt(guessing(0, 1.0), iterations=1, sample=4), planted(0.5), search=40)
    assert not outcome.claimed
    assert [PLANTED in t.task for t in outcome.finalists] == [True]


@pytest.mark.parametrize("mode", ["fixed", "paper"])
def test_a_search_can_be_replayed(mode: Any) -> None:
    searches = [run(RecPrompt(guessing(3, 0.3), mode, iterations=4, sample=6, seed=3), planted(1.0), 40) for _ in range(2)]
    (one, first), (other, second) = searches
    assert one == other
    assert [t.template for t in first.tried] == [t.template for t in second.tried]
    assert first.rejected == second.rejected


@pytest.mark.parametrize("mode", ["fixed", "paper"])
def test_useless_answers_cost_an_iteration_and_a_blank_proposer_ends_the_search(mode: Any) -> None:
    idle = Scripted(lambda text, repeat: "I have no idea.")
    outcome, trials = run(RecPrompt(idle, mode, iterations=3, attempts=2, sample=4), search=20)
    assert outcome.finalists == ()
    assert not outcome.claimed
    assert len(trials.rejected) == 6
    assert len(set(idle.asked)) == 6

    def blank(text: str, repeat: int) -> str:
        raise ProposerError("the proposer gave nothing")

    with pytest.raises(ProposerError, match="gave nothing"):
        run(RecPrompt(Scripted(blank), mode, iterations=3, sample=4), search=20)


def test_paper_shows_the_start_twice_and_one_search_row() -> None:
    """The quirks of the published loop: it never builds on its best, and its example is always the same row, with the latest answer."""
    proposer = Scripted(lambda text, repeat: section("task", f"{PLANTED} {repeat}"))
    outcome, trials = run(RecPrompt(proposer, "paper", iterations=4), planted(3.0), search=120)
    assert outcome.claimed
    assert outcome.finalists[0].author == "recprompt-paper"
    assert {t.template.parents for t in trials.tried[1:]} == {(PLAIN.version,)}
    assert {len(t.rows) for t in trials.tried} == {100}
    assert all(t.rows == trials.search[:100] for t in trials.tried)
    questions = [text for text, _ in proposer.asked]
    assert all(text.count(sections_text(PLAIN)) == 2 for text in questions)
    assert len({re.search(r"of (search \d+)", text)[1] for text in questions}) == 1  # type: ignore[index]
    assert not any(re.search(r"ranked \d|should be|Scores|Not taken", text) for text in questions)
    (row,) = [row for row in trials.search if f"C1. {row.candidates[0].title}\n" in questions[0]]
    (chosen,) = row.positives
    assert all(f"Chosen: C{int(chosen[1:]) + 1}. Title {chosen[1:]} of " in text for text in questions)


def test_paper_shows_the_answer_of_the_latest_proposal() -> None:
    seen: list[str] = []

    class Telling:
        def __init__(self, template: Template) -> None:
            self.template, self.inner = template, rankers(NULL)(template)

        def calls(self, row: Any) -> int:
            return 1

        async def rank(self, asked: Any, repeat: int = 0) -> Any:
            said = f"by {self.template.version}"
            return [replace(one, replies=(replace(one.replies[0], text=said),)) for one in await self.inner.rank(asked, repeat)]

    def say(text: str, repeat: int) -> str:
        seen.append(re.search(r"^Answer: by (\w+)$", text, re.MULTILINE)[1])  # type: ignore[index]
        return section("task", f"Try {repeat}.")

    trials = Trials(PLAIN, (), SEARCH[:12], Telling)
    asyncio.run(RecPrompt(Scripted(say), "paper", iterations=4).search(trials))
    assert seen == [t.template.version for t in trials.tried[:-1]]


def test_paper_asks_again_with_another_row_and_without_a_reason() -> None:
    answers = {
        0: "nothing",
        1: section("task", PLAIN.task),
        2: section("task", "One."),
        3: section("task", "One."),
        4: section("task", "Two."),
    }
    proposer = Scripted(lambda text, repeat: answers[repeat])
    _, trials = run(RecPrompt(proposer, "paper", iterations=2), search=60)
    assert [repeat for _, repeat in proposer.asked] == [0, 1, 2, 3, 4]
    rows_shown = [re.search(r"of (search \d+)", text)[1] for text, _ in proposer.asked]  # type: ignore[index]
    assert len(set(rows_shown[:3])) == 3
    assert rows_shown[3:] == rows_shown[:2]
    assert not any("could not be taken" in text for text, _ in proposer.asked)
    assert [t.template.task for t in trials.tried] == [PLAIN.task, "One.", "Two."]


def test_paper_accepts_by_the_mean_of_four_rounded_percentages() -> None:
    proposer = Scripted(lambda text, repeat: section("task", f"Try {repeat}."))
    outcome, trials = run(RecPrompt(proposer, "paper", iterations=6, rows=25), search=40)

    def score(trial: Any) -> float:
        metrics = []
        places = [
            next(n for n, group in enumerate(one.ranking, 1) if set(group) & row.positives)
            for row, one in zip(trial.rows, trial.ranked, strict=True)
        ]
        for values in (
            [(10 - p) / 9 for p in places],
            [1 / p for p in places],
            [1 / np.log2(1 + p) if p <= 5 else 0.0 for p in places],
            [1 / np.log2(1 + p) for p in places],
        ):
            metrics.append(round(100 * float(np.mean(values)), 2))
        return round(float(np.mean(metrics)), 2)

    scores = [score(trial) for trial in trials.tried]
    best = max(range(len(scores)), key=lambda n: scores[n])
    assert outcome.claimed == (best > 0)
    assert outcome.finalists == ((trials.tried[best].template,) if best else ())
    assert f"{scores[best]:.2f}" in outcome.note


def test_wrong_settings_and_missing_train_rows_are_refused() -> None:
    for wrong in ({"iterations": 0}, {"rows": 0}, {"attempts": 0}, {"mode": "both"}, {"alpha": 1.0}):
        with pytest.raises(DataError, match=next(iter(wrong))):
            RecPrompt(guessing(0), **wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there are none"):
        asyncio.run(RecPrompt(guessing(0)).search(Trials(PLAIN, (), SEARCH[:4], rankers(NULL))))
