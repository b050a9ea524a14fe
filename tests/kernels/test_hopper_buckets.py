"""The buckets of pairs, as Hopper's kernels read them, against their definition in float64."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

pytest.importorskip("triton")

from kernels.hstu_attention.hopper_buckets import cells, pair_buckets
from kernels.hstu_attention.reference import bucket, thresholds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("count", [1, 2, 20, 64, 90])
def test_cells_give_the_bucket_of_every_time(count: int) -> None:
    lows, lasts = cells(count, torch.device("cpu")).unbind(1)
    firsts = torch.tensor(thresholds(count)).clamp(max=2**31)
    near = torch.arange(-300, 300)
    passed = torch.cat([torch.arange(10**5), *(x[:, None].add(near).flatten() for x in (firsts, 2 ** torch.arange(31)))])
    passed = passed.clamp(0, 2**31 - 2)
    cell = passed.int().float().view(torch.int32) >> 21
    assert torch.equal(lows[cell] + (passed > lasts[cell]).int(), bucket(passed, count).int())


@pytest.mark.parametrize(("lengths", "longest"), [([300, 0, 1, 129, 128], 300), ([500], 700)])
@pytest.mark.parametrize("gaps", [10, 10**4, 10**6, 0, None], ids=["seconds", "hours", "days", "years after 256", "in no order"])
def test_every_pair_stands_where_it_is_read(lengths: list[int], longest: int, gaps: int | None) -> None:
    generator = torch.Generator().manual_seed(longest)
    keys = torch.randint(0, gaps or (10 if gaps == 0 else 10**7), (sum(lengths),), generator=generator)
    if gaps is not None:
        keys = keys.cumsum(0)
    if gaps == 0:
        keys[256:] += 10**8
    queries = keys + torch.randint(0, 1000, keys.shape, generator=generator)
    offsets = torch.tensor([0, *accumulate(lengths)])
    by_query, by_key = pair_buckets(keys.to(DEVICE), queries.to(DEVICE), offsets.to(DEVICE), longest, 64)
    assert by_query is not None
    assert by_key is not None
    blocks = -(-longest // 128)
    # By query: rows, 4 of words, 8 of words, bytes; by key: rows, 4 words, 4 of those, bytes.
    forward = by_query.cpu().contiguous().view(torch.uint8).view(len(lengths), -1, 128, 4, 8, 2, 2)
    backward = by_key.cpu().contiguous().view(torch.uint8).view(len(lengths), -1, 128, 4, 4, 2, 2)
    forward = forward.permute(0, 1, 2, 4, 5, 3, 6).flatten(3)
    backward = backward.permute(0, 1, 2, 3, 5, 4, 6).flatten(3)
    for b, (start, stop) in enumerate(pairwise(offsets.tolist())):
        want = bucket(queries[start:stop, None] - keys[None, start:stop], 64).to(torch.uint8)
        for m in range(-(-(stop - start) // 128)):
            for n in range(m + 1):
                part = want[m * 128 : m * 128 + 128, n * 128 : n * 128 + 128]
                rows, columns = part.shape
                assert torch.equal(forward[b, m * (m + 1) // 2 + n, :rows, :columns], part)
                at = n * (2 * blocks - n + 1) + 2 * (m - n)
                both = torch.cat([backward[b, at], backward[b, at + 1]], 1)
                assert torch.equal(both[:columns, :rows], part.T)


def test_only_what_is_asked_for_is_made() -> None:
    times, offsets = torch.arange(100, device=DEVICE), torch.tensor([0, 100], device=DEVICE)
    assert pair_buckets(times, times, offsets, 100, 64, by_key=False)[1] is None
    assert pair_buckets(times, times, offsets, 100, 64, by_query=False)[0] is None
