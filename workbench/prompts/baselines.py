"""Rankings without a language model: they cost nothing, and a prompt that does not beat them is not worth its calls."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from workbench.prompts.metrics import DEFAULT_METRICS, Measured, measure
from workbench.prompts.tasks import Item, Row, by_score, tied

Scorer = Callable[[Row], Mapping[str, float]]
"""Scores of a row's candidates by id, higher is better. It must not look at the grades."""

FIELD_WEIGHTS = {"category": 1, "subcategory": 2, "tags": 1}
"""What one shared value of a field counts in `category_match`; a field may hold several, separated by commas."""


def measure_baselines(train: Sequence[Row], rows: Sequence[Row], metrics: Sequence[str] = DEFAULT_METRICS) -> list[Measured]:
    """All baselines that the rows allow, in a fixed order.

    random: its exact expectation; popularity, word overlap and tfidf: always; category match: where items have such fields; prior: the
    recommender being re-ranked, where each row has its scores; ceiling: the best order there is, where positives were not offered.
    Counts are taken from `train`. Raises what `measure` raises.
    """
    scorers: dict[str, Scorer] = {"popularity": popularity(train), "word overlap": word_overlap, "tfidf": tfidf(train)}
    if any(name in item.fields for row in rows for item in row.candidates for name in FIELD_WEIGHTS):
        scorers["category match"] = category_match
    if all(row.prior is not None for row in rows):
        scorers["prior"] = prior
    if any(row.missed for row in rows):
        scorers["ceiling"] = _grades
    measured = [measure(name, rows, [by_score(row, scorer(row)) for row in rows], metrics) for name, scorer in scorers.items()]
    return [measure("random", rows, [tied(row) for row in rows], metrics), *measured]


def popularity(train: Sequence[Row]) -> Scorer:
    """How often an item was taken in the training rows, as part of a history or as a positive."""
    taken = Counter(item.id for row in train for item in row.history)
    taken.update(name for row in train for name in row.positives)
    return lambda row: {item.id: taken[item.id] for item in row.candidates}


def word_overlap(row: Row) -> Mapping[str, float]:
    """The share of a title's words that some title of the history has too."""
    seen = {word for item in row.history for word in words(item)}
    shares = {item.id: set(words(item)) for item in row.candidates}
    return {name: len(mine & seen) / max(len(mine), 1) for name, mine in shares.items()}


def tfidf(train: Sequence[Row]) -> Scorer:
    """The sum, over the history, of cosines between titles as TF-IDF vectors.

    Weights are counts times ln((1 + n) / (1 + df)) + 1, as scikit-learn has them, over the n distinct titles of the training rows.
    """
    titles = {item.title: set(words(item)) for row in train for item in (*row.history, *row.candidates)}
    found = Counter(word for mine in titles.values() for word in mine)

    def vector(item: Item) -> dict[str, float]:
        weights = {word: n * (math.log((1 + len(titles)) / (1 + found[word])) + 1) for word, n in Counter(words(item)).items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}

    def scores(row: Row) -> Mapping[str, float]:
        profile: Counter[str] = Counter()
        for item in row.history:
            profile.update(vector(item))
        # Rounded, so that titles of the same words in another order are tied and not told apart by the last bit.
        return {item.id: round(sum(weight * profile[word] for word, weight in vector(item).items()), 12) for item in row.candidates}

    return scores


def category_match(row: Row) -> Mapping[str, float]:
    """How often the history has a candidate's category, plus twice how often it has its subcategory, or how often it has its tags."""
    liked = Counter(value for item in row.history for value in _values(item))
    return {item.id: sum(FIELD_WEIGHTS[name] * liked[name, value] for name, value in _values(item)) for item in row.candidates}


def prior(row: Row) -> Mapping[str, float]:
    """The scores of the recommender that offered the candidates."""
    return row.prior or {}


def words(item: Item) -> list[str]:
    """The words of a title, without regard to case."""
    return re.findall(r"\w+", item.title.casefold())


def _values(item: Item) -> set[tuple[str, str]]:
    return {(name, value) for name in FIELD_WEIGHTS for value in item.fields.get(name, "").split(", ") if value}


def _grades(row: Row) -> Mapping[str, float]:
    """What no ranker may look at: it bounds them all."""
    return {item.id: row.grades.get(item.id, 0.0) for item in row.candidates}
