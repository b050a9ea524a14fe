"""Rankers through the real client, on models whose preference, bias and failures are planted."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chat import Budget, BudgetExceeded, CallFailed, ChatClient, Endpoint, MemoryCache, ScoreRequest, connect
from recsys_core.data import Dataset
from recsys_core.errors import DataError, UnavailableError
from recsys_core.recommender import Histories
from workbench.prompts import recommender
from workbench.prompts.asking import Asking
from workbench.prompts.choices import Pairwise, Setwise, round_robin
from workbench.prompts.fusion import borda, reciprocal_rank
from workbench.prompts.listwise import Listwise
from workbench.prompts.pointwise import Pointwise
from workbench.prompts.positions import position_curve
from workbench.prompts.ranked import Ranker, positions, rates
from workbench.prompts.rankers import ranker_for
from workbench.prompts.recommender import LLMRanker
from workbench.prompts.repeated import Repeated, shuffled
from workbench.prompts.scoring import Likelihood
from workbench.prompts.starting import CHOICE, LIKELIHOOD, PLAIN, PO4ISR, POINTWISE, RECPROMPT
from workbench.prompts.tasks import Item, Ranking, Row, tied

pytest.importorskip("langchain_core")

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

Candidates = list[tuple[str, int]]
"""Label and quality, in the order shown."""
SHOWN = re.compile(r"^(C\d+)\. film (\d+)$", re.MULTILINE)


class Planted(BaseChatModel):
    """Answers by a function of the prompt's last turn and how often that was asked before."""

    say: Callable[[str, int], str]
    pause: float = 0.0
    asked: Any = None

    def __init__(self, say: Callable[[str, int], str], pause: float = 0.0) -> None:
        super().__init__(say=say, pause=pause, asked=Counter())  # type: ignore[call-arg]

    @property
    def _llm_type(self) -> str:
        return "planted"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        text = str(messages[-1].text)
        self.asked[text] += 1
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.say(text, self.asked[text] - 1)))])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        answer = self._generate(messages)
        await asyncio.sleep(self.pause)
        return answer


def by_quality(text: str, _: int = 0) -> str:
    found = sorted(SHOWN.findall(text), key=lambda pair: -int(pair[1]))
    return " > ".join(label for label, _ in found)


def best(text: str, _: int = 0) -> str:
    return by_quality(text).split(" > ")[0]


def row(n: int = 8, name: str = "r", grades: dict[str, float] | None = None) -> Row:
    return Row(name, (Item("h", "seen"),), tuple(Item(f"i{q}", f"film {q}") for q in range(n)), grades or {})


def order(n: int) -> Ranking:
    return tuple((f"i{q}",) for q in reversed(range(n)))


def rank(ranker: Ranker, *rows: Row) -> list[Any]:
    return asyncio.run(ranker.rank(rows))


RANKERS: dict[str, tuple[Callable[[str, int], str], Callable[[ChatClient], Ranker]]] = {
    "listwise": (by_quality, lambda c: Listwise(c, PLAIN)),
    "recprompt": (by_quality, lambda c: Listwise(c, RECPROMPT)),
    "po4isr": (lambda t, n: f"1. One group.\n2. A want.\nFinal ranking: {by_quality(t)}", lambda c: Listwise(c, PO4ISR)),
    "repeated": (by_quality, lambda c: ranker_for(c, PLAIN, repetitions=3)),
    "pairwise": (best, lambda c: Pairwise(c, CHOICE)),
    "pairwise, shuffled": (best, lambda c: ranker_for(c, CHOICE, set_size=2)),
    "setwise": (best, lambda c: Setwise(c, CHOICE, size=3)),
    "comparator": (best, lambda c: Setwise(c, CHOICE, size=2)),
}


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_finds_a_planted_order(name: str) -> None:
    say, make = RANKERS[name]
    rows = [row(n, f"r{n}") for n in (1, 2, 3, 7, 8)]
    results = rank(make(connect(Planted(say))), *rows)
    assert [r.row for r in results] == [r.id for r in rows]
    assert [r.ranking for r in results] == [order(len(r.candidates)) for r in rows]
    assert rates(results).invalid == rates(results).partial == 0


@pytest.mark.parametrize("name", RANKERS)
def test_what_is_asked_does_not_depend_on_what_was_chosen(name: str) -> None:
    asked = []
    for grades in ({"i0": 1.0}, {"i5": 1.0, "i6": 2.0}):
        model = Planted(lambda text, n: "no idea" if n == 0 else RANKERS[name][0](text, n))
        results = rank(RANKERS[name][1](connect(model)), row(grades=grades))
        asked.append((model.asked, [(reply.keys, reply.retries) for result in results for reply in result.replies]))
    assert asked[0] == asked[1]


