"""HSTU with its kernels on learns what it learns in plain PyTorch: one loss, one gradient, for each kind of layer and softmax."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from kernels.backend import use
from kernels.hstu_attention import pair_buckets
from kernels.hstu_output import hstu_output
from recsys_core import create
from recsys_core.data import leave_one_out
from recsys_core.models.hstu import network
from recsys_core.models.hstu.config import HSTUConfig
from recsys_core.sequence.batch import SequenceBatch
from recsys_core.sequence.recommender import SequenceLearner, SequenceRecommender
from tests.conftest import film_log

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers, all items": {"blocks": 2, "sampling": "all", "positions": True},
    "in time": {"time": "target"},
    "ratings, past times": {"actions": True, "time": "past"},
    "dot products": {"similarity": "dot", "temperature": 1.0, "negatives": 8},
}


def learner(config: dict[str, Any]) -> SequenceLearner:
    """An untrained model with biases that matter, and its log."""
    train = leave_one_out(film_log(users=12, items=30, length=7)).train
    torch.manual_seed(0)
    model = create("hstu", **{"dim": 16, "heads": 2, "blocks": 1, "max_length": 9, "dropout": 0.0, "batch_size": 8, **config})
    assert isinstance(model, SequenceRecommender)
    model.items, model.n_users = train.items, len(train.users)
    model._initialize(train)
    made = model._learner(train)
    for name, parameter in made.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def assert_one_step(made: SequenceLearner, batch: SequenceBatch) -> None:
    """The loss and all gradients of a batch are the reference's."""
    found = {}
    for backend in ("reference", "triton"):
        one = copy.deepcopy(made)
        torch.manual_seed(1)
        with use(backend):  # type: ignore[arg-type]
            loss = one(batch)
            loss.backward()
        found[backend] = [loss.detach(), *(p.grad for p in one.parameters() if p.grad is not None)]
    assert len(found["reference"]) > 8
    for ours, theirs in zip(found["triton"], found["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_the_reference(name: str) -> None:
    made = learner(CONFIGS[name]).to(DEVICE)
    # The negatives are what a seed draws, and both ways draw nothing before them without dropout.
    made.eval()
    batch = made.epoch(np.random.default_rng(0), torch.device(DEVICE))[0]
    static = batch.roomy(len(batch.tokens) + 5, len(batch) + 2)
    assert static.load(batch)
    assert_one_step(made, static)


def test_dropout_is_that_of_the_reference_where_both_draw_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner({"dropout": 0.3, "blocks": 2, "batch_size": 3, "heads": 1}).to(DEVICE).train()
    batch = made.epoch(np.random.default_rng(0), torch.device(DEVICE))[0]
    # Plain PyTorch draws masks of its own, unless the layers are told that the kernels run and so give their seeds.
    monkeypatch.setattr(network, "compiled", lambda x: True)
    assert_one_step(made, batch)


def drawn_seeds(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A list that every layer's seed of dropout is added to."""
    seeds: list[torch.Tensor] = []

    def output(*given: Any, **settings: Any) -> torch.Tensor:
        seeds.append(settings["seed"])
        return hstu_output(*given, **settings)

    monkeypatch.setattr(network, "hstu_output", output)
    return seeds


def test_each_layer_and_step_draws_a_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner({"dropout": 0.3, "blocks": 3}).to(DEVICE).train()
    batch = made.epoch(np.random.default_rng(0), torch.device(DEVICE))[0]
    monkeypatch.setattr(network, "compiled", lambda x: True)
    seeds = drawn_seeds(monkeypatch)
    with use("reference"), torch.no_grad():
        made.network(batch)
        made.network(batch)
    assert len({int(seed) for seed in seeds}) == len(seeds) == 6


@pytest.mark.gpu
def test_each_replay_of_a_graph_draws_masks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner({"dropout": 0.3, "blocks": 3}).to(DEVICE).train()
    batch = made.epoch(np.random.default_rng(0), torch.device(DEVICE))[0]
    with use("triton"), torch.no_grad():
        made.network(batch)
        seeds = drawn_seeds(monkeypatch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made.network(batch)
    found = set()
    for _ in range(4):
        graph.replay()
        found |= {int(seed) for seed in seeds}
    assert len(found) == 12


def test_dropout_leaves_the_expectation_and_draws_anew() -> None:
    made = learner({"dropout": 0.5}).to(DEVICE).train()
    batch = made.epoch(np.random.default_rng(0), torch.device(DEVICE))[0]
    with use("triton"), torch.no_grad():
        states = [made.network(batch) for _ in range(2)]
        torch.manual_seed(3)
        first = made.network(batch)
        torch.manual_seed(3)
        assert torch.equal(made.network(batch), first)
    assert not torch.equal(*states)


@pytest.mark.gpu
def test_layers_of_long_sequences_look_for_the_buckets_of_pairs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = HSTUConfig(dim=256, heads=2, blocks=2, max_length=1100, time="past", dropout=0.0)
    blocks = torch.nn.ModuleList(network.HSTUBlock(config, 1100) for _ in range(2)).cuda()
    for name, parameter in blocks.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    x, times = torch.randn(1400, 256, device="cuda"), torch.randint(10**5, (1400,), device="cuda").cumsum(0)
    offsets, found = torch.tensor([0, 1100, 1400], device="cuda"), []

    def counting(*given: Any, **settings: Any) -> Any:
        found.append(pair_buckets(*given, **settings))
        return found[-1]

    monkeypatch.setattr(network, "pair_buckets", counting)

    def step() -> list[torch.Tensor]:
        layout, state = network.Layout(offsets, 1100, times, times), x
        for block in blocks:
            state = block(state, layout)
        return [state.detach().float(), *torch.autograd.grad(state.square().mean(), list(blocks.parameters()))]

    with torch.autocast("cuda", torch.bfloat16):
        ours = step()
        assert [by_query is not None for by_query, _ in found] == [True]
        with use("reference"):
            rounded = step()
    with use("reference"):
        exact = step()
    for mine, low, want in zip(ours, rounded, exact, strict=True):
        assert (mine - want).norm() <= 5 * (low - want).norm()
