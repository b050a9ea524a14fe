# mypy: ignore-errors
"""Forward: a program holds a block of one sequence's queries of one head, and goes over the keys they see."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.hstu_attention.tiles import (
    add_biases,
    extremes,
    keys_seen,
    moments,
    product,
    program,
    rows_of,
    silu,
    visible,
)

# Numbers that change from batch to batch or model to model, and need no kernel of their own.
_VARYING = ["position_stride", "time_stride", "tokens", "blocks", "pairs", "group", "window", "context", "buckets"]


@triton.jit
def step(
    acc, queries, keys, values, col, alpha, sight, biases, MASKED: tl.constexpr, D: tl.constexpr, E: tl.constexpr, PAD_D: tl.constexpr,
    PAD_E: tl.constexpr, COLS: tl.constexpr, NATIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc plus one tile's values by their weights."""
    query, i, place_i, when_i, reference = queries
    k, k_token, key_times = keys
    v, v_token = values
    _, time_bias, _, _ = biases
    length, _, _, _ = sight
    j = col + tl.arange(0, COLS)
    key = rows_of(k, col, k_token, length, COLS, D, PAD_D, MASKED)
    half = product(query, tl.trans(key), None, NATIVE, PRECISION) * (0.5 * alpha)
    when_j = None
    if time_bias is not None:
        time_j = moments(key_times, tl.minimum(j, length - 1), reference)
        when_j = (time_j[None, :], extremes(time_j))
    half, _, _, _ = add_biases(half, place_i[:, None], j[None, :], when_i, when_j, sight, biases, MASKED, NATIVE)
    _, weight = silu(half, NATIVE and key.dtype != tl.float32)
    if MASKED:
        weight = tl.where(visible(i[:, None], j[None, :], sight), weight, 0.0)
    value = rows_of(v, col, v_token, length, COLS, E, PAD_E, MASKED)
    return product(weight.to(value.dtype), value, acc, NATIVE, PRECISION)


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    q, k, v, out, offsets, num_targets, position_bias, time_bias, key_times, query_times, firsts,
    q_token, q_head, k_token, k_head, v_token, v_head, position_stride, time_stride,
    tokens, blocks, pairs, group, alpha, scale, window, context, buckets,
    H: tl.constexpr, D: tl.constexpr, E: tl.constexpr, PAD_D: tl.constexpr, PAD_E: tl.constexpr,
    NATIVE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    block, pair = program(tl.program_id(0), blocks, pairs, group)
    sequence, head = pair // H, pair % H
    begin = tl.load(offsets + sequence)
    row = block * ROWS
    e = tl.arange(0, PAD_E)
    result = out + head * E + e[None, :]
    if pair >= pairs - H:
        # Behind the last sequence is padding.
        zero = tl.zeros([ROWS, PAD_E], out.dtype.element_ty)
        for start in range(begin + row, tokens, blocks * ROWS):
            i = start + tl.arange(0, ROWS).to(tl.int64)
            tl.store(result + i[:, None] * (H * E), zero, mask=(i < tokens)[:, None] & (e < E)[None, :])
        return
    length = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    if row >= length:
        return
    if position_bias is not None:
        position_bias += head * position_stride
    sight = (length, None if num_targets is None else length - tl.load(num_targets + sequence).to(tl.int32), window, context)

    i = row + tl.arange(0, ROWS)
    query = rows_of(q + head * q_head + begin * q_token, row, q_token, length, ROWS, D, PAD_D, True)
    # Rows behind the sequence's end have no place in the table.
    place_i = tl.minimum(i, length - 1)
    queries = (query, i, place_i, None, None)
    if time_bias is not None:
        time_bias += head * time_stride
        key_times += begin
        reference = tl.load(query_times + begin + tl.minimum(row + ROWS, length) - 1)
        time_i = moments(query_times + begin, place_i, reference)
        queries = (query, i, place_i, (time_i[:, None], extremes(time_i)), reference)
    keys = (k + head * k_head + begin * k_token, k_token, key_times)
    values = (v + head * v_head + begin * v_token, v_token)
    biases = (position_bias, time_bias, firsts, buckets)

    first, a, b, c, last = keys_seen(row, sight, ROWS, COLS)
    acc = tl.zeros([ROWS, PAD_E], tl.float32)
    for col in range(a, b, COLS):
        acc = step(acc, queries, keys, values, col, alpha, sight, biases, False, D, E, PAD_D, PAD_E, COLS, NATIVE, PRECISION)
    before = (a - first) // COLS
    middle = before + (c - b) // COLS
    for n in range(0, middle + (last - row + COLS - 1) // COLS):
        col = tl.where(n < before, first + n * COLS, tl.where(n < middle, b + (n - before) * COLS, row + (n - middle) * COLS))
        acc = step(acc, queries, keys, values, col, alpha, sight, biases, True, D, E, PAD_D, PAD_E, COLS, NATIVE, PRECISION)
    at = result + (begin + i)[:, None] * (H * E)
    tl.store(at, (acc * scale).to(out.dtype.element_ty), mask=(i < length)[:, None] & (e < E)[None, :])
