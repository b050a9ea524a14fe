"""Rankings without a model: what each looks at, against hand-made rows and scikit-learn's formula, and on the real samples."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core.data import Dataset, Split
from recsys_core.models import create
from workbench.prompts.baselines import category_match, measure_baselines, popularity, tfidf, word_overlap, words
from workbench.prompts.readers import po4isr_task, recprompt_task
from workbench.prompts.reranking import rerank_task
from workbench.prompts.tasks import Item, Row

SHARED = Path(os.environ.get("WORKBENCH_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_shared = pytest.mark.skipif(not (SHARED / "po4isr").is_dir(), reason="needs the shared data folder (WORKBENCH_SHARED_DATA)")


def row(history: list[str], candidates: list[str], chosen: int = 0, **fields: list[str]) -> Row:
    """Items with these titles, and fields given one value an item, history first; the id is the title."""
    values = [dict(zip(fields, column, strict=True)) for column in zip(*fields.values(), strict=True)] or [{}] * 99
    items = [Item(title, title, values[n]) for n, title in enumerate([*history, *candidates])]
    return Row("r", tuple(items[: len(history)]), tuple(items[len(history) :]), {candidates[chosen]: 1.0})


def test_popularity_counts_histories_and_positives_of_training_rows_only() -> None:
    train = [row(["a", "b", "a"], ["c", "d"]), row(["b"], ["d", "c"], chosen=1)]
    assert popularity(train)(row(["d"], ["a", "b", "c", "d"])) == {"a": 2, "b": 2, "c": 2, "d": 0}


def test_word_overlap_is_a_share_of_the_candidates_words() -> None:
    made = row(["The WITCHER 3", "Mario Kart"], ["Witcher the", "mario", "Zelda mario kart go", "???"])
    assert word_overlap(made) == {"Witcher the": 1.0, "mario": 1.0, "Zelda mario kart go": 0.5, "???": 0.0}


titles = st.lists(st.text(st.sampled_from("ab "), max_size=8), min_size=1, max_size=5, unique=True)


@settings(max_examples=60, deadline=None)
@given(titles, titles, titles)
def test_tfidf_is_the_sum_of_cosines_of_scikit_learns_vectors(known: list[str], history: list[str], candidates: list[str]) -> None:
    train = row(known, ["zz"])
    made = row(history, candidates)
    corpus = [words(Item("", title)) for title in {*known, "zz"}]
    vocabulary = sorted({w for title in (*known, *history, *candidates) for w in words(Item("", title))})

    def vector(title: str) -> np.ndarray:
        counts = np.array([words(Item("", title)).count(w) for w in vocabulary], float)
        idf = np.array([math.log((1 + len(corpus)) / (1 + sum(w in doc for doc in corpus))) + 1 for w in vocabulary])
        raw = counts * idf
        return raw / (np.linalg.norm(raw) or 1.0)

    expected = {c: sum(float(vector(c) @ vector(h)) for h in history) for c in candidates}
    assert dict(tfidf([train])(made)) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.permutations(["red", "green", "blue", "dark", "night", "sky", "one", "two", "three", "four"]))
def test_equal_words_in_another_order_are_tied(mixed: list[str]) -> None:
    plain = sorted(mixed)
    train = row([" ".join(plain[:n]) for n in range(1, 10)], ["so that each word has a weight of its own"])
    scores = list(tfidf([train])(row([" ".join(plain)], [" ".join(plain), f"{' '.join(mixed)}!", "x"])).values())
    assert scores[0] == scores[1] > scores[2] == 0


def test_category_match_is_category_plus_twice_subcategory() -> None:
    made = row(
        ["h1", "h2", "h3"], ["same", "category", "other", "bare"],
        category=["news", "news", "tv", "news", "news", "sports", ""], subcategory=["world", "us", "soap", "us", "tech", "nba", ""],
    )  # fmt: skip
    assert category_match(made) == {"same": 2 + 2, "category": 2, "other": 0, "bare": 0}


def test_category_match_counts_shared_tags() -> None:
    made = row(["h1", "h2"], ["both", "one", "none"], tags=["Drama, War", "Drama", "War, Drama", "Drama", "Comedy"])
    assert category_match(made) == {"both": 3, "one": 2, "none": 0}


def test_only_what_the_rows_allow_is_measured_and_random_is_exact() -> None:
    plain = [row(["a"], ["b", "c", "d"])]
    assert [m.name for m in measure_baselines([], plain)] == ["random", "popularity", "word overlap", "tfidf"]
    assert measure_baselines([], plain, ["MRR"])[0].mean("MRR") == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    told = [row(["a"], ["b"], category=["x", "y"])]
    assert [m.name for m in measure_baselines([], told)][-1] == "category match"


def test_no_baseline_but_the_ceiling_looks_at_the_grades(films: Dataset, split: Split) -> None:
    ease = create("ease").fit(split.train)
    task = rerank_task(ease, films, split, n=10, train=5, dev=40, test=5)
    found = {m.name: m for m in measure_baselines(task.train, task.dev, ["MRR", "Recall@10", "HR@10"])}
    assert list(found) == ["random", "popularity", "word overlap", "tfidf", "category match", "prior", "ceiling"]
    reached = np.mean([bool(r.positives) for r in task.dev])
    assert found["ceiling"].mean("MRR") == found["ceiling"].mean("HR@10") == reached < 1
    for name, measured in found.items():
        assert measured.mean("HR@10") == reached  # all candidates are within 10: no order changes it
        assert name == "ceiling" or measured.mean("MRR") < reached


@needs_shared
def test_the_samples_reproduce_what_is_known_of_them() -> None:
    """Dev parts alone; the figures of others are of their test parts, so only what is far outside the noise is asked."""
    games, films, news = (
        po4isr_task(SHARED / "po4isr" / "games"),
        po4isr_task(SHARED / "po4isr" / "ml-1m"),
        recprompt_task(SHARED / "mind-sample" / "valid_with_categories.csv"),
    )
    found = {
        task.name: {m.name: m for m in measure_baselines(task.train, task.dev, ["MRR", "NDCG@5", "HR@1"])} for task in (games, films, news)
    }
    for task, mrr, ndcg in (("po4isr-games", 0.180, 0.147), ("po4isr-ml-1m", 0.180, 0.147), ("mind-sample", 0.293, 0.295)):
        assert found[task]["random"].mean("MRR") == pytest.approx(mrr, abs=5e-4)
        assert found[task]["random"].mean("NDCG@5") == pytest.approx(ndcg, abs=5e-4)
    for task, name, metric, known in (
        ("po4isr-games", "tfidf", "HR@1", 0.422),
        ("po4isr-games", "tfidf", "NDCG@5", 0.577),
        ("po4isr-ml-1m", "tfidf", "HR@1", 0.083),
        ("po4isr-ml-1m", "tfidf", "NDCG@5", 0.182),
        ("mind-sample", "category match", "MRR", 0.450),
        ("mind-sample", "category match", "NDCG@5", 0.489),
    ):
        low, high = found[task][name].interval(metric)
        assert low < known < high
