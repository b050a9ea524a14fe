# mypy: ignore-errors
"""The kernels' time buckets against their definition in float64."""

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from kernels.hstu_attention.launch import _firsts  # noqa: E402
from kernels.hstu_attention.reference import bucket  # noqa: E402
from kernels.hstu_attention.tiles import bucket_of  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def buckets_kernel(passed, firsts, found, buckets, count, NATIVE: tl.constexpr, SIZE: tl.constexpr):
    n = tl.arange(0, SIZE)
    x = bucket_of(tl.load(passed + n, mask=n < count, other=0), (None, None, firsts, buckets), NATIVE)
    tl.store(found + n, x, mask=n < count)


@pytest.mark.parametrize("count", [1, 20, 64, 90])
def test_every_time_has_its_bucket(count: int) -> None:
    near, firsts = torch.arange(-20, 21), _firsts(count, torch.device("cpu"))
    passed = torch.cat([torch.arange(2000), *(x.long()[:, None].add(near).flatten() for x in (firsts, 2 ** torch.arange(31)))])
    passed = passed.clamp(0, 2**31 - 2).int().to(DEVICE)
    found = torch.empty_like(passed)
    buckets_kernel[(1,)](passed, firsts.to(DEVICE), found, count, len(passed), DEVICE == "cuda", triton.next_power_of_2(len(passed)))
    assert torch.equal(found.cpu().long(), bucket(passed.cpu().long(), count))
