# mypy: ignore-errors
"""The time bucket of every pair that the causal kernels for Hopper look at, a byte each, in the orders in which those hold pairs.

Buckets depend on times alone, so the heads of a layer share them, and so can the layers of a network. A time's bucket is found by its cell,
a quarter of an octave of seconds: the upper bits of the float32. A bucket is longer than a cell, so at most one starts inside of it. A
thread looks at four queries and four keys at a time: of a word, whose bytes are buckets, it has all four in either order.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.hstu_attention.reference import thresholds
from kernels.launching import launch

TILE = 128
# Of float32 numbers from 0 to 2 ** 31, which is what the last number of 31 bits becomes.
_CELLS = 633


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
            count_of_tiles, -(-longest // TILE), num_warps=8,
        )  # fmt: skip
    return words[0], words[1]


@cache
def cells(count: int, device: torch.device) -> Tensor:
    """[cells, 2] int32: the bucket that a cell starts in, and the last second before the next, if that starts inside of the cell."""
    firsts = torch.tensor([*thresholds(count), 2**62])
    edges = (torch.arange(_CELLS + 1, dtype=torch.int32) << 21).view(torch.float32).double().ceil().long()
    lows = torch.searchsorted(firsts[:-1], edges[:-1], right=True) - 1
    never = 2**31 - 1
    lasts = torch.where(firsts[lows + 1] < edges[1:], firsts[lows + 1] - 1, never).clamp(max=never)
    return torch.stack([lows, lasts], 1).int().to(device)


@triton.jit
def _since(times, token, first, end, start):
    """Whole seconds from `start` on, of tokens; 34 years count as all that is longer. Tokens behind the sequence's end have its last's."""
    x = tl.load(times + first + tl.minimum(token, end - 1)) - start
    return tl.minimum(tl.maximum(x, -(2**30 - 1)), 2**30 - 1).to(tl.int32)


@triton.jit
def _bucket(apart, table):
    passed = tl.abs(apart)
    cell = passed.to(tl.float32).to(tl.int32, bitcast=True) >> 21
    both = tl.load(table + cell)
    # The sign of what is left until the last second: a comparison and its sum would be more instructions.
    left = (both >> 32).to(tl.int32) - passed
    return both.to(tl.int32) + (left.to(tl.uint32, bitcast=True) >> 31).to(tl.int32)


@triton.jit
def _by_byte(x):
    """Of numbers [128], 32 for the first byte of 32 words and so on, those of each byte [32]."""
    even, odd = tl.split(tl.permute(tl.reshape(x, [2, 2, 32]), (2, 0, 1)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


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
        byte, word = row // 32, row % 32
        behind = byte // 2 * 8 + byte % 2
        queries = _by_byte(_since(query_times, m * 128 + word // 4 * 16 + word % 4 * 2 + behind, first, end, start))
        keys = _by_byte(_since(key_times, n * 128 + word % 8 * 16 + word // 8 * 2 + behind, first, end, start))
        # Of the first byte, [words by key, words by query].
        word = tl.arange(0, 32)
        query, key = word // 4 * 16 + word % 4 * 2, word % 8 * 16 + word // 8 * 2
        by_query_at = by_query + pid.to(tl.int64) * 4096 + query[:, None] * 32 + word[None, :] if by_query is not None else None
        # Two tiles of 64 queries.
        at = (sequence * tiles * 2 + n * (2 * blocks - n + 1) + 2 * (m - n)).to(tl.int64) * 2048
        by_key_at = by_key + at + (word // 16 * 2048 + word % 16)[:, None] + key[None, :] * 16 if by_key is not None else None
        none = tl.zeros([32, 32], tl.int32)
        a, b, c, d = none, none, none, none
        for i in tl.static_range(4):
            w = _bucket(queries[i][:, None] - keys[0][None, :], table)
            x = _bucket(queries[i][:, None] - keys[1][None, :], table)
            y = _bucket(queries[i][:, None] - keys[2][None, :], table)
            z = _bucket(queries[i][:, None] - keys[3][None, :], table)
            if by_query is not None:
                tl.store(by_query_at + (i // 2 * 8 + i % 2) * 32, w + (x << 8) + (y << 16) + (z << 24))
            a, b, c, d = a + (w << 8 * i), b + (x << 8 * i), c + (y << 8 * i), d + (z << 8 * i)
        if by_key is not None:
            tl.store(by_key_at, a)
            tl.store(by_key_at + 16, b)
            tl.store(by_key_at + 128, c)
            tl.store(by_key_at + 144, d)
