"""Dropout keeps the right share of elements, each on its own, and attention with it is attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recsys_core.sequence.dropout import Dropout, attend, dropout

N = 200_000


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("share", [0.003, 0.1, 0.2, 0.5, 0.97])
def test_the_share_is_dropped_and_the_mean_kept(share: float) -> None:
    found = dropout(torch.ones(N), share)
    kept = found[found != 0]
    # The share is rounded to 1 / 65536.
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=3e-4, atol=0)
    deviation = math.sqrt(share * (1 - share) / N)
    assert abs((found == 0).float().mean().item() - share) < 4 * deviation + 1 / 2**17
    assert abs(found.mean().item() - 1) < 5 * deviation / (1 - share)


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 64])
def test_elements_of_one_draw_are_independent(apart: int) -> None:
    dropped = (dropout(torch.ones(N), 0.3) == 0).float()
    both = (dropped[:-apart] * dropped[apart:]).mean().item()
    assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / N)


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3,), (5, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_shape_and_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    found = dropout(x, 0.4)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    torch.testing.assert_close(found, torch.where(found == 0, 0, x / 0.6), rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=0)


def test_the_gradient_goes_through_the_same_mask() -> None:
    x = torch.randn(1000, requires_grad=True)
    found = dropout(x, 0.25)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, found)
    assert 150 < int((x.grad == 0).sum()) < 350


def test_masks_differ_and_repeat_with_the_seed() -> None:
    first, second = dropout(torch.ones(100), 0.5), dropout(torch.ones(100), 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(100), 0.5), first)


def test_nothing_is_dropped_outside_training() -> None:
    layer, x = Dropout(0.9), torch.randn(50)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def heads(*lengths: int) -> list[Tensor]:
    return [torch.randn(3, 2, length, 4, dtype=torch.float64, requires_grad=True) for length in lengths]


READABLE = torch.tensor([[True, False, False, False, False], [True] * 3 + [False] * 2, [True] * 5])[:, None, None]


@pytest.mark.parametrize(("queries", "readable"), [(5, None), (5, READABLE), (1, READABLE)])
def test_attention_with_a_mask_that_drops_nothing_is_attention(queries: int, readable: Tensor | None) -> None:
    q, k, v = heads(queries, 5, 5)
    # A share that rounds to nothing takes the path of one that does not.
    found = attend(q, k, v, readable, 1e-9)
    expected = functional.scaled_dot_product_attention(q, k, v, readable, is_causal=readable is None)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    for mine, theirs in zip(torch.autograd.grad(found, (q, k, v), slope), torch.autograd.grad(expected, (q, k, v), slope), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(attend(q, k, v, readable, 0.0), expected)


def test_dropped_weights_are_right_on_average() -> None:
    q, k, v = (t.detach() for t in heads(5, 5, 5))
    draws = torch.stack([attend(q, k, v, None, 0.3) for _ in range(3000)])
    expected = attend(q, k, v, None, 0.0)
    assert draws.std(0).max() > 0.1
    assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / math.sqrt(len(draws))).all()


def test_a_compiler_and_a_gpu_take_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(100)
    torch.manual_seed(1)
    expected = functional.dropout(x, 0.5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), expected)
