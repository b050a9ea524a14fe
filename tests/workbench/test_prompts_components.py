"""The search over a template's components: what it may change, what its model believes, and what it finds and claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landscape import Simulated, rankers, rows
from scipy.stats import binom, multivariate_normal

from agents.chat import BudgetExceeded
from recsys_core.errors import DataError
from workbench.prompts.answers import parse_ranking
from workbench.prompts.components import additive
from workbench.prompts.components.additive import Additive
from workbench.prompts.components.examples import teachers
from workbench.prompts.components.space import Space
from workbench.prompts.optimizers.components import Components
from workbench.prompts.ranked import Ranked
from workbench.prompts.starting import LIKELIHOOD, PLAIN, PO4ISR, POINTWISE, STARTING, showing
from workbench.prompts.tasks import Item, Row
from workbench.prompts.templates import Template, same_features
from workbench.prompts.trials import Trials

AWKWARD = "Braces {history} {title} {{count}} {id}"
NUMBERED = replace(PLAIN, name="numbered", history_item="{number}) {title}", newest_first=True, history="Newest first: {history}")
SHOWING = [showing(t, ("category", "mood")) for t in STARTING.values()]
WITHOUT_HISTORY = replace(PLAIN, name="no history", history_length=0)
UNUSUAL = replace(LIKELIHOOD, name="unusual", history="Write {{history}} as {history}")
STARTS = {t.name: t for t in (*STARTING.values(), *SHOWING, NUMBERED, WITHOUT_HISTORY, UNUSUAL)}


def row(name: str, n: int = 6, user: str = "") -> Row:
    """With one positive, and titles that look like placeholders."""
    made = [Item(f"{name}-{i}", f"{AWKWARD} {name} {i}", {"category": f"kind {i % 2}", "mood": "calm"}) for i in range(2 * n)]
    return Row(name, tuple(made[:n]), tuple(made[n:]), {made[n + 1].id: 1.0}, user=user)


TRAIN, SEARCH = [row(f"train{n}") for n in range(8)], [row(f"dev{n}", 3 + n) for n in range(4)]


@cache
def space(start: str) -> Space:
    return Space(STARTS[start], SEARCH, TRAIN)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(STARTS)), st.data())
def test_every_combination_is_a_valid_template_that_shows_the_same(start: str, data: st.DataObject) -> None:
    found = space(start)
    choice = tuple(data.draw(st.integers(0, len(c.options) - 1), label=c.name) for c in found.components)
    template = found.template(choice)
    same_features(found.start, template)
    assert template.kind == found.start.kind
    if any(choice):
        assert (template.author, template.parents) == ("components", (found.start.version,))
    one = SEARCH[0]
    document = template.render(one.history, one.candidates).document
    length = template.history_length
    shown = [item.title in document for item in one.history]
    # Titles of the latest items, as they are: braces in them, and in those of examples, open no placeholder.
    assert all(shown[-length:] if length else [])
    assert "train" not in document or AWKWARD in document
    if template.kind != "likelihood":
        assert all(item.title in document for item in one.candidates)
    assert not any(other.candidates[1].title in document for other in SEARCH[1:])


@pytest.mark.parametrize("start", sorted(STARTS))
def test_components_can_be_combined_and_each_option_reads_differently(start: str) -> None:
    found = space(start)
    parts = [{name for option in c.options for name in option.parts} for c in found.components]
    assert sum(map(len, parts)) == len(set().union(*parts)), "two components set the same part"
    assert found.template(found.unchanged) is found.start
    versions = [found.start.version]
    for place, component in enumerate(found.components):
        for n in range(1, len(component.options)):
            versions.append(found.template(tuple(n * (i == place) for i in range(len(found.components)))).version)
    assert len(set(versions)) == len(versions)


def test_lengths_that_no_history_reaches_are_left_out() -> None:
    lengths = next(c for c in space("plain").components if c.name == "history length")
    assert [option.name for option in lengths.options] == ["as it is", "1", "2", "3", "5"], "the longest history has 6 items"
    assert not any(c.name in ("history length", "order", "examples") for c in space("no history").components)


def test_the_words_follow_the_order_of_the_history() -> None:
    for start, told in (("plain", "newest first:"), ("po4isr", "in one session, newest first."), ("numbered", "Oldest first")):
        found = space(start)
        order = next(n for n, c in enumerate(found.components) if c.name == "order")
        template = found.template(tuple(int(n == order) for n in range(len(found.components))))
        assert template.newest_first is not found.start.newest_first
        if start != "numbered":  # which tells it in a spelling of its own, and keeps it
            assert told in template.render(SEARCH[0].history, SEARCH[0].candidates).text


def test_examples_come_from_others() -> None:
    same_user, same_row = row("train8", user="ann"), replace(SEARCH[1], id="under another name")
    search = [*SEARCH, row("dev9", user="ann")]
    found = teachers([*TRAIN, same_user, same_row, SEARCH[0], replace(TRAIN[0], id="x", history=())], search, 0)
    assert sorted(one.id for one in found) == sorted(one.id for one in TRAIN)
    assert [one.id for one in teachers(TRAIN, search, 0)] != [one.id for one in teachers(TRAIN, search, 1)]


@pytest.mark.parametrize("start", [PLAIN, POINTWISE, LIKELIHOOD, STARTING["choice"]], ids=lambda t: t.name)
def test_an_example_shows_what_was_chosen(start: Template) -> None:
    found = Space(start, SEARCH, TRAIN)
    place = next(n for n, c in enumerate(found.components) if c.name == "examples")
    template = found.template(tuple(int(n == place) for n in range(len(found.components))))
    (name,) = found.components[place].options[1].parts["examples"]
    chosen = name.candidates[1]
    if start.kind == "likelihood":
        prompt = template.render((), ()).text
        assert prompt == LIKELIHOOD.render(name.history[-4:], ()).text + f" {chosen.title}" + "\n\nTitles I chose:"
        return
    text = template.render(SEARCH[0].history, SEARCH[0].candidates).text
    if start.kind == "pointwise":
        assert f"- {chosen.title}\n\n{POINTWISE.output} Yes\n\n" in text
        assert text.count("Answer: No") == 1
        return
    offered = [
        next(i for i in name.candidates if line.endswith(i.title)) for line in text.splitlines() if line[:1] == "C" and "train" in line
    ]
    answer = parse_ranking(next(line for line in text.splitlines() if line.startswith("Answer: ")), offered)
    assert answer.order[0] == chosen.id
    assert answer.status == ("complete" if start.kind == "listwise" else "partial")


def drawn(n: int, seed: int) -> tuple[list[tuple[int, ...]], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    return [tuple(map(int, rng.integers(0, (2, 3)))) for _ in range(n)], [f"r{i}" for i in rng.integers(0, 4, n)], rng.uniform(size=n)


def parts(choices: Sequence[tuple[int, ...]], names: Sequence[str]) -> list[np.ndarray]:
    """Design matrices of base, options, rows and templates, written down independently."""
    options = np.array([[a == 0, a == 1, b == 0, b == 1, b == 2] for a, b in choices], float)
    return [np.ones((len(choices), 1)), options, *(
        np.array([[x == y for y in dict.fromkeys(of)] for x in of], float) for of in (names, choices)
    )]  # fmt: skip


def test_effects_are_the_best_linear_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the textbook form, the covariance of effects and values times the inverse of the values' (Henderson 1975)."""
    monkeypatch.setattr(additive, "_STEPS", 1)  # so that effects are those of the first variances
    choices, names, values = drawn(12, 0)
    model = Additive((2, 3))
    model._estimate = lambda: None  # type: ignore[method-assign]
    for choice, name, value in zip(choices, names, values, strict=True):
        model.add(choice, [(name, value)])
    Additive._estimate(model)
    designs = parts(choices, names)
    between = sum(v * z @ z.T for v, z in zip(additive._VARIANCES, designs, strict=True)) + additive._NOISE * np.eye(12)
    residual = np.linalg.solve(between, values)
    base, options, _, own = (v * z.T @ residual for v, z in zip(additive._VARIANCES, designs, strict=True))
    first = list(dict.fromkeys(choices))
    assert model.value((1, 2)) == pytest.approx(base[0] + options[1] + options[4] + (own[first.index((1, 2))] if (1, 2) in first else 0))
    assert model.best() == (int(options[:2].argmax()), int(options[2:].argmax()))


