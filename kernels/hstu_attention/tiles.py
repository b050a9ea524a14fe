# mypy: ignore-errors
"""What the attention kernels share: which tokens a block sees, and the scores and weights of a tile.

`sight` is (length, history, window, context) of a sequence: its tokens, those of them that are no targets, max_attn_len and
contextual_len. `biases` is (position_bias, time_bias, firsts, buckets) of a head: the tables, the first second of each time bucket and
behind them a number no time reaches, and how many buckets there are. None stands for what is not in use. Of a tile, i are the places of
its queries and j those of its keys, as vectors that broadcast to it, whichever of the two stand in rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def program(place, blocks, pairs, group):
    """The block and the (sequence, head) pair of a program: groups of pairs one behind the other, and in each the last blocks first.

    A causal block's work grows with its place, so the longest come first, and a group's keys and values stay in the L2 cache.
    """
    first = place // (group * blocks) * group
    size = tl.minimum(group, pairs - first)
    inside = place % (group * blocks)
    return blocks - 1 - inside // size, first + inside % size


@triton.jit
def place_of(token, sight):
    """Where a token stands for the position bias: all targets stand right behind the history."""
    _, history, _, _ = sight
    if history is not None:
        token = tl.minimum(token, history)
    return token


@triton.jit
def first_of(rank, sight):
    """The first token of a rank."""
    _, _, _, context = sight
    if context is not None:
        rank = tl.where(rank > 0, rank + context - 1, 0)
    return tl.maximum(rank, 0)


@triton.jit
def rank_of(token, sight):
    """Who sees whom is a comparison of ranks: 0 for the context, 1, 2, ... for the history, one more for all targets."""
    _, history, _, context = sight
    shift = 0
    if context is not None:
        shift = context - 1
        token = tl.maximum(token - shift, 0)
    if history is not None:
        token = tl.minimum(token, tl.maximum(history - shift, 0))
    return token


@triton.jit
def visible(i, j, sight):
    """Whether query i sees key j."""
    length, history, window, context = sight
    if history is None and window is None and context is None:
        seen = j <= i
    else:
        rank = rank_of(i, sight)
        apart = rank - rank_of(j, sight)
        seen = apart > 0
        if window is not None:
            seen = seen & (apart <= window)
        if context is not None:
            seen = seen | ((rank == 0) & (j < (length if history is None else history)))
        seen = seen | (i == j)
    return seen


@triton.jit
def keys_seen(row, sight, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The keys of ROWS queries from `row` on: all of them see all of [a, b), and they see some of [first, a), [b, c) and [row, last).

    All are multiples of COLS but the last. ROWS is a multiple of COLS.
    """
    length, history, window, context = sight
    last = tl.minimum(row + ROWS, length)
    first, a, b, c = 0, 0, row, row
    if history is not None:
        b = tl.minimum(row, history // COLS * COLS)
        c = tl.minimum(row, (history + COLS - 1) // COLS * COLS)
    if window is not None:
        oldest = first_of(rank_of(row, sight) - window, sight)
        newest = first_of(rank_of(last - 1, sight) - window, sight)
        first = tl.minimum(oldest // COLS * COLS, b)
        a = tl.minimum((newest + COLS - 1) // COLS * COLS, b)
    if context is not None:
        ahead = row < context
        first = tl.where(ahead, 0, first)
        a = tl.where(ahead, 0, a)
        b = tl.where(ahead, 0, b)
        c = tl.where(ahead, row, c)
        last = tl.where(ahead, tl.maximum(last, length if history is None else history), last)
    return first, a, b, c, last


@triton.jit
def queries_seeing(col, sight, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The queries of COLS keys from `col` on: [a, b) see all of them, and some of [0, early), [col, a) and [b, last) see some.

    All are multiples of ROWS but the last. COLS is a multiple of ROWS.
    """
    length, history, window, context = sight
    early, a, b, last = 0, col + COLS, length, length
    if window is not None:
        end = length if history is None else history
        top = rank_of(end, sight)
        oldest = rank_of(col, sight) + window
        newest = rank_of(tl.minimum(col + COLS, end) - 1, sight) + window
        b = tl.where(oldest >= top, length, first_of(oldest + 1, sight))
        last = tl.where(newest >= top, length, first_of(newest + 1, sight))
    if history is not None:
        # Nobody else sees a target.
        b = tl.where(col + COLS > history, a, b)
        last = tl.where(col >= history, tl.minimum(col + COLS, length), last)
    if context is not None:
        ahead = (context + ROWS - 1) // ROWS * ROWS
        early = tl.minimum(ahead, col)
        a = tl.maximum(a, ahead)
        last = tl.maximum(last, tl.minimum(a, length))
    a = tl.minimum(a, (length + ROWS - 1) // ROWS * ROWS)
    return early, a, tl.maximum(tl.minimum(b, length) // ROWS * ROWS, a), last


@triton.jit
def rows_of(matrix, first, stride, length, ROWS: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, CHECKED: tl.constexpr):
    """ROWS rows [ROWS, PAD] of a sequence's matrix; 0 beyond its width and, where CHECKED, beyond its length."""
    token = tl.arange(0, ROWS)
    column = tl.arange(0, PAD)
    at = matrix + tl.cast(first, tl.int64) * stride + (token[:, None] * stride + column[None, :])
    if CHECKED:
        return tl.load(at, mask=(first + token < length)[:, None] & (column < WIDTH)[None, :], other=0.0)
    if WIDTH < PAD:
        return tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def look_up(at, NATIVE: tl.constexpr):
    """Numbers of a table straight to registers: the compiler would copy those of a whole tile to shared memory first."""
    if NATIVE and at.dtype.element_ty == tl.float32:
        return tl.inline_asm_elementwise("ld.global.nc.f32 $0, [$1];", "=f,l", [at], dtype=tl.float32, is_pure=True, pack=1)
    if NATIVE and at.dtype.element_ty == tl.int32:
        return tl.inline_asm_elementwise("ld.global.nc.b32 $0, [$1];", "=r,l", [at], dtype=tl.int32, is_pure=True, pack=1)
    return tl.load(at)


@triton.jit
def product(a, b, acc, NATIVE: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b. As TF32, numbers are rounded first: the tensor cores would cut them off, and the sums would all be too small."""
    if NATIVE and PRECISION == "tf32" and a.dtype == tl.float32:
        a = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,f", [a], dtype=tl.int32, is_pure=True, pack=1)
        b = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,f", [b], dtype=tl.int32, is_pure=True, pack=1)
        a, b = a.to(tl.float32, bitcast=True), b.to(tl.float32, bitcast=True)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def silu(half, FAST: tl.constexpr):
    """sigmoid(x) and x * sigmoid(x) of half of x. FAST: by the GPU's tanh, which is one instruction and good to 2^-11."""
    if FAST:
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1)
        return t * 0.5 + 0.5, half * t + half
    s = tl.sigmoid(half * 2)
    return s, half * 2 * s


@triton.jit
def moments(times, token, reference):
    """Seconds of tokens since the reference as int32; 34 years count as all that is longer."""
    since = tl.load(times + token) - reference
    return tl.minimum(tl.maximum(since, -(2**30 - 1)), 2**30 - 1).to(tl.int32)


@triton.jit
def _wider(low, high, other_low, other_high):
    return tl.minimum(low, other_low), tl.maximum(high, other_high)


@triton.jit
def extremes(times):
    """The earliest and the latest, by one reduction."""
    return tl.reduce((times, times), 0, _wider)


@triton.jit
def bucket_of(passed, biases, NATIVE: tl.constexpr):
    """The bucket of whole seconds >= 0."""
    _, _, firsts, buckets = biases
    # A number's bits grow with its logarithm, from one power of 2 to the next along a line below it, at most a fifth of a bucket below. So
    # this is floor(ln(t) / 0.301) or one too small.
    bits = tl.maximum(passed, 1).to(tl.float32).to(tl.int32, bitcast=True) - 0x3F800000
    low = tl.minimum(tl.umulhi(bits.to(tl.uint32), 1179).to(tl.int32), buckets - 1)
    return low + (passed >= look_up(firsts + low + 1, NATIVE)).to(tl.int32)


@triton.jit
def bucket_range(q_span, k_span, biases, NATIVE: tl.constexpr):
    """The lowest and the highest bucket of a tile by the extremes of its queries' and keys' times."""
    early_q, late_q = q_span
    early_k, late_k = k_span
    least = tl.maximum(tl.maximum(early_q - late_k, early_k - late_q), 0)
    most = tl.maximum(tl.abs(late_q - early_k), tl.abs(late_k - early_q))
    return bucket_of(least, biases, NATIVE), bucket_of(most, biases, NATIVE)


@triton.jit
def add_position_bias(half, i, j, sight, biases, MASKED: tl.constexpr, NATIVE: tl.constexpr):
    """Half scores with half of position_bias[distance(i, j)]."""
    length, _, _, _ = sight
    position_bias, _, _, _ = biases
    if MASKED:
        distance = tl.maximum(place_of(tl.minimum(i, length - 1), sight) - place_of(j, sight), 0)
        return half + 0.5 * look_up(position_bias + distance, NATIVE).to(tl.float32)
    # All keys stand in the history and before the queries. As sums of 64 bits, most of the addresses are constants apart.
    return half + 0.5 * look_up(position_bias + place_of(i, sight).to(tl.int64) - j.to(tl.int64), NATIVE).to(tl.float32)


@triton.jit
def add_time_bias(half, passed, low, high, biases, NATIVE: tl.constexpr):
    """Half scores with half of time_bias[bucket(passed)] of a tile whose buckets lie between low and high."""
    _, time_bias, firsts, _ = biases
    if high - low <= 8:
        # One comparison a bucket that starts inside the tile, and no look-up. Times 0, so that the sum lies in registers as the tile does.
        bias = half * 0.0 + tl.load(time_bias + low).to(tl.float32)
        for b in range(low + 1, high + 1):
            bias = tl.where(passed >= tl.load(firsts + b), tl.load(time_bias + b).to(tl.float32), bias)
        half += 0.5 * bias
    else:
        half += 0.5 * look_up(time_bias + bucket_of(passed, biases, NATIVE), NATIVE).to(tl.float32)
    return half


@triton.jit
def add_biases(half, i, j, when_i, when_j, sight, biases, MASKED: tl.constexpr, NATIVE: tl.constexpr):
    """Half scores with half of both biases; then the seconds between query and key, and the tile's lowest and highest bucket.

    when_i and when_j: times that broadcast to the tile, as `moments`, and their extremes.
    """
    position_bias, time_bias, _, _ = biases
    passed, low, high = 0, 0, 0
    if position_bias is not None:
        half = add_position_bias(half, i, j, sight, biases, MASKED, NATIVE)
    if time_bias is not None:
        time_i, span_i = when_i
        time_j, span_j = when_j
        low, high = bucket_range(span_i, span_j, biases, NATIVE)
        passed = tl.abs(time_i - time_j)
        half = add_time_bias(half, passed, low, high, biases, NATIVE)
    return half, passed, low, high
