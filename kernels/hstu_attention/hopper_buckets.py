# mypy: ignore-errors
"""The time bucket of every pair that the causal kernels for Hopper look at, a byte each, in the orders in which those hold pairs.

Buckets depend on times alone, so the heads of a layer share them, and so can the layers of a network. A time's bucket is found by its cell,
a quarter of an octave of seconds: the upper bits of the float32. A bucket is longer than a cell, so at most one starts inside, at the
cell's cut.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hstu_attention.reference import thresholds
from kernels.launching import launch

TILE = 128
# Of float32 numbers from 1 to 2 ** 31, which is what the last number of 31 bits becomes.
_CELLS = 125


def tiles(longest: int) -> int:
    """Pairs of a block of queries and one of keys that it sees, of a sequence of `longest` tokens."""
    blocks = -(-longest // TILE)
    return blocks * (blocks + 1) // 2


def pair_buckets(
    key_times: Tensor, query_times: Tensor, offsets: Tensor, longest: int, count: int, by_query: bool = True, by_key: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Buckets of causal pairs as words [B, tiles, 128, 32] by query, for the forward, and [B, tiles, 2, 128, 16] by key, for the backward.

    By query, tiles (m, n), n <= m, of 128 queries and 128 keys stand at m (m + 1) / 2 + n. Word 8 c + j of a row has the buckets with keys
    16 j + 2 c + (0, 1, 8, 9). By key, tiles of 128 keys n and the 64 queries t places of 64 behind their first stand at n (2 blocks - n +
    1) + t, and word 4 j + c of a row has the buckets with queries 16 j + 2 c + (0, 1, 8, 9). What no token stands behind is not written.
    """
    sequences, count_of_tiles = offsets.shape[0] - 1, tiles(longest)
    words = [
        torch.empty(sequences, count_of_tiles * shape[0], *shape[1:], dtype=torch.int32, device=offsets.device) if wanted else None
        for wanted, shape in ((by_query, (1, 128, 32)), (by_key, (2, 128, 16)))
    ]
    # A cell's two numbers are read as one.
    table = cells(count, offsets.device).view(torch.int64).flatten()
    if sequences:
        launch(
            _pair_buckets_kernel, sequences * count_of_tiles, key_times.contiguous(), query_times.contiguous(), offsets, table, *words,
            count_of_tiles, -(-longest // TILE), num_warps=4,
        )  # fmt: skip
    return words[0], words[1]


@cache
def cells(count: int, device: torch.device) -> Tensor:
    """[cells, 2] int32: the bucket that a cell starts in, and where another starts inside of it, if one does."""
    firsts = thresholds(count)
    starts = [-(-((4 + cell % 4) << cell // 4) // 4) for cell in range(_CELLS + 1)]
    lows = [max(b for b, first in enumerate(firsts) if first <= start) for start in starts[:-1]]
    never = 2**31 - 1
    cuts = [
        min(never, firsts[low + 1]) if low + 1 < count and firsts[low + 1] < end else never
        for low, end in zip(lows, starts[1:], strict=True)
    ]
    return torch.tensor([lows, cuts], dtype=torch.int32, device=device).t().contiguous()


@triton.jit
def _since(times, token, first, end, start):
    """Whole seconds from `start` on, of tokens; 34 years count as all that is longer. Tokens behind the sequence's end have its last's."""
    x = tl.load(times + first + tl.minimum(token, end - 1)) - start
    return tl.minimum(tl.maximum(x, -(2**30 - 1)), 2**30 - 1).to(tl.int32)


@triton.jit
def _bucket(apart, table):
    passed = tl.maximum(tl.abs(apart), 1)
    cell = (passed.to(tl.float32).to(tl.int32, bitcast=True) >> 21) - 508
    both = tl.load(table + cell)
    return both.to(tl.int32) + (passed >= (both >> 32).to(tl.int32)).to(tl.int32)


@triton.jit
def _packed(mine, times, token, first, end, start, table):
    """Words [rows, words] of the buckets of seconds [rows] with tokens 0, 1, 8 and 9 behind `token` [words]."""
    words = tl.zeros([mine.shape[0], token.shape[0]], tl.int32)
    for byte in tl.static_range(4):
        theirs = _since(times, token + (byte // 2 * 8 + byte % 2), first, end, start)
        words = words | (_bucket(mine[:, None] - theirs[None, :], table) << (8 * byte))
    return words


@triton.jit(do_not_specialize=["tiles", "blocks"])
def _pair_buckets_kernel(key_times, query_times, offsets, table, by_query, by_key, tiles, blocks):
    """A program for each tile of 128 by 128."""
    pid = tl.program_id(0)
    sequence = pid // tiles
    tile = pid % tiles
    m = ((tl.sqrt_rn(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    m += ((m + 1) * (m + 2) // 2 <= tile).to(tl.int32)
    m -= (m * (m + 1) // 2 > tile).to(tl.int32)
    n = tile - m * (m + 1) // 2
    first = tl.load(offsets + sequence)
    end = (tl.load(offsets + sequence + 1) - first).to(tl.int32)
    if m * 128 < end:
        start = tl.load(query_times + first + m * 128)
        row = tl.arange(0, 128)
        word = tl.arange(0, 32)
        quad = tl.arange(0, 16)
        queries = _since(query_times, m * 128 + row, first, end, start)
        keys = _since(key_times, n * 128 + row, first, end, start)
        by_query_at = by_query + pid.to(tl.int64) * 4096 + row[:, None] * 32 + word[None, :] if by_query is not None else None
        # Two tiles of 64 queries.
        at = (sequence * tiles * 2 + n * (2 * blocks - n + 1) + 2 * (m - n)).to(tl.int64) * 2048
        by_key_at = by_key + at + row[:, None] * 16 + quad[None, :] if by_key is not None else None
        nearest, farthest = tl.min(queries, 0) - tl.max(keys, 0), tl.max(queries, 0) - tl.min(keys, 0)
        bucket = _bucket(farthest, table)
        if (nearest >= 0) & (_bucket(nearest, table) == bucket):
            # All pairs are in one, as most that are far apart.
            if by_query is not None:
                tl.store(by_query_at, tl.full([128, 32], 0x01010101, tl.int32) * bucket)
            if by_key is not None:
                for half in tl.static_range(2):
                    tl.store(by_key_at + half * 2048, tl.full([128, 16], 0x01010101, tl.int32) * bucket)
        else:
            if by_query is not None:
                others = n * 128 + word % 8 * 16 + word // 8 * 2
                tl.store(by_query_at, _packed(queries, key_times, others, first, end, start, table))
            if by_key is not None:
                for half in tl.static_range(2):
                    others = m * 128 + half * 64 + quad // 4 * 16 + quad % 4 * 2
                    tl.store(by_key_at + half * 2048, _packed(keys, query_times, others, first, end, start, table))
