"""Steps replayed as a CUDA graph: a batch copied into a larger static one gives the same loss and gradients as the batch itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_runs import loss_and_gradients

from recsys_core import create
from recsys_core.data import Split
from recsys_core.recommender import FitOptions
from recsys_core.sequence.recommender import SequenceLearner, SequenceRecommender

SMALL = {"dim": 16, "heads": 2, "blocks": 2, "max_length": 10, "dropout": 0.0, "sampling": "all", "batch_size": 16}
MODELS = {
    "sasrec": ("sasrec", {}),
    "hstu": ("hstu", {"positions": True}),
    "hstu in time": ("hstu", {"time": "target"}),
    "hstu with ratings": ("hstu", {"actions": True, "time": "past"}),
}


def learner(name: str, split: Split) -> SequenceLearner:
    """An untrained model with its training data."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = create(kind, **{**SMALL, **settings})
    assert isinstance(model, SequenceRecommender)
    model.items, model.n_users = split.train.items, len(split.train.users)
    model._initialize(split.train)
    return model._learner(split.train)


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_a_static_batch_changes_neither_loss_nor_gradient(name: str, split: Split) -> None:
    network = learner(name, split)
    batches = network.epoch(np.random.default_rng(0), torch.device("cpu"))
    static = network.static(batches)
    assert static is not None
    # The last batch of an epoch is the smallest; what the one before left behind must not be read.
    for batch in (batches[0], batches[-1]):
        assert static.load(batch)
        assert len(static.tokens) > len(batch.tokens)
        for plain, padded in zip(*(loss_and_gradients(network, one) for one in (batch, static)), strict=True):
            torch.testing.assert_close(padded, plain, rtol=1e-4, atol=1e-4)


def test_a_batch_without_room_is_left_alone(split: Split) -> None:
    network = learner("sasrec", split)
    batches = network.epoch(np.random.default_rng(0), torch.device("cpu"))
    static = batches[0].roomy(len(batches[0].tokens) - 1, len(batches[0]))
    before = static.tokens.clone()
    assert not static.load(batches[0])
    assert torch.equal(static.tokens, before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_training_is_the_one_kernel_by_kernel(name: str, split: Split) -> None:
    kind, settings = MODELS[name]
    scores = []
    # Sums in no fixed order differ in the last bits, and three epochs of Adam make more of that than a wrong replay would.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for capture in (True, False):
            model = create(kind, **{**SMALL, **settings, "epochs": 3, "capture": capture})
            model.fit(split.train, options=FitOptions(device="cuda"))
            scores.append(model.score(split.test.histories))
    finally:
        torch.use_deterministic_algorithms(False)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-2, atol=1e-2)
