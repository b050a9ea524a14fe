"""LightGCN: propagation against dense powers, and users met by id, by history, or by both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import logs

from recsys_core import Histories, create, evaluate
from recsys_core.data import Dataset, Split
from recsys_core.models.lightgcn import LightGCN, LightGCNConfig, LightGCNLearner, LightGCNNetwork, normalized, propagate
from recsys_core.recommender import FitOptions

TINY = {"dim": 8, "epochs": 3, "batch_size": 200, "learning_rate": 0.05}


def made(dataset: Dataset, layers: int = 2) -> LightGCNLearner:
    torch.manual_seed(0)
    config = LightGCNConfig(dim=4, layers=layers, l2=0.1, batch_size=7)
    return LightGCNLearner(LightGCNNetwork(len(dataset.users), len(dataset.items), 4), config, dataset.sequences().distinct())


def dense(dataset: Dataset) -> torch.Tensor:
    """The normalized adjacency matrix, written out."""
    users, size = len(dataset.users), len(dataset.users) + len(dataset.items)
    table = torch.zeros(size, size)
    for user, item in zip(dataset.user.tolist(), dataset.item.tolist(), strict=True):
        table[user, item + users] = table[item + users, user] = 1.0
    scale = table.sum(1).clamp(min=1).rsqrt()
    return scale[:, None] * table * scale


@settings(deadline=None, max_examples=30)
@given(logs(), st.integers(0, 4))
def test_propagation_is_the_mean_of_powers_and_so_is_its_gradient(dataset: Dataset, layers: int) -> None:
    learner, table = made(dataset), dense(dataset)
    torch.testing.assert_close(learner.graph.to_dense(), table)
    vectors = learner.network.vectors.detach().requires_grad_()
    expected = sum(torch.linalg.matrix_power(table, k) @ vectors for k in range(layers + 1)) / (layers + 1)
    found = propagate(learner.graph, vectors, layers)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape)
    gradients = [torch.autograd.grad((weights * value).sum(), vectors)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


@settings(deadline=None, max_examples=30)
@given(logs(), st.integers(1, 3))
def test_a_training_history_gives_the_trained_vector(dataset: Dataset, layers: int) -> None:
    learner = made(dataset, layers).eval()
    model = LightGCN(learner.config)
    model.items, model.n_users, model.network = dataset.items, len(dataset.users), learner.network
    rows = dataset.sequences()
    both = propagate(learner.graph, learner.network.vectors, layers).detach()
    users, items = both[: len(rows)], both[len(rows) :]
    met = np.flatnonzero(rows.lengths)
    everyone = [rows[int(u)] for u in met]
    np.testing.assert_allclose(model.score(Histories.of(everyone, met)), users[met] @ items.T, atol=1e-6)
    # Not told the history, the model still knows the user; a stranger has the items' part alone.
    np.testing.assert_allclose(model.score(Histories.of([[]] * len(met), met)), users[met] @ items.T, atol=1e-6)
    own = learner.network.vectors.detach()[met] / (layers + 1)
    np.testing.assert_allclose(model.score(Histories.of(everyone)), (users[met] - own) @ items.T, atol=1e-6)


def test_loss_is_bpr_over_propagated_vectors(films: Dataset) -> None:
    learner = made(films)
    (batch, *_) = batches = learner.epoch(np.random.default_rng(0), torch.device("cpu"))
    assert [b.shape[1] for b in batches[:-1]] == [7] * (len(batches) - 1)
    pairs = torch.cat(list(batches), 1)
    assert {(u, i - 60) for u, i in pairs[:2].T.tolist()} == set(zip(films.user.tolist(), films.item.tolist(), strict=True))
    assert pairs.shape[1] == len(films)
    assert ((pairs[2] >= 60) & (pairs[2] < 140)).all()
    vectors = learner.network.vectors
    last = sum(torch.linalg.matrix_power(dense(films), k) @ vectors for k in range(3)) / 3
    expected = torch.zeros(())
    for u, i, j in batch.T.tolist():
        norms = vectors[u].square().sum() + vectors[i].square().sum() + vectors[j].square().sum()
        expected = expected - torch.sigmoid(last[u] @ (last[i] - last[j])).log() + 0.05 * norms
    torch.testing.assert_close(learner(batch), expected)
    parts = [learner.shard(batch, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), batch)
    torch.testing.assert_close(sum(learner(part) for part in parts), expected)


def test_a_grown_history_moves_a_known_user(films: Dataset) -> None:
    model = create("lightgcn", **TINY, layers=2).fit(films)
    row = films.sequences()[0]
    new = np.setdiff1d(np.arange(80), row)[:5]
    before, after = model.score(Histories.of([row, [*row, *new]], [0, 0]))
    assert not np.allclose(before, after)
    assert (after - before)[new].mean() > (after - before).mean()


def test_users_without_training_rows_are_strangers(films: Dataset) -> None:
    model = create("lightgcn", **TINY).fit(films.rows(films.user > 0))
    row = films.sequences()[0]
    known, stranger, nobody, unknown = model.score(Histories.of([row, row, [], []], [0, -1, 0, -1]))
    np.testing.assert_array_equal(known, stranger)
    np.testing.assert_array_equal(nobody, unknown)


def test_tables_are_those_of_the_weights_that_are_kept(split: Split) -> None:
    texts: list[str] = []
    model = create("lightgcn", **TINY | {"epochs": 15, "patience": 2, "learning_rate": 0.2})
    model.fit(split.train, lambda _, text: texts.append(text), FitOptions(split.valid))
    shown = [float(text.rpartition(" ")[2]) for text in texts if "NDCG" in text]
    assert evaluate(model, split.valid, ("NDCG@10",)).means["NDCG@10"] == pytest.approx(max(shown), abs=6e-5)


def test_bfloat16_trains_with_products_in_32_bits(films: Dataset) -> None:
    model = create("lightgcn", **TINY, precision="bfloat16").fit(films)
    assert np.isfinite(model.score(Histories.of([[1, 2]]))).all()


def test_a_graph_without_edges_is_empty() -> None:
    none = np.zeros(0, np.int64)
    assert propagate(normalized(none, none, 3), torch.eye(3), 2).equal(torch.eye(3) / 3)