def test_unusable_answers_are_asked_again_a_bounded_number_of_times_and_then_tied() -> None:
    model = Planted(lambda text, n: "no idea")
    (result,) = rank(Listwise(connect(model), PLAIN, Asking(retries=2)), row())
    (reply,) = result.replies
    assert result.ranking == tied(row()) == reply.ranking
    assert (reply.status, reply.retries, reply.missing, len(set(reply.keys)), model.asked.total()) == ("invalid", 2, 8, 3, 3)
    model = Planted(lambda text, n: "no idea" if n == 0 else "C3, C9, C3")
    (result,) = rank(Listwise(connect(model), PLAIN, Asking(retries=2)), row())
    (reply,) = result.replies
    assert result.ranking == tied(row(), ("i2",))
    assert (reply.status, reply.retries, reply.duplicates, reply.unknown, reply.missing) == ("partial", 1, 1, 1, 7)
    assert str(rates([result])) == "1 replies: 0% complete, 100% partial, 0% invalid; 1 retries"


def test_a_question_that_fails_leaves_its_row_tied_and_the_others_ranked() -> None:
    def say(text: str, n: int) -> str:
        if "film 9" in text:
            raise ValueError("refused")
        return by_quality(text)

    results = rank(Listwise(connect(Planted(say), retries=0), PLAIN), row(10, "bad"), row(4, "good"))
    assert results[0].ranking == tied(row(10))
    assert "refused" in results[0].replies[0].error
    assert results[1].ranking == order(4)


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize("usable", [True, False])
def test_the_calls_foretold_are_the_most_there_can_be(name: str, usable: bool) -> None:
    say, make = RANKERS[name]
    for n in (1, 2, 5, 9):
        model = Planted(say if usable else lambda text, _: "no idea")
        ranker = make(connect(model))
        rank(ranker, row(n))
        assert model.asked.total() <= ranker.calls(row(n)) <= max(2.0 * n * n, 1) * 2 * 3
        if not usable and "wise" in name and name != "setwise":
            assert model.asked.total() == ranker.calls(row(n))


def test_settings_out_of_bounds_are_refused() -> None:
    client = connect(Planted(best))
    for make in (
        lambda: Asking(retries=16),
        lambda: Asking(temperature=-1),
        lambda: Asking(max_tokens=0),
        lambda: Repeated(Listwise(client, PLAIN), 0),
        lambda: Setwise(client, CHOICE, size=1),
        lambda: Pairwise(client, CHOICE, most=0),
        lambda: Listwise(client, CHOICE),
        lambda: Likelihood(client, LIKELIHOOD),
    ):
        with pytest.raises(DataError):
            make()


async def test_a_budget_stops_the_run_and_the_next_repeats_no_call() -> None:
    model, cache = Planted(by_quality), MemoryCache()
    rows = [row(4, f"r{n}") for n in range(20)]
    # One repetition of distinct prompts: rows differ in their order only.
    with pytest.raises(BudgetExceeded):
        await ranker_for(connect(model, cache=cache, budget=Budget(calls=7)), PLAIN).rank(rows)
    assert model.asked.total() == 7
    client = connect(model, cache=cache)
    results = await ranker_for(client, PLAIN).rank(rows)
    assert all(result.ranking == order(4) for result in results)
    assert max(model.asked.values()) == 1
    assert client.counts.cache_hits >= 7


def test_what_is_in_flight_when_the_endpoint_fails_is_kept() -> None:
    def say(text: str, n: int) -> str:
        if "film 9" in text and n == 0:
            raise UnavailableError("the endpoint is gone")
        return by_quality(text)

    model, cache = Planted(say, pause=0.05), MemoryCache()
    rows = [row(10, "bad"), *(row(n, f"r{n}") for n in range(2, 6))]
    with pytest.raises(UnavailableError, match="the endpoint is gone"):
        rank(Listwise(connect(model, cache=cache), PLAIN), *rows)
    results = rank(Listwise(connect(model, cache=cache), PLAIN), *rows)
    assert [r.ranking[0] for r in results] == [("i9",), ("i1",), ("i2",), ("i3",), ("i4",)]
    assert sorted(model.asked.values()) == [1, 1, 1, 1, 2]


# Order


