"""The item index: exact where it says so, and k items wherever k are allowed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_core import Histories, create
from recsys_core.data import Dataset
from recsys_core.errors import DataError, UnavailableError
from recsys_core.recommender import top_k
from recsys_core.serving import AtMost, Has, ItemIndex, NewItem, Only, Service
from tests.recsys_core.test_serving import described


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(3000, 16)) * rng.lognormal(size=(3000, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_top_k_is_a_stable_sort(rows: int, columns: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.array([-np.inf, -2.5, -1, -0.0, 0.0, 1e-40, 3], np.float32), (rows, columns))
    k = min(k, columns)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    ids, top = top_k(torch.from_numpy(scores), k)
    np.testing.assert_array_equal(ids.numpy(), expected)
    np.testing.assert_array_equal(top.numpy(), np.take_along_axis(scores, expected, 1))


def test_the_exact_index_finds_the_largest_products(vectors: np.ndarray, queries: np.ndarray) -> None:
    ids, products = ItemIndex(vectors).search(queries, 10)
    np.testing.assert_array_equal(ids, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])
    np.testing.assert_allclose(products, -np.sort(-(queries @ vectors.T), axis=1)[:, :10], rtol=1e-4)


def test_the_graph_finds_nearly_all_of_them_whatever_their_lengths(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = ItemIndex(vectors, "hnsw")
    assert index.recall(queries, 10) > 0.95
    assert ItemIndex(vectors, "hnsw", links=4, build_width=8, search_width=1).recall(queries, 10) < index.recall(queries, 10)
    _, products = index.search(queries, 10)
    assert (np.diff(products) <= 0).all()


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
@settings(max_examples=20, deadline=None)
@given(share=st.sampled_from([0.0, 0.0005, 0.003, 0.05, 0.5, 1.0]), k=st.sampled_from([1, 10, 400, 4000]), seed=st.integers(0, 99))
def test_a_filtered_search_gives_k_wherever_k_exist(kind: str, share: float, k: int, seed: int, vectors: np.ndarray) -> None:
    rng = np.random.default_rng(seed)
    index = _INDEX.setdefault(kind, ItemIndex(vectors, kind))  # type: ignore[arg-type]
    wanted = rng.normal(size=(3, 16)).astype(np.float32)
    allowed = rng.random((3, len(vectors))) < share
    ids, products = index.search(wanted, k, allowed)
    for row in range(3):
        found = ids[row][ids[row] >= 0]
        assert len(found) == min(k, allowed[row].sum())
        assert len(set(found)) == len(found)
        assert allowed[row][found].all()
        assert np.isneginf(products[row][len(found) :]).all()
        if kind == "exact":
            masked = np.where(allowed[row], wanted[row] @ vectors.T, -np.inf)
            np.testing.assert_allclose(products[row][: len(found)], -np.sort(-masked)[: len(found)], rtol=1e-4, atol=1e-5)


_INDEX: dict[str, ItemIndex] = {}


def test_wrong_use_is_explained(vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="index kind 'ivf'"):
        ItemIndex(vectors, "ivf")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UnavailableError, match=r"'faiss'; install it with: pip install '\.\[faiss\]'"):
        ItemIndex(vectors)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_a_service_answers_alike_with_and_without_an_exact_index(similarity: str, films: Dataset) -> None:
    log = described(films)
    model = create("sasrec", dim=8, blocks=1, max_length=8, epochs=1, similarity=similarity, features=True).fit(log)
    service = Service.of(model, log)
    rules = [Has("tag", ["Drama", "Horror"])]
    plain = service.recommend(log.users.ids, k=12, rules=rules)
    service.use_index("exact")
    for mine, theirs in zip(service.recommend(log.users.ids, k=12, rules=rules), plain, strict=True):
        assert mine.ids == theirs.ids
        assert mine.candidates == theirs.candidates
        np.testing.assert_allclose([i.score for i in mine.items], [i.score for i in theirs.items], atol=1e-4)
    assert len(service.recommend(["u1"], k=9, caps=[AtMost(3)])[0].items) == 9
    service.add_items([NewItem("new", features={"genre": "Drama"})])
    assert service.recommend(["u1"], rules=[Only(["new"])])[0].ids == ["new"]
    service.use_index(None)
    assert service.recommend(["u1"], rules=[Only(["new"])])[0].ids == ["new"]


def test_the_two_factors_are_the_score(films: Dataset) -> None:
    model = create("sasrec", dim=8, blocks=1, max_length=8, epochs=1, similarity="cosine", temperature=0.05).fit(films)
    histories = Histories.of([[1, 2], [], [5]])
    product = model.query_vectors(histories) @ model.item_vectors().T  # type: ignore[attr-defined]
    np.testing.assert_allclose(model.score(histories), product.numpy(), atol=1e-5)
    assert np.abs(product.numpy()).max() <= 20.001
