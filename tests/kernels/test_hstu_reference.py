"""The reference attention against its definition written out element by element, and the properties a mask and offsets must have."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.hstu_attention import bucket, hstu_attention
from kernels.hstu_attention.reference import thresholds
from tests.kernels.attention_cases import by_element, case

SEQUENCES = st.lists(st.integers(0, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    SEQUENCES,
    st.integers(0, 2**20),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 4),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_equals_the_definition(
    sequences: list[tuple[int, int]], seed: int, alpha: float, targets: bool, times: bool, window: int, context: int, padding: int
) -> None:
    lengths = [n for n, _ in sequences]
    # Targets stand behind the context.
    asked = [min(t, max(n - context, 0)) for n, t in sequences] if targets else None
    given_ = case(
        lengths, targets=asked, times=times, seed=seed, alpha=alpha, normalizer=7.0,
        max_attn_len=window, contextual_len=context, padding=padding, strided=True,
    )  # fmt: skip
    np.testing.assert_allclose(hstu_attention(**given_).numpy(), by_element(**given_), rtol=1e-4, atol=1e-5)


def test_no_bias_is_a_bias_of_zero() -> None:
    plain = case([5, 0, 1], position=False)
    zero = hstu_attention(**plain, position_bias=torch.zeros(2, 7))
    torch.testing.assert_close(hstu_attention(**plain), zero)


def test_the_normalizer_is_the_longest_length_allowed_unless_given() -> None:
    given_ = case([4, 2])
    torch.testing.assert_close(hstu_attention(**given_), hstu_attention(**given_, normalizer=6.0))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_later_token_changes_no_earlier_output(name: str) -> None:
    given_ = case([6, 4])
    before = hstu_attention(**given_)
    given_[name] = given_[name].clone()
    given_[name][4] += 100
    after = hstu_attention(**given_)
    assert torch.equal(after[:4], before[:4])
    assert torch.equal(after[6:], before[6:])
    assert not torch.equal(after[4], before[4])


def test_targets_do_not_depend_on_each_other() -> None:
    given_ = case([7, 5], targets=[3, 2], times=True)
    before = hstu_attention(**given_)
    swap = torch.tensor([0, 1, 2, 3, 6, 5, 4, 7, 8, 9, 11, 10])
    swapped = {n: given_[n][swap] for n in ("q", "k", "v", "key_times", "query_times")}
    torch.testing.assert_close(hstu_attention(**given_ | swapped), before[swap])


def test_batching_changes_nothing() -> None:
    given_ = case([7, 1, 0, 3])
    together = hstu_attention(**given_)
    for start, stop in pairwise(given_["offsets"].tolist()):
        alone = given_ | {n: given_[n][start:stop] for n in "qkv"} | {"offsets": torch.tensor([0, stop - start])}
        torch.testing.assert_close(hstu_attention(**alone), together[start:stop])


def test_gradients_are_those_of_finite_differences() -> None:
    given_ = case([3, 0, 4, 1], times=True, targets=[1, 0, 2, 0], dtype=torch.float64)
    names = ["q", "k", "v", "position_bias", "time_bias"]
    inputs = tuple(given_[n].double().requires_grad_() for n in names)
    assert torch.autograd.gradcheck(lambda *x: hstu_attention(**given_ | dict(zip(names, x, strict=True))), inputs)


def test_no_tokens_at_all() -> None:
    assert hstu_attention(**case([0, 0])).shape == (0, 2, 4)


def test_a_bias_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="covers 4 distances and max_seq_len is 7"):
        hstu_attention(**case([5]) | {"position_bias": torch.zeros(2, 4)})


def test_times_without_a_bias_for_them_are_refused() -> None:
    with pytest.raises(ValueError, match="needs key_times"):
        hstu_attention(**case([5], times=True) | {"query_times": None})


@given(st.integers(0, 2**40))
def test_buckets_are_logarithms_rounded_down(seconds: int) -> None:
    expected = min(math.floor(math.log(max(seconds, 1)) / 0.301), 63)
    assert bucket(torch.tensor([seconds, -seconds]), 64).tolist() == [expected, expected]


def test_the_thresholds_are_where_buckets_start() -> None:
    first = torch.tensor(thresholds(64))
    seconds = torch.cat([first, first - 1, torch.randint(0, 2**31, (10_000,), generator=torch.Generator().manual_seed(0))])
    assert torch.equal(bucket(seconds, 64), torch.bucketize(seconds.clamp(min=0), first[1:], right=True))