def test_orders_are_drawn_from_seed_row_and_repetition_alone() -> None:
    def names(r: Row, seed: int = 0, n: int = 0) -> tuple[str, ...]:
        return tuple(item.id for item in shuffled(r, seed, n).candidates)

    base = row(12)
    backwards = Row("r", base.history, base.candidates[::-1], {"i3": 1.0})
    assert names(base) == names(backwards)
    assert len({names(base), names(base, 1), names(base, 0, 1), names(row(12, "other"))}) == 4
    first = Counter(names(row(4, f"r{n}"))[0] for n in range(2000))
    # Chi-square of a uniform draw over 4, 3 degrees of freedom: above 16.3 once in a thousand.
    assert sum((first[f"i{q}"] - 500) ** 2 / 500 for q in range(4)) < 16.3


def test_a_model_that_reads_positions_only_is_seen_and_averaged_out() -> None:
    rows = [row(5, f"r{n}") for n in range(60)]
    biased = Planted(lambda text, _: " > ".join(label for label, _ in SHOWN.findall(text)))
    results = rank(ranker_for(connect(biased), PLAIN, repetitions=4), *rows)
    curve = positions(results)
    assert curve.hits == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert curve.counts == (240,) * 5
    assert curve.excess == pytest.approx(0.8)
    first = Counter(result.ranking[0][0] for result in results)
    assert max(first.values()) < 30
    fair = positions(rank(ranker_for(connect(Planted(by_quality)), PLAIN, repetitions=4), *rows))
    assert fair.uniform == pytest.approx((0.2,) * 5)
    assert fair.excess < 0.15


def test_the_curve_counts_ties_in_parts_and_lists_of_all_lengths() -> None:
    curve = position_curve([(("a", "b"), (("a", "b"),)), (("a", "b", "c"), (("c",), ("a", "b")))])
    assert curve.hits == (0.25, 0.25, 1.0)
    assert curve.uniform == pytest.approx((5 / 12, 5 / 12, 1 / 3))
    assert curve.counts == (2, 2, 1)
    assert position_curve([]).excess == 0.0


@st.composite
def groupings(draw: st.DrawFn, names: Sequence[str]) -> Ranking:
    permuted = draw(st.permutations(names))
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1)))) if len(names) > 1 else []
    return tuple(tuple(permuted[a:b]) for a, b in itertools.pairwise([0, *cuts, len(names)]))


def enumerated(rankings: Sequence[Ranking], points: Callable[[int, int], float]) -> dict[str, float]:
    """Expected points, by going through every order that a ranking's ties leave open."""
    total: Counter[str] = Counter()
    for ranking in rankings:
        orders = [list(itertools.chain(*parts)) for parts in itertools.product(*(itertools.permutations(g) for g in ranking))]
        for name in orders[0]:
            total[name] += fmean(points(o.index(name) + 1, len(o)) for o in orders)  # type: ignore[assignment]
    return dict(total)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([(borda, lambda p, n: n - p), (reciprocal_rank, lambda p, n: 1 / (60 + p))]))
def test_fusion_is_that_of_every_order_of_the_ties(data: st.DataObject, method: tuple[Any, Any]) -> None:
    fuse, points = method
    names = [f"i{n}" for n in range(data.draw(st.integers(1, 5)))]
    rankings = data.draw(st.lists(groupings(names), min_size=1, max_size=4))
    fused, expected = fuse(rankings), enumerated(rankings, points)
    assert sorted(itertools.chain(*fused)) == names
    for group in fused:
        assert all(math.isclose(expected[name], expected[group[0]], abs_tol=1e-9) for name in group)
    for better, worse in itertools.pairwise(fused):
        assert expected[better[0]] > expected[worse[0]] + 1e-13
    assert {frozenset(g) for g in fuse(rankings[::-1])} == {frozenset(g) for g in fused}
    assert {frozenset(g) for g in fuse([rankings[0]] * 3)} == {frozenset(g) for g in rankings[0]}


def test_fusion_of_other_candidates_is_refused() -> None:
    for rankings in ([], [(("a",),), (("b",),)], [(("a",), ("b",)), (("a",),)], [(("a",),), (("a",), ("a",))]):
        with pytest.raises(DataError):
            borda(rankings)


# Choices


@given(st.integers(1, 15), st.integers(1, 120))
def test_a_round_robin_is_balanced_and_bounded(n: int, most: int) -> None:
    items = [Item(str(k), "") for k in range(n)]
    pairs = [frozenset((a.id, b.id)) for a, b in round_robin(items, most)]
    assert len(set(pairs)) == len(pairs) <= most
    assert all(len(pair) == 2 for pair in pairs)
    assert len(pairs) == n * (n - 1) // 2 or len(pairs) > most - n // 2 - 1
    played = Counter(name for pair in pairs for name in pair)
    assert most < n // 2 or max(played.values(), default=0) - min((played[i.id] for i in items), default=0) <= 1