@pytest.mark.parametrize("seed", range(3))
def test_variances_are_the_most_likely_ones(seed: int) -> None:
    """Against the density of all values, which no step lowers and which no other variance near the end raises."""
    choices, names, values = drawn(40, seed)
    values = 0.3 * values + 0.2 * np.array([name in ("r0", "r1") for name in names]) + 0.2 * np.array([b == 2 for _, b in choices])
    designs = parts(choices, names)
    model = Additive((2, 3))

    def likelihood(variances: np.ndarray, noise: float) -> float:
        between = sum(v * z @ z.T for v, z in zip(variances, designs, strict=True)) + noise * np.eye(40)
        return float(multivariate_normal.logpdf(values, cov=between))

    for choice, name, value in zip(choices, names, values, strict=True):
        model.add(choice, [(name, value)])
    before = likelihood(model._variances, model._noise)
    for _ in range(300):
        model._estimate()
        after = likelihood(model._variances, model._noise)
        assert after >= before - 1e-9
        before = after
    for by in (0.8, 1.25):
        assert likelihood(model._variances, by * model._noise) < before
        for n in (1, 2, 3):
            changed = model._variances.copy()
            changed[n] *= by
            assert likelihood(changed, model._noise) < before + 0.01, "but for a little, where a variance is held at its least"


