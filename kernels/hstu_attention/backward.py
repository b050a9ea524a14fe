# mypy: ignore-errors
"""Backward, in one launch: every other program owns keys and makes dk and dv, the rest own queries and make dq and the tables' gradients.

Scores are computed twice so that no two programs add to one dq.
"""

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
    queries_seeing,
    rows_of,
    silu,
    visible,
)

# Numbers that change from batch to batch or model to model, and need no kernel of their own.
_VARYING = ["position_stride", "time_stride", "tokens", "blocks", "pairs", "group", "window", "context", "buckets", "width", "copies"]


@triton.jit
def slope_of(sigmoid, weight):
    """The derivative of x * sigmoid(x), which is s + x s (1 - s)."""
    return sigmoid + weight - weight * sigmoid


@triton.jit
def add_to(at, value, mask, DETERMINISTIC: tl.constexpr):
    """Adds to numbers in memory; where the order of sums must not vary, this program is alone with them."""
    if DETERMINISTIC:
        tl.debug_barrier()
        tl.store(at, tl.load(at, mask=mask) + value, mask=mask)
    else:
        tl.atomic_add(at, value, mask=mask, sem="relaxed")


@triton.jit
def add_by_distance(at, tile, row, col, sight, width, scale, DETERMINISTIC: tl.constexpr):
    """Adds a tile's sums over equal distances of queries from `row` and keys from `col` on to at[distance]."""
    ROWS: tl.constexpr = tile.shape[0]
    COLS: tl.constexpr = tile.shape[1]
    # A square as wide as a warp is turned within it; a single one, more slowly, holds each distance once.
    SPAN: tl.constexpr = min(ROWS, COLS) if DETERMINISTIC else min(ROWS, COLS, 32)
    _, history, _, context = sight
    if history is not None:
        # All targets stand at one place.
        target = (row + tl.arange(0, ROWS) >= history)[:, None]
        j = col + tl.arange(0, COLS)
        total = tl.sum(tl.where(target, tile, 0.0).to(tl.float32), 0) * scale
        add_to(at + history - j, total, j < history, DETERMINISTIC)
        add_to(at, tl.sum(tl.where(j < history, 0.0, total)), None, DETERMINISTIC)
        tile = tl.where(target, 0.0, tile)
    # Within squares, column c turned by c places: now row r holds those r apart, and before that those r - SPAN apart.
    square = tl.reshape(tile, [ROWS // SPAN, SPAN, COLS // SPAN, SPAN])
    turn = tl.arange(0, SPAN)[None, :, None, None] + tl.arange(0, SPAN)[None, None, None, :]
    turned = tl.gather(square, tl.broadcast_to(turn % SPAN, square.shape), 1).to(tl.float32)
    near = tl.sum(tl.where(turn < SPAN, turned, 0.0), 3)
    far = tl.sum(turned, 3) - near
    distance = row - col + SPAN * (tl.arange(0, ROWS // SPAN)[:, None, None] - tl.arange(0, COLS // SPAN)[None, None, :])
    distance += tl.arange(0, SPAN)[None, :, None]
    if context is not None:
        # Context sees tokens that come later; their distance counts as 0.
        early = tl.where(distance < 0, near, 0.0) + tl.where(distance - SPAN < 0, far, 0.0)
        add_to(at, tl.sum(tl.reshape(early, [early.numel])) * scale, None, DETERMINISTIC)
    add_to(at + distance, near * scale, (distance >= 0) & (distance < width), DETERMINISTIC)
    add_to(at + distance - SPAN, far * scale, (distance >= SPAN) & (distance - SPAN < width), DETERMINISTIC)


@triton.jit
def add_by_bucket(at, tile, passed, low, high, biases, scale, DETERMINISTIC: tl.constexpr):
    """Adds each row's sums over equal time buckets, which lie between low and high, to at[bucket, row]."""
    ROWS: tl.constexpr = tile.shape[0]
    _, _, firsts, _ = biases
    at += tl.arange(0, ROWS)
    # A bucket's sum is that from its first second on, less that from the next bucket's on.
    above = tl.sum(tile, 1)
    for b in range(low, high):
        further = tl.sum(tl.where(passed >= tl.load(firsts + b + 1), tile, 0.0), 1)
        add_to(at + b * ROWS, (above - further) * scale, None, DETERMINISTIC)
        above = further
    add_to(at + high * ROWS, above * scale, None, DETERMINISTIC)


@triton.jit
def key_step(
    dk, dv, keys, queries, grads, row, alpha, sight, biases, MASKED: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PAD_D: tl.constexpr, PAD_E: tl.constexpr, ROWS: tl.constexpr, NATIVE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv plus what ROWS queries from `row` on give them. Tiles stand as [keys, queries]."""
    key, value, j, when_j, reference = keys
    q, q_token, query_times = queries
    g, g_token = grads
    _, time_bias, _, _ = biases
    length, _, _, _ = sight
    i = row + tl.arange(0, ROWS)
    query = rows_of(q, row, q_token, length, ROWS, D, PAD_D, MASKED)
    grad = rows_of(g, row, g_token, length, ROWS, E, PAD_E, MASKED)
    half = product(key, tl.trans(query), None, NATIVE, PRECISION) * (0.5 * alpha)
    when_i = None
    if time_bias is not None:
        time_i = moments(query_times, tl.minimum(i, length - 1), reference)
        when_i = (time_i[None, :], extremes(time_i))
    half, _, _, _ = add_biases(half, i[None, :], j[:, None], when_i, when_j, sight, biases, MASKED, NATIVE)
    sigmoid, weight = silu(half, NATIVE and key.dtype != tl.float32)
    slope = slope_of(sigmoid, weight)
    if MASKED:
        seen = visible(i[None, :], j[:, None], sight)
        weight = tl.where(seen, weight, 0.0)
        slope = tl.where(seen, slope, 0.0)
    dv = product(weight.to(grad.dtype), grad, dv, NATIVE, PRECISION)
    dscore = product(value, tl.trans(grad), None, NATIVE, PRECISION) * slope
    return product(dscore.to(query.dtype), query, dk, NATIVE, PRECISION), dv


@triton.jit
def query_step(
    dq, queries, keys, values, col, alpha, scale, sight, biases, sums, MASKED: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PAD_D: tl.constexpr, PAD_E: tl.constexpr, COLS: tl.constexpr, NATIVE: tl.constexpr, PRECISION: tl.constexpr,
    DETERMINISTIC: tl.constexpr,
):  # fmt: skip
    """dq plus what COLS keys from `col` on give it, and what they give the tables."""
    query, grad, row, i, place_i, when_i, reference = queries
    k, k_token, key_times = keys
    v, v_token = values
    position_bias, time_bias, _, _ = biases
    position_grad, time_grad, width = sums
    length, _, _, _ = sight
    j = col + tl.arange(0, COLS)
    key = rows_of(k, col, k_token, length, COLS, D, PAD_D, MASKED)
    value = rows_of(v, col, v_token, length, COLS, E, PAD_E, MASKED)
    half = product(query, tl.trans(key), None, NATIVE, PRECISION) * (0.5 * alpha)
    when_j = None
    if time_bias is not None:
        time_j = moments(key_times, tl.minimum(j, length - 1), reference)
        when_j = (time_j[None, :], extremes(time_j))
    half, passed, low, high = add_biases(half, place_i[:, None], j[None, :], when_i, when_j, sight, biases, MASKED, NATIVE)
    sigmoid, weight = silu(half, NATIVE and key.dtype != tl.float32)
    slope = slope_of(sigmoid, weight)
    if MASKED:
        slope = tl.where(visible(i[:, None], j[None, :], sight), slope, 0.0)
    dscore = product(grad, tl.trans(value), None, NATIVE, PRECISION) * slope
    narrow = dscore.to(key.dtype)
    dq = product(narrow, key, dq, NATIVE, PRECISION)
    if position_bias is not None:
        add_by_distance(position_grad, narrow, row, col, sight, width, scale, DETERMINISTIC)
    if time_bias is not None:
        add_by_bucket(time_grad, dscore, passed, low, high, biases, scale, DETERMINISTIC)
    return dq


@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
    grad, q, k, v, dq, dk, dv, offsets, num_targets, position_bias, time_bias, position_grad, time_grad, key_times, query_times, firsts,
    grad_token, grad_head, q_token, q_head, k_token, k_head, v_token, v_head, position_stride, time_stride,
    tokens, blocks, pairs, group, alpha, scale, window, context, buckets, width, copies,
    H: tl.constexpr, D: tl.constexpr, E: tl.constexpr, PAD_D: tl.constexpr, PAD_E: tl.constexpr, NATIVE: tl.constexpr,
    PRECISION: tl.constexpr, DETERMINISTIC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK tokens and goes over the others STEP at a time.

    position_grad: [H, copies, width] and time_grad: [H, copies, buckets, BLOCK] are zeroed float32, to be summed over the copies and rows.
    DETERMINISTIC wants a copy for each block of a sequence.
    """
    owns_queries = tl.program_id(0) % 2 == 0
    block, pair = program(tl.program_id(0) // 2, blocks, pairs, group)
    sequence, head = pair // H, pair % H
    begin = tl.load(offsets + sequence)
    d = tl.arange(0, PAD_D)
    e = tl.arange(0, PAD_E)
    at_d = head * D + d[None, :]
    at_e = head * E + e[None, :]
    if pair >= pairs - H:
        # Behind the last sequence is padding.
        for start in range(begin + block * BLOCK, tokens, blocks * BLOCK):
            token = start + tl.arange(0, BLOCK).to(tl.int64)[:, None]
            zero_d = tl.zeros([BLOCK, PAD_D], dq.dtype.element_ty)
            if owns_queries:
                tl.store(dq + token * (H * D) + at_d, zero_d, mask=(token < tokens) & (d < D)[None, :])
            else:
                tl.store(dk + token * (H * D) + at_d, zero_d, mask=(token < tokens) & (d < D)[None, :])
                zero_e = tl.zeros([BLOCK, PAD_E], dv.dtype.element_ty)
                tl.store(dv + token * (H * E) + at_e, zero_e, mask=(token < tokens) & (e < E)[None, :])
        return
    length = (tl.load(offsets + sequence + 1) - begin).to(tl.int32)
    if block * BLOCK >= length:
        return
    sight = (length, None if num_targets is None else length - tl.load(num_targets + sequence).to(tl.int32), window, context)
    q += head * q_head + begin * q_token
    k += head * k_head + begin * k_token
    v += head * v_head + begin * v_token
    grad += head * grad_head + begin * grad_token
    if position_bias is not None:
        position_bias += head * position_stride
    if time_bias is not None:
        time_bias += head * time_stride
        key_times += begin
        query_times += begin
    biases = (position_bias, time_bias, firsts, buckets)

    if owns_queries:
        row = block * BLOCK
        i = row + tl.arange(0, BLOCK)
        query = rows_of(q, row, q_token, length, BLOCK, D, PAD_D, True)
        upstream = rows_of(grad, row, grad_token, length, BLOCK, E, PAD_E, True)
        copy = head * copies + (sequence * blocks + block) % copies
        if position_bias is not None:
            position_grad += copy.to(tl.int64) * width
        # Rows behind the sequence's end have no place in the table.
        place_i = tl.minimum(i, length - 1)
        queries = (query, upstream, row, i, place_i, None, None)
        if time_bias is not None:
            time_grad += copy.to(tl.int64) * (buckets * BLOCK)
            reference = tl.load(query_times + tl.minimum(row + BLOCK, length) - 1)
            time_i = moments(query_times, place_i, reference)
            queries = (query, upstream, row, i, place_i, (time_i[:, None], extremes(time_i)), reference)
        sums = (position_grad, time_grad, width)
        keys = (k, k_token, key_times)
        values = (v, v_token)
        first, a, b, c, last = keys_seen(row, sight, BLOCK, STEP)
        acc = tl.zeros([BLOCK, PAD_D], tl.float32)
        for col in range(a, b, STEP):
            acc = query_step(
                acc, queries, keys, values, col, alpha, scale, sight, biases, sums, False, D, E, PAD_D, PAD_E, STEP, NATIVE,
                PRECISION, DETERMINISTIC,
            )  # fmt: skip
        before = (a - first) // STEP
        middle = before + (c - b) // STEP
        for n in range(0, middle + (last - row + STEP - 1) // STEP):
            col = tl.where(n < before, first + n * STEP, tl.where(n < middle, b + (n - before) * STEP, row + (n - middle) * STEP))
            acc = query_step(
                acc, queries, keys, values, col, alpha, scale, sight, biases, sums, True, D, E, PAD_D, PAD_E, STEP, NATIVE,
                PRECISION, DETERMINISTIC,
            )  # fmt: skip
        at_q = dq + (begin + i)[:, None] * (H * D) + at_d
        tl.store(at_q, (acc * (alpha * scale)).to(dq.dtype.element_ty), mask=(i < length)[:, None] & (d < D)[None, :])
    else:
        # Counted from the sequence's end, so that the work grows with the block's number here too.
        start = ((length + BLOCK - 1) // BLOCK - 1 - block) * BLOCK
        j = start + tl.arange(0, BLOCK)
        key = rows_of(k, start, k_token, length, BLOCK, D, PAD_D, True)
        value = rows_of(v, start, v_token, length, BLOCK, E, PAD_E, True)
        owned = (key, value, j, None, None)
        if time_bias is not None:
            final = tl.minimum(start + BLOCK, length) - 1
            reference = tl.load(key_times + final)
            time_j = moments(key_times, tl.minimum(j, final), reference)
            owned = (key, value, j, (time_j[:, None], extremes(time_j)), reference)
        asking = (q, q_token, query_times)
        grads = (grad, grad_token)
        early, a, b, last = queries_seeing(start, sight, STEP, BLOCK)
        acc_k = tl.zeros([BLOCK, PAD_D], tl.float32)
        acc_v = tl.zeros([BLOCK, PAD_E], tl.float32)
        before = early // STEP
        middle = before + (a - start) // STEP
        for n in range(0, middle + (tl.maximum(last - b, 0) + STEP - 1) // STEP):
            row = tl.where(n < before, n * STEP, tl.where(n < middle, start + (n - before) * STEP, b + (n - middle) * STEP))
            acc_k, acc_v = key_step(
                acc_k, acc_v, owned, asking, grads, row, alpha, sight, biases, True, D, E, PAD_D, PAD_E, STEP, NATIVE, PRECISION
            )
        for row in range(a, b, STEP):
            acc_k, acc_v = key_step(
                acc_k, acc_v, owned, asking, grads, row, alpha, sight, biases, False, D, E, PAD_D, PAD_E, STEP, NATIVE, PRECISION
            )
        at_k = dk + (begin + j)[:, None] * (H * D) + at_d
        tl.store(at_k, (acc_k * (alpha * scale)).to(dk.dtype.element_ty), mask=(j < length)[:, None] & (d < D)[None, :])
        at_v = dv + (begin + j)[:, None] * (H * E) + at_e
        tl.store(at_v, (acc_v * scale).to(dv.dtype.element_ty), mask=(j < length)[:, None] & (e < E)[None, :])
