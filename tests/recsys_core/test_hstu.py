"""HSTU: it learns order, starts from nothing, and wastes and leaks nothing on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from recsys_core import Histories, create
from recsys_core.data.dataset import Dataset
from recsys_core.data.jagged import Jagged
from recsys_core.data.vocabulary import Vocabulary
from recsys_core.models.hstu import HSTU, HSTUConfig, HSTUNetwork, batches, latest, one_cycle, sampled_softmax, shifted

CHAIN = {
    "dim": 32,
    "heads": 2,
    "blocks": 1,
    "max_length": 8,
    "epochs": 8,
    "negatives": 40,
    "batch_tokens": 256,
    "dropout": 0.0,
    "learning_rate": 0.01,
}


def chain(users: int = 150, n_items: int = 40, length: int = 12, seed: int = 0) -> Dataset:
    """Each user starts anywhere (three times in four at item 7) and takes i, i + 1, ... around a circle: only order tells what is next."""
    rng = np.random.default_rng(seed)
    starts = np.where(rng.random(users) < 0.75, 7, rng.integers(0, n_items, users))
    item = (starts[:, None] + np.arange(length)) % n_items
    user = np.repeat(np.arange(users), length)
    names = Vocabulary(map(str, range(users))), Vocabulary(map(str, range(n_items)))
    return Dataset("chain", *names, user, item.ravel().astype(np.int64), np.arange(user.size))


@pytest.fixture(scope="module")
def model() -> HSTU:
    return create("hstu", **CHAIN).fit(chain())  # type: ignore[return-value]


def test_a_markov_chain_is_learned(model: HSTU) -> None:
    rows = [[(s + i) % 40 for i in range(n)] for s in range(5, 20) for n in (1, 3, 7)]
    top = model.recommend(Histories.of(rows), 1).items[:, 0]
    assert (top == [(r[-1] + 1) % 40 for r in rows]).mean() > 0.95


def test_order_is_what_decides(model: HSTU) -> None:
    forward, backward = model.score(Histories.of([[9, 10, 11], [11, 10, 9]]))
    assert forward[12] > backward[12]


def test_an_empty_history_has_a_trained_score(model: HSTU) -> None:
    # Windows of 8 in users of 12 items start at item 7 or soon after it.
    assert model.recommend(Histories.of([[]]), 1).items[0, 0] in range(7, 20)


def test_only_the_latest_items_are_read(model: HSTU) -> None:
    recent = list(range(10, 17))
    long, short = model.score(Histories.of([[30, 2, 25, *recent], recent]))
    np.testing.assert_allclose(long, short, atol=1e-6)


def test_config_limits() -> None:
    with pytest.raises(ValueError, match="multiple"):
        HSTUConfig(dim=10, heads=3)


def test_states_do_not_see_the_future() -> None:
    network = HSTUNetwork(HSTUConfig(dim=16, heads=2, blocks=2, max_length=10), 20).eval()
    tokens = torch.arange(10)
    changed = tokens.clone()
    changed[6] = 19
    offsets = torch.tensor([0, 10])
    with torch.no_grad():
        before, after = network(tokens, offsets), network(changed, offsets)
    assert torch.equal(before[:6], after[:6])
    assert not torch.allclose(before[6:], after[6:])


jagged = st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=1, max_size=8).map(Jagged.from_rows)


@given(jagged, st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**20))
def test_windows_hold_every_item_once_and_in_order(sequences: Jagged, max_length: int, batch_tokens: int, seed: int) -> None:
    marked = Jagged(np.arange(len(sequences.values)), sequences.offsets)
    windows = [batch[w] for batch in batches(marked, max_length, batch_tokens, np.random.default_rng(seed)) for w in range(len(batch))]
    assert all(0 < len(w) <= max_length for w in windows)
    assert all((np.diff(w) == 1).all() for w in windows)
    assert all(len(set(marked.row_ids[w])) == 1 for w in windows)
    np.testing.assert_array_equal(np.sort(np.concatenate([*windows, np.empty(0, int)])), marked.values)


@given(jagged, st.integers(1, 12))
def test_latest_keeps_the_end_of_each_row(rows: Jagged, count: int) -> None:
    kept = latest(rows, count)
    assert [kept[r].tolist() for r in range(len(rows))] == [rows[r][-count:].tolist() for r in range(len(rows))]


@given(jagged)
def test_the_input_is_the_item_before(targets: Jagged) -> None:
    tokens = Jagged(shifted(targets, -7), targets.offsets)
    for r in range(len(targets)):
        assert tokens[r].tolist() == [-7, *targets[r]][: len(targets[r])]


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.025, 0.05, 1.0]), st.integers(0, 2**20))
def test_loss_is_the_cross_entropy_of_each_target_among_its_distinct_candidates(count: int, rows: int, heat: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = functional.normalize(torch.randn(12, 4, generator=generator), dim=1)
    states = functional.normalize(torch.randn(rows, 4, generator=generator), dim=1).requires_grad_()
    wanted, negatives = torch.randint(12, (rows,), generator=generator), torch.randperm(12, generator=generator)[:count]
    loss = sampled_softmax(states, items[wanted], items[negatives], torch.isin(wanted, negatives), heat)
    each = []
    for state, target in zip(states, wanted.tolist(), strict=True):
        candidates = [target, *(i for i in negatives.tolist() if i != target)]
        each.append(functional.cross_entropy((items[candidates] @ state / heat)[None], torch.tensor([0])))
    expected = torch.stack(each).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(value, states)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_loss_stays_finite_at_the_lowest_temperature_and_the_worst_fit() -> None:
    states = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = sampled_softmax(states, -states.detach(), -states.detach(), torch.tensor([False]), 0.025)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(np.log(2), rel=1e-5)
    assert torch.isfinite(states.grad).all()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"greater than or equal to 0\.025"):
        HSTUConfig(temperature=0.02)


def test_learning_rate_rises_then_falls() -> None:
    shares = [one_cycle(s) for s in np.linspace(0, 1, 101)]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(0)
    assert np.argmax(shares) == 10