def test_draws_are_as_uncertain_as_the_model() -> None:
    model, rng = Additive((2,)), np.random.default_rng(0)
    assert np.mean([model.draw(rng)[0] for _ in range(2000)]) == pytest.approx(0.5, abs=0.05)
    for n in range(40):
        model.add((n % 2,), [(f"r{n}", 0.2 + 0.6 * (n % 2))])
    assert np.mean([model.draw(rng)[0] for _ in range(200)]) > 0.95


Quality = Callable[[Template], float]


def planted(template: Template) -> float:
    """Four changes that are worth something, one that does harm; 0 for the start."""
    return (
        0.35 * (template.history_length == 2) + 0.25 * ('"' in template.history_item) + 0.25 * template.candidate_item.endswith(".")
        + 0.25 * template.history.startswith("My favourites") - 0.5 * template.newest_first
    )  # fmt: skip


async def search(quality: Quality, seed: int, n: int = 40, **settings: int) -> tuple[Trials, list[Template], bool]:
    trials = Trials(LIKELIHOOD, rows("train", 10), rows(f"search{seed}", n), rankers(quality, seed=seed))
    outcome = await Components(seed=seed, **settings).search(trials)
    return trials, list(outcome.finalists), outcome.claimed


async def test_it_finds_what_was_planted_within_its_evaluations() -> None:
    gains = []
    for seed in range(5):
        trials, finalists, _ = await search(planted, seed, evaluations=350)
        ranked = {(trial.template.version, one) for trial in trials.tried for one in trial.measured.rows}
        assert 250 < len(ranked) <= 350
        assert len(finalists) <= 3
        assert trials.start.version not in {t.version for t in finalists}
        gains.append(planted(finalists[0]))
    assert np.mean(gains) > 0.55, "half of 1.1, where a template by chance has .05"


async def test_it_claims_what_is_plain_and_hardly_ever_what_is_not_there() -> None:
    plain = [await search(lambda t: 4.0 * (t.history_length == 1), seed, n=60, evaluations=240) for seed in range(2)]
    assert all(claimed and finalists[0].history_length == 1 for _, finalists, claimed in plain)
    claims = [(await search(lambda _: 0.3, seed, n=24, evaluations=90))[2] for seed in range(40)]
    assert sum(claims) <= binom.ppf(0.99, 40, 0.05)


async def test_equal_seeds_search_alike() -> None:
    (one, found, _), (two, again, _) = [await search(planted, 3, evaluations=100) for _ in range(2)]
    assert [(t.template.version, t.measured.rows) for t in one.tried] == [(t.template.version, t.measured.rows) for t in two.tried]
    assert [t.version for t in found] == [t.version for t in again]


@pytest.mark.parametrize(("n", "evaluations"), [(1, 50), (2, 50), (40, 10)])
async def test_few_rows_and_few_evaluations_are_no_trouble(n: int, evaluations: int) -> None:
    trials, _, claimed = await search(lambda _: 0.0, 0, n=n, evaluations=evaluations)
    assert not claimed
    assert sum(len(trials.known(t)) for t in {trial.template.version: trial.template for trial in trials.tried}.values()) <= evaluations


@pytest.mark.parametrize("after", [20, 44])
async def test_a_budget_that_ends_leaves_what_was_learned(after: int) -> None:
    """42 of 46 calls are trials, the others the race."""
    calls = 0

    class Bounded(Simulated):
        async def rank(self, rows: Sequence[Row], repeat: int = 0) -> list[Ranked]:
            nonlocal calls
            calls += 1
            if calls > after:
                raise BudgetExceeded("spent")
            return await super().rank(rows, repeat)

    trials = Trials(LIKELIHOOD, rows("train", 10), rows("search", 24), lambda t: Bounded(t, planted(t)))
    outcome = await Components(evaluations=240).search(trials)
    assert calls > after
    assert outcome.stopped == "spent"
    assert outcome.finalists
    assert not outcome.claimed


async def test_it_works_on_what_a_model_is_asked_in_words() -> None:
    trials = Trials(PO4ISR, TRAIN, SEARCH, rankers(lambda t: 2.0 * (not t.reasoning)))
    outcome = await Components(80, seed=1).search(trials)
    assert not outcome.finalists[0].reasoning
    assert "rankings of 3 rows" in outcome.note


def test_settings_out_of_bounds_are_refused() -> None:
    for bad in ({"evaluations": 0}, {"block": 0}, {"held": 1.0}, {"finalists": 0}):
        with pytest.raises(DataError, match="give at least 1"):
            Components(**bad)
