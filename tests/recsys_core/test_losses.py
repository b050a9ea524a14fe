"""Losses against plain formulas, torch's own, and the limits that tie them to each other."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from recsys_core.sequence.batch import SequenceLog
from recsys_core.sequence.embedding import TokenEmbedding
from recsys_core.sequence.losses import (
    Objective,
    SoftmaxSum,
    distinct_uniform,
    full_softmax,
    log_q,
    sampled_loss,
    softmax_sum,
)
from recsys_core.sequence.recommender import SequenceConfig, SequenceLearner, SequenceNetwork

OBJECTIVES: list[Objective] = ["softmax", "bce", "gbce", "bpr", "top1"]
NO_FEATURES: dict[str, list[dict[str, object]]] = {"user": [], "item": [], "interaction": []}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plain(objective: Objective, positive: float, negatives: list[float], share: float, calibration: float) -> float:
    """The published formula for one position, its hits already left out."""
    if objective == "softmax":
        return -math.log(math.exp(positive) / (math.exp(positive) + sum(map(math.exp, negatives))))
    if objective in ("bce", "gbce"):
        beta = share * (calibration * (1 - 1 / share) + 1 / share) if objective == "gbce" else 1.0
        return -math.log(sigmoid(positive) ** beta) - sum(math.log(1 - sigmoid(n)) for n in negatives)
    if objective == "bpr":
        each = [-math.log(sigmoid(positive - n)) for n in negatives]
    else:
        each = [sigmoid(n - positive) + sigmoid(n * n) for n in negatives]
    return sum(each) / max(len(each), 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(deadline=None)
@given(
    rows=st.integers(0, 5), count=st.integers(1, 6), share=st.floats(0.01, 1), calibration=st.floats(0, 1), hits=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_sampled_losses_are_the_published_formulas(
    objective: Objective, rows: int, count: int, share: float, calibration: float, hits: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive = 2 * torch.randn(rows, generator=generator, dtype=torch.float64)
    negative = 2 * torch.randn(rows, count, generator=generator, dtype=torch.float64)
    hit = torch.rand(rows, count, generator=generator) < hits
    found = sampled_loss(objective, positive, negative, hit, share, calibration)
    kept = [row[~mask].tolist() for row, mask in zip(negative, hit, strict=True)]
    expected = [plain(objective, p, n, share, calibration) for p, n in zip(positive.tolist(), kept, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    if not hit.any():
        torch.testing.assert_close(sampled_loss(objective, positive, negative, None, share, calibration), found)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_hit_has_neither_loss_nor_gradient(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(4, generator=generator, requires_grad=True)
    negative = torch.randn(4, 5, generator=generator, requires_grad=True)
    hit = torch.rand(4, 5, generator=generator) < 0.5
    hit[0] = True
    loss = sampled_loss(objective, positive, negative, hit, 0.3, 0.5)
    loud = torch.where(hit, 50.0, negative.detach())
    torch.testing.assert_close(sampled_loss(objective, positive, loud, hit, 0.3, 0.5), loss)
    to_positive, to_negative = torch.autograd.grad(loss.sum(), (positive, negative))
    assert torch.isfinite(to_positive).all()
    assert (to_negative[hit] == 0).all()
    assert (to_negative[~hit] != 0).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    negative = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    hit = torch.tensor([[True, False, False, True], [False] * 4, [True] * 4])
    assert torch.autograd.gradcheck(lambda p, n: sampled_loss(objective, p, n, hit, 0.2, 0.75), (positive, negative))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_huge_scores_stay_finite(objective: Objective) -> None:
    positive = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = sampled_loss(objective, positive, torch.tensor([[1e4, 0.0], [-1e4, 0.0]]), None, 0.5, 0.5)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), positive)[0]).all()


def test_losses_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    positive, negative = torch.randn(6, generator=generator), torch.randn(6, 3, generator=generator)
    logits, first = torch.cat([positive[:, None], negative], 1), torch.zeros(6, dtype=torch.int64)
    torch.testing.assert_close(sampled_loss("softmax", positive, negative, None), functional.cross_entropy(logits, first, reduction="none"))
    labels = functional.one_hot(first, 4).float()
    bce = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(sampled_loss("bce", positive, negative, None), bce)
    # With one negative BPR is the softmax over the two.
    torch.testing.assert_close(
        sampled_loss("bpr", positive, negative[:, :1], None), sampled_loss("softmax", positive, negative[:, :1], None)
    )


@settings(deadline=None)
@given(st.floats(0.01, 1), st.integers(0, 2**20))
def test_gbce_lies_between_bce_and_a_weighted_positive(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(4, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
    loss = partial(sampled_loss, "gbce", positive, negative, None, share)
    torch.testing.assert_close(loss(0.0), sampled_loss("bce", positive, negative, None))
    # Full calibration: the positive weighs as much as the share of negatives that were drawn.
    torch.testing.assert_close(loss(1.0), -share * functional.logsigmoid(positive) - functional.logsigmoid(-negative).sum(1))
    torch.testing.assert_close(loss(0.25), 0.75 * loss(0.0) + 0.25 * loss(1.0))


def test_full_softmax_is_the_plain_formula_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, 2, 2])
    scores = (states @ items.T).exp()
    expected = -(scores[range(4), targets] / scores.sum(1)).log()
    torch.testing.assert_close(full_softmax(states, targets, items), expected)
    assert torch.autograd.gradcheck(lambda s, i: full_softmax(s, targets, i), (states, items))


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**20))
def test_the_sum_in_pieces_is_the_sum(rows: int, n_items: int, piece: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(n_items, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets, real = torch.randint(n_items, (rows,), generator=generator), torch.rand(rows, generator=generator) < 0.8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SoftmaxSum, "rows", piece)
        found = softmax_sum(states, targets, items, real)
    expected = torch.where(real, full_softmax(states, targets, items), 0.0).sum()
    torch.testing.assert_close(found, expected)
    # By a chain behind the sum, so that what the trainer divides by is seen.
    mine, theirs = (torch.autograd.grad(loss.square() / 7, (states, items)) for loss in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert (mine[0][~real] == 0).all()


def test_the_sum_in_pieces_has_the_gradient_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SoftmaxSum, "rows", 2)
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, i: SoftmaxSum.apply(s, torch.tensor([0, 3, 1, 1, 2]), i), (states, items))


def test_the_sum_in_pieces_stays_finite_and_shows_what_is_not() -> None:
    states, items, real = torch.tensor([[1e4], [-1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]]), torch.ones(2, dtype=torch.bool)
    loss = softmax_sum(states, torch.tensor([1, 0]), items, real)
    assert loss.item() == pytest.approx(4e4)
    assert torch.isfinite(torch.autograd.grad(loss, states)[0]).all()
    assert softmax_sum(torch.tensor([[torch.nan]]), torch.tensor([0]), items, real[:1]).isnan()


def test_autocast_takes_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(5)
    states, items = torch.randn(6, 8, generator=generator, requires_grad=True), torch.randn(9, 8, generator=generator)
    targets, real = torch.arange(6), torch.ones(6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full_softmax(states, targets, items).sum()
        found = softmax_sum(states, targets, items, real)
    assert torch.equal(found, expected)
    assert not torch.equal(softmax_sum(states, targets, items, real), expected)


def test_distinct_uniform_draws_every_item_equally_often_and_none_twice() -> None:
    torch.manual_seed(4)
    counts, draws = torch.zeros(10), 4000
    for _ in range(draws):
        drawn = distinct_uniform(10, 3, torch.device("cpu"))
        assert len(set(drawn.tolist())) == 3
        counts[drawn] += 1
    # A count is binomial(4000, .3), of standard deviation 29.
    assert (counts - 0.3 * draws).abs().max() < 4 * 29
    assert distinct_uniform(10, 99, torch.device("cpu")).tolist() == list(range(10))


FREQUENCY = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)
SCORES = torch.tensor([1.0, -0.5, 0.3, 2.0, 1.5], dtype=torch.float64)


def draw(count: int, repeats: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(FREQUENCY, count * repeats, True, generator=generator).view(repeats, count)


def test_log_q_makes_negatives_estimate_the_sum_over_the_catalogue_without_bias() -> None:
    for target in range(5):
        drawn = draw(4, 40_000, seed=target)
        corrected = log_q(SCORES[drawn], FREQUENCY.log()[drawn])
        estimates = torch.where(drawn == target, 0.0, corrected.exp()).sum(1)
        expected = SCORES.exp().sum() - SCORES[target].exp()
        error = estimates.std() / math.sqrt(len(estimates))
        assert abs(estimates.mean() - expected) < 4 * error
        assert error < 0.02 * expected


def test_with_many_negatives_the_corrected_softmax_is_the_full_one() -> None:
    drawn, targets = draw(20_000, 1, seed=9), torch.arange(5)
    hit = targets[:, None] == drawn

    def gradient(corrected: bool) -> tuple[Tensor, Tensor]:
        scores = SCORES.clone().requires_grad_()
        negative = scores[drawn].expand(5, -1)
        negative = log_q(negative, FREQUENCY.log()[drawn]) if corrected else negative - math.log(drawn.shape[1])
        loss = sampled_loss("softmax", scores[targets], negative, hit)
        return loss.detach(), torch.autograd.grad((loss * FREQUENCY).sum(), scores)[0]

    expected = SCORES.logsumexp(0) - SCORES[targets]
    loss, slope = gradient(corrected=True)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(slope, SCORES.softmax(0) - FREQUENCY, rtol=0, atol=0.02)
    assert (gradient(corrected=False)[1] - (SCORES.softmax(0) - FREQUENCY)).abs().max() > 0.1


class Nothing(SequenceNetwork):
    """A network whose embedding alone is asked."""

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(n_items, 1, dim, NO_FEATURES)


def learner(**settings: object) -> SequenceLearner:
    torch.manual_seed(0)
    config = SequenceConfig.model_validate({"dim": 6, **settings})
    log = SequenceLog(items=None, times=np.zeros(0, np.int64), ratings=np.zeros(0, np.float32), features={})  # type: ignore[arg-type]
    return SequenceLearner(Nothing(12, 6), config, log, np.arange(1, 13))


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_shared_negatives_that_are_the_catalogue_give_the_full_softmax(similarity: str) -> None:
    states, targets = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    full, shared = (
        learner(sampling=sampling, negatives=12, similarity=similarity, temperature=0.5).losses(states, targets)
        for sampling in ("all", "shared")
    )
    torch.testing.assert_close(full, shared)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("sampling", ["all", "shared"])
def test_the_loss_is_the_sum_over_real_positions(sampling: str, similarity: str) -> None:
    made = learner(sampling=sampling, negatives=12, similarity=similarity, temperature=0.5)
    states, targets = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).requires_grad_(), torch.arange(7)
    real = torch.arange(7) < 4
    found = made.loss(states, targets, real)
    torch.testing.assert_close(found, made.losses(states, targets)[:4].sum())
    (slope,) = torch.autograd.grad(found, states)
    assert (slope[:4] != 0).all()
    assert (slope[4:] == 0).all()


@pytest.mark.parametrize("sampling", ["shared", "uniform", "in-batch"])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_every_loss_goes_with_every_source_of_negatives(loss: str, sampling: str) -> None:
    made = learner(loss=loss, sampling=sampling, negatives=5)
    states = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = made.losses(states, torch.randint(12, (9,), generator=torch.Generator().manual_seed(3)))
    assert found.shape == (9,)
    assert torch.isfinite(found).all()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(states.grad).all()  # type: ignore[arg-type]
    assert made.network.embedding.ids.weight.grad is not None


def test_in_batch_negatives_are_corrected_by_the_frequency_in_the_log_for_the_softmax_alone() -> None:
    made = learner(sampling="in-batch", negatives=3)
    states = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    # One target and one other item: all draws are known.
    targets = torch.tensor([2, 2, 2, 7])
    items = made.network.embedding.items().detach()
    torch.manual_seed(5)
    drawn = targets[torch.randint(4, (3,))]
    torch.manual_seed(5)
    found = made.losses(states, targets).detach()
    frequency = torch.arange(1, 13) / 78
    for row, target in enumerate(targets.tolist()):
        scores = items @ states[row]
        others = sum(float(scores[d].exp() / (3 * frequency[d])) for d in drawn.tolist() if d != target)
        assert float(found[row]) == pytest.approx(math.log(float(scores[target].exp()) + others) - float(scores[target]), abs=1e-4)


def test_sampled_objectives_refuse_the_whole_catalogue() -> None:
    with pytest.raises(ValueError, match="loss 'bpr' needs sampled negatives"):
        SequenceConfig(loss="bpr")
