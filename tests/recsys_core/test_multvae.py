"""MultVAE: its loss against the paper's, annealing, and what does not matter in a history."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recsys_core import Histories, create, evaluate
from recsys_core.data import Dataset, Split
from recsys_core.data.jagged import Jagged
from recsys_core.models.multvae import Baskets, MultVAEConfig, MultVAELearner, MultVAENetwork
from recsys_core.recommender import FitOptions

ROWS = Jagged.from_rows([[0, 3, 3], [], [2], [5, 1, 4, 0]])


def learner(**settings: object) -> MultVAELearner:
    torch.manual_seed(0)
    config = MultVAEConfig.model_validate({"hidden": 7, "dim": 3, "batch_size": 2, "epochs": 4, **settings})
    return MultVAELearner(MultVAENetwork(config, 6), config, ROWS)


def test_loss_is_the_negative_evidence_bound() -> None:
    made = learner(dropout=0.0, anneal=0.0, beta=0.3).eval()
    (batch,) = made.epoch(np.random.default_rng(0), torch.device("cpu"))[:1]
    users = [batch.items[a:b].tolist() for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    network, expected = made.network, 0.0
    for items in users:
        hot = torch.zeros(6)
        hot[items] = 1
        hidden = torch.tanh(hot / hot.norm() @ network.into + network.bias)
        mean, log_variance = network.posterior(hidden).chunk(2)
        chances = network.decode(mean[None])[0].softmax(0)
        normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        expected += float((0.3 * torch.distributions.kl_divergence(normal, prior).sum() - chances[items].log().sum()).detach())
    assert float(made(batch).detach()) == pytest.approx(expected, rel=1e-5)
    assert made.weight(batch) == 2


def test_an_epoch_holds_every_user_with_items_once_and_repeats_count_once() -> None:
    made = learner()
    batches = made.epoch(np.random.default_rng(1), torch.device("cpu"))
    found = [b.items[x:y].tolist() for b in batches for x, y in zip(b.offsets[:-1], b.offsets[1:], strict=True)]
    assert sorted(found) == [[0, 1, 4, 5], [0, 3], [2]]
    again = made.epoch(np.random.default_rng(1), torch.device("cpu"))
    assert all(torch.equal(a.items, b.items) for a, b in zip(batches, again, strict=True))


def test_shards_make_up_the_batch_and_its_loss() -> None:
    made = learner(dropout=0.0, anneal=0.0).eval()
    whole = Baskets(*map(torch.from_numpy, (ROWS.distinct().values, ROWS.distinct().offsets)))
    parts = [made.shard(whole, rank, 3) for rank in range(3)]
    assert sum(made.weight(part) for part in parts) == made.weight(whole) == 4
    torch.testing.assert_close(sum(made(part) for part in parts), made(whole))


def test_beta_rises_along_a_line_and_stays() -> None:
    # Three users in batches of two are two steps an epoch, eight in all, four of them annealed.
    made = learner(beta=0.2, anneal=0.5).train()
    assert [round(float(made.beta()), 6) for _ in range(6)] == [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]
    made.eval()
    assert float(made.beta()) == pytest.approx(0.2)
    assert float(made.steps) == 6
    resumed = learner(beta=0.2, anneal=0.5)
    resumed.load_state_dict(made.state_dict())
    assert float(resumed.steps) == 6
    assert learner(anneal=0.0).beta() == 0.2


def test_order_and_repeats_and_the_user_do_not_matter(films: Dataset) -> None:
    model = create("multvae", hidden=16, dim=8, epochs=2).fit(films)
    scores = model.score(Histories.of([[1, 2, 3], [3, 2, 1, 3], [1, 2, 3]], [-1, -1, 5]))
    np.testing.assert_allclose(scores[1:], scores[[0, 0]], atol=1e-6)


def test_early_stopping_returns_the_best_weights(split: Split) -> None:
    texts: list[str] = []
    config = {"hidden": 32, "dim": 8, "epochs": 12, "learning_rate": 0.05, "batch_size": 20, "patience": 3}
    model = create("multvae", **config).fit(split.train, lambda _, text: texts.append(text), FitOptions(split.valid))
    shown = [float(text.rpartition(" ")[2]) for text in texts if "NDCG" in text]
    assert evaluate(model, split.valid, ("NDCG@10",)).means["NDCG@10"] == pytest.approx(max(shown), abs=6e-5)
    assert math.isfinite(sum(shown))