def test_pairs_are_asked_both_ways_so_that_a_bias_ties_them() -> None:
    model = Planted(lambda text, _: "C1")
    (result,) = rank(Pairwise(connect(model), CHOICE), row(6))
    assert {frozenset(group) for group in result.ranking} == {frozenset(f"i{q}" for q in range(6))}
    assert model.asked.total() == 30
    assert positions([result]).hits == (1.0, 0.0)
    (result,) = rank(Pairwise(connect(Planted(best)), CHOICE, most=30), row(20))
    assert len(result.replies) == 60
    assert result.ranking[0] != tied(row(20))[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(2, 5), st.integers(1, 6))
def test_a_tournament_finds_the_best_places_in_few_questions(n: int, size: int, places: int) -> None:
    model = Planted(best)
    (result,) = rank(Setwise(connect(model), CHOICE, size=size, places=places), row(n))
    head = order(n)[: min(places, n)]
    assert result.ranking[: len(head)] == head
    assert sum(map(len, result.ranking)) == n
    assert model.asked.total() <= Setwise(connect(model), CHOICE, Asking(retries=0), size, places).calls(row(n)) <= n + 5 * places


# Likelihoods


class Scorer:
    """Stands for the embedded model: the score of a continuation is a function of it and the prompt."""

    def __init__(self, likelihood: Callable[[str, str], float]) -> None:
        self.likelihood = likelihood
        self.requests: list[ScoreRequest] = []
        self.engine = self
        self.text = self

    async def score(self, request: ScoreRequest) -> Any:
        from agents.chat.engine import Scored

        self.requests.append(request)
        empty = [0.0 if request.empty is None else self.likelihood(request.empty, c) for c in request.continuations]
        return Scored(tuple(self.likelihood(request.prompt, c) - e for c, e in zip(request.continuations, empty, strict=True)), 1)

    def continuation(self, prompt: str, text: str) -> tuple[list[int], int]:
        words = prompt.split(" ")
        return [0] * (len(words) + len(text.split())), len(words)


def scoring(likelihood: Callable[[str, str], float], **settings: Any) -> tuple[ChatClient, Scorer]:
    model = Scorer(likelihood)
    return ChatClient(Endpoint(model, "scorer", "here", 8, "embedded"), **settings), model  # type: ignore[arg-type]


def test_titles_are_scored_by_what_the_history_adds() -> None:
    # Long titles are unlikely in themselves; the history adds their quality.
    def likelihood(prompt: str, title: str) -> float:
        return -10.0 * len(title.split()) + (float(title.split()[1]) if "seen" in prompt else 0.0)

    mixed = Row(
        "r", (Item("h", "seen"),), (Item("a", "film 3 of a long name"), Item("b", "film 5"), Item("c", "film 1"), Item("d", "film 5")), {}
    )
    client, model = scoring(likelihood)
    (result,) = rank(ranker_for(client, repetitions=3), mixed)
    assert result.ranking == (("b", "d"), ("a",), ("c",))
    assert result.replies[0].scores == {"a": 3.0, "b": 5.0, "c": 1.0, "d": 5.0}
    (request,) = model.requests
    assert (request.prompt, request.empty) == ("Titles I chose: seen,", "Titles I chose:")
    assert request.continuations == (" film 1", " film 3 of a long name", " film 5")
    assert rank(Likelihood(client, LIKELIHOOD, pmi=False), mixed)[0].ranking == (("b", "d"), ("c",), ("a",))
    assert rank(Likelihood(client, LIKELIHOOD, per="mean"), mixed)[0].replies[0].scores == {"a": 0.5, "b": 2.5, "c": 0.5, "d": 2.5}


def test_many_candidates_are_scored_in_batches() -> None:
    client, model = scoring(lambda prompt, title: float(title.split()[1]))
    (result,) = rank(Likelihood(client, LIKELIHOOD, pmi=False), row(70))
    assert result.ranking == order(70)
    assert [len(r.continuations) for r in model.requests] == [32, 32, 6]
    assert result.replies[0].keys == tuple(dict.fromkeys(result.replies[0].keys))


