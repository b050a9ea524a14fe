"""The reference attention against its equation written out element by element, and the properties a mask and offsets must have."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.hstu_attention import hstu_attention


def inputs(lengths: list[int], heads: int = 2, dim: int = 3, value_dim: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return {
        "q": torch.randn(total, heads, dim, generator=generator),
        "k": torch.randn(total, heads, dim, generator=generator),
        "v": torch.randn(total, heads, value_dim, generator=generator),
        "offsets": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64),
        "position_bias": torch.randn(heads, max([1, *lengths]) + 2, generator=generator),
    }


def by_element(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, position_bias: torch.Tensor, normalizer: float, scale: float
) -> np.ndarray:
    out = np.zeros(v.shape)
    Q, K, V, bias = (x.numpy().astype(np.float64) for x in (q, k, v, position_bias))
    for start, stop in pairwise(offsets.tolist()):
        for i in range(start, stop):
            for j in range(start, i + 1):
                for h in range(q.shape[1]):
                    score = scale * Q[i, h] @ K[j, h] + bias[h, i - j]
                    out[i, h] += score / (1 + np.exp(-score)) * V[j, h] / normalizer
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 2**20), st.sampled_from([1.0, 0.5]))
def test_equals_the_equation_element_by_element(lengths: list[int], seed: int, scale: float) -> None:
    case = inputs(lengths, seed=seed)
    out = hstu_attention(**case, normalizer=7.0, scale=scale)
    np.testing.assert_allclose(out.numpy(), by_element(**case, normalizer=7.0, scale=scale), rtol=1e-4, atol=1e-5)


def test_no_bias_is_a_bias_of_zero() -> None:
    case = inputs([5, 0, 1])
    zero = hstu_attention(**case | {"position_bias": torch.zeros(2, 5)}, normalizer=5)
    torch.testing.assert_close(hstu_attention(**case | {"position_bias": None}, normalizer=5), zero)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_later_token_changes_no_earlier_output(name: str) -> None:
    case = inputs([6, 4])
    before = hstu_attention(**case, normalizer=6)
    case[name] = case[name].clone()
    case[name][4] += 100
    after = hstu_attention(**case, normalizer=6)
    assert torch.equal(after[:4], before[:4])
    assert torch.equal(after[6:], before[6:])
    assert not torch.equal(after[4], before[4])


def test_batching_changes_nothing() -> None:
    case = inputs([7, 1, 0, 3])
    together = hstu_attention(**case, normalizer=8)
    bounds = case["offsets"].tolist()
    for start, stop in pairwise(bounds):
        alone = {n: case[n][start:stop] for n in "qkv"} | {
            "offsets": torch.tensor([0, stop - start]),
            "position_bias": case["position_bias"],
        }
        torch.testing.assert_close(hstu_attention(**alone, normalizer=8), together[start:stop])


def test_gradients_are_those_of_finite_differences() -> None:
    case = {n: t if n == "offsets" else t.double().requires_grad_() for n, t in inputs([3, 0, 4, 1]).items()}
    call = lambda q, k, v, bias: hstu_attention(q, k, v, case["offsets"], 4.0, bias, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(call, (case["q"], case["k"], case["v"], case["position_bias"]))


def test_no_tokens_at_all() -> None:
    assert hstu_attention(**inputs([0, 0]), normalizer=4).shape == (0, 2, 4)


def test_a_bias_too_short_is_refused() -> None:
    case = inputs([5])
    with pytest.raises(ValueError, match="covers 4 positions, the longest sequence has 5"):
        hstu_attention(**case | {"position_bias": torch.zeros(2, 4)}, normalizer=5)