def test_yes_is_weighed_against_no() -> None:
    def likelihood(prompt: str, word: str) -> float:
        quality = float(re.findall(r"film (\d+)", prompt)[0])
        return {" Yes": quality, " No": 3.0}[word]

    client, _ = scoring(likelihood)
    (result,) = rank(ranker_for(client, POINTWISE), row(6))
    assert result.ranking == order(6)
    assert result.replies[0].scores is not None
    assert result.replies[0].scores["i5"] == 2.0

    def say(text: str, n: int) -> str:
        quality = int(re.findall(r"film (\d+)", text)[0])
        return "well" if quality == 3 else "Yes." if quality > 3 else "No."

    (result,) = rank(Pointwise(connect(Planted(say)), POINTWISE, Asking(retries=0)), row(6))
    assert result.ranking == (("i4", "i5"), ("i3",), ("i0", "i1", "i2"))
    assert (result.replies[0].status, result.replies[0].missing) == ("partial", 1)


@pytest.mark.parametrize("template", [LIKELIHOOD, POINTWISE])
def test_a_failed_score_ties_its_row(template: Any) -> None:
    def likelihood(prompt: str, text: str) -> float:
        raise CallFailed("it broke")

    client, _ = scoring(likelihood, retries=0)
    (result,) = rank(ranker_for(client, template), row(3))
    assert result.ranking == tied(row(3))
    assert rates([result]).invalid == 1
    assert "it broke" in result.replies[0].error


def test_the_embedded_model_scores_by_pmi_unless_told_otherwise() -> None:
    pytest.importorskip("transformers")
    try:
        client = connect("embedded", timeout=300)
    except UnavailableError as error:
        pytest.skip(str(error))
    history = tuple(Item(t, t) for t in ("The Matrix", "Terminator 2", "Blade Runner"))
    asked = Row("r", history, tuple(Item(t, t) for t in ("Aliens", "Pride and Prejudice", "Baby Food Cookbook")), {})

    async def both() -> tuple[Any, Any, Any]:
        (result,) = await ranker_for(client).rank([asked])
        titles = tuple(f" {item.title}" for item in asked.candidates)
        with_history = await client.score(ScoreRequest("Titles I chose: The Matrix, Terminator 2, Blade Runner,", titles))
        return result, with_history, await client.score(ScoreRequest("Titles I chose:", titles))

    result, full, empty = asyncio.run(both())
    expected = [f - e for f, e in zip(full.scores, empty.scores, strict=True)]
    # Rounding depends on what else is in a pass, by up to a nat in bfloat16.
    assert list(result.replies[0].scores.values()) == pytest.approx(expected, abs=1.0)
    assert result.ranking[0] == ("Aliens",)


# As a recommender


@pytest.fixture
def ranker(films: Dataset, monkeypatch: pytest.MonkeyPatch) -> LLMRanker:
    """Re-ranks the ten most popular by a model that likes high numbers in titles."""
    client_of = lambda *args, **kwargs: scoring(lambda prompt, title: float(title.split()[1]) * ("," in prompt), **kwargs)[0]  # noqa: E731
    monkeypatch.setattr(recommender, "connect", client_of)
    return LLMRanker(LLMRanker.Config(first_stage="popularity", candidates=10)).fit(films)


def test_a_ranker_is_a_recommender(ranker: LLMRanker, films: Dataset, tmp_path: Path) -> None:
    histories = Histories.of([[0, 1, 2], [], [5, 79]])
    lists = ranker.recommend(histories, 80).items
    first = ranker.first.recommend(histories, 80).items
    for mine, theirs, known in zip(lists, first, (True, False, True), strict=True):
        numbers = [int(films.title(int(i)).split()[1]) for i in mine[:10]]
        assert numbers == sorted(numbers, reverse=True) if known else list(mine) == list(theirs)
        assert set(mine[:10]) == set(theirs[:10])
        np.testing.assert_array_equal(mine[10:], theirs[10:])
    assert "popularity" in ranker.training
    ranker.save(tmp_path)
    loaded = LLMRanker.load(tmp_path)
    np.testing.assert_array_equal(loaded.recommend(histories, 80).items, lists)
    scores = ranker.score(histories)
    assert ((scores > 0).sum(1) == 10).all()


async def test_it_ranks_inside_a_running_loop(ranker: LLMRanker) -> None:
    assert ranker.score(Histories.of([[1, 2]])).shape == (1, 80)


def test_a_ranker_of_rankers_and_one_without_titles_are_refused(films: Dataset) -> None:
    with pytest.raises(DataError, match="name another recommender"):
        LLMRanker(LLMRanker.Config(first_stage="llm")).fit(films)
    bare = Dataset("bare", films.users, films.items, films.user, films.item, films.timestamp, films.rating)
    with pytest.raises(DataError, match="no item titles"):
        LLMRanker().fit(bare)
