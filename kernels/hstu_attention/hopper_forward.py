# mypy: ignore-errors
# ruff: noqa: RUF059
"""HSTU attention's forward for Hopper GPUs.

A program per multiprocessor takes blocks of 128 queries until none is left. One warp loads tiles by the copy engine into rings of shared
memory; two groups of four warps have 64 queries each. While a group computes the weights of a tile, the tensor cores apply those of the
tile before. No weight depends on another, so unlike under a softmax nothing is ever rescaled.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.hstu_attention.hopper_bias import (
    BUCKETS,
    MARGIN,
    TABLE,
    both_biases,
    end_table,
    load_words,
    position_bias,
    reserve,
    spread,
    start_table,
)
from kernels.hstu_attention.hopper_jobs import answer, ask, begin, find, seek
from kernels.hstu_attention.hopper_notes import hear, notes_for, tell
from kernels.hstu_attention.hopper_tile import blank, keep, narrow, tanh, whole_lines

ROWS = gl.constexpr(64)
KEYS = gl.constexpr(128)
# One job a multiprocessor: more ask for so much at once that memory is the bound, and then for little.
TOGETHER = gl.constexpr(128)


@gluon.jit
def _load_tile(descs, places, at, row, k_column, v_column, STAGES: gl.constexpr):
    """Has 128 keys and their values come to places `at` of the rings."""
    q_desc, k_desc, v_desc = descs
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    stage = at % STAGES
    free = (at // STAGES + 1) & 1
    mbarrier.wait(k_empty.index(stage), free)
    mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, [row, k_column], k_full.index(stage), k.index(stage))
    mbarrier.wait(v_empty.index(stage), free)
    mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(v_desc, [row, v_column], v_full.index(stage), v.index(stage))


@gluon.jit
def _load(descs, places, notes, work, by_pair, STAGES: gl.constexpr):
    """Takes blocks of queries until none is left, tells the others, and has their tiles come."""
    q_desc, k_desc, v_desc = descs
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    offsets, counter, sequences, blocks, heads, q_head, k_head, v_head = work
    taken = 0
    count = 0
    number, first, before, mine, up_to = begin(offsets, sequences, blocks, heads)
    while first < sequences:
        sequence, head, m = find(number - before, mine, up_to, heads, TOGETHER)
        sequence += first
        m -= 1
        row = gl.load(offsets + sequence).to(gl.int32)
        length = gl.load(offsets + sequence + 1).to(gl.int32) - row
        tell(notes, taken, m, sequence * heads + head, row, length)
        slot = taken & 1
        mbarrier.wait(q_empty.index(slot), (taken // 2 + 1) & 1)
        if by_pair is not None:
            start_table(slot * TABLE, by_pair + head * (BUCKETS * BUCKETS))
        mbarrier.expect(q_full.index(slot), 2 * q_desc.block_type.nbytes)
        for g in gl.static_range(2):
            tma.async_copy_global_to_shared(q_desc, [row + m * KEYS + g * ROWS, head * q_head], q_full.index(slot), q.index(slot * 2 + g))
        for t in range(m):
            _load_tile(descs, places, count + t, row + (m - t) * KEYS, head * k_head, head * v_head, STAGES)
            if by_pair is not None and t == 0:
                end_table()
                mbarrier.arrive(q_full.index(slot), count=1)
        # The next job's number comes while the last tiles wait for room.
        asked = ask(counter)
        _load_tile(descs, places, count + m, row, head * k_head, head * v_head, STAGES)
        if by_pair is not None and m == 0:
            end_table()
            mbarrier.arrive(q_full.index(slot), count=1)
        count += m + 1
        taken += 1
        number = answer(asked)
        first, before, mine, up_to = seek(number, first, before, mine, up_to, offsets, sequences, blocks, heads)
    tell(notes, taken, -1, 0, 0, 0)


@gluon.jit
def _weigh(s, half_alpha, bias, layout: gl.constexpr):
    """silu of scores [queries, keys], in float32; bias: half of it, or None, or pairs."""
    if bias is None:
        y = s * half_alpha
    elif bias.dtype == gl.int32:
        y = gl.fma(s, half_alpha, spread(bias, s.shape[1], layout))
    else:
        y = gl.fma(s, half_alpha, bias)
    return gl.fma(y, tanh(y), y)


@gluon.jit
def _step(
    places, mine, p, o, turns, t, before, half_alpha, first, key, tables, words,
    GROUP: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr,
):  # fmt: skip
    """Scores of tile t while the tensor cores also apply weights p of the tile before.

    first, key: the first query and the tile's first key; words: of the tile's buckets. Returns the weights, o, and the words of the
    tile that follows.
    """
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    positions, rows, place = tables
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    stage = t % STAGES
    mbarrier.wait(k_full.index(stage), (t // STAGES) & 1)
    mbarrier.wait(v_full.index((t - 1) % STAGES), ((t - 1) // STAGES) & 1)
    if TURNS:
        mbarrier.wait(turn.index(GROUP), turns & 1)
    bias = None
    if rows is not None:
        # Not behind the products: a warp that hands them over waits until all but the last are done.
        bias = both_biases(words, place, positions, first - key)
        words = load_words(rows + gl.maximum(key - KEYS, 0) * 32)
    none = gl.zeros([ROWS, KEYS], gl.float32, scores)
    s = warpgroup_mma(mine, k.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
    o = warpgroup_mma(p, before, o, is_async=True)
    if TURNS:
        mbarrier.arrive(turn.index(1 - GROUP), count=1)
    if rows is None and positions is not None:
        bias = position_bias(positions, first - key, ROWS, KEYS, scores)
    s = warpgroup_mma_wait(1, deps=[s])
    mbarrier.arrive(k_empty.index(stage), count=1)
    following = narrow(_weigh(s, half_alpha, bias, scores), v.dtype)
    if rows is not None:
        # Long since there. But the compiler moves no computation past a wait, and these weights shall not wait for the product below.
        mbarrier.wait(v_full.index((t - 1) % STAGES), ((t - 1) // STAGES) & 1)
    o = warpgroup_mma_wait(0, deps=[o])
    p = keep(p)
    mbarrier.arrive(v_empty.index((t - 1) % STAGES), count=1)
    return following, o, words


@gluon.jit
def _attend(places, notes, rest, biases, GROUP: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    out, half_alpha, scale, heads = rest
    positions, room, all_words, blocks = biases
    # The first tile holds the diagonal; the first of two groups needs only half of it.
    near: gl.constexpr = KEYS // 2 if GROUP == 0 else KEYS
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, near, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16])
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sums, k_width=2)
    lines: gl.constexpr = whole_lines(WIDTH, 4)
    dtype: gl.constexpr = v.dtype
    taken = 0
    turns = 0
    # The place in the ring of key tiles where this block of queries starts.
    count = 0
    m, pair, row, length = hear(notes, taken)
    while m >= 0:
        slot = taken & 1
        head = pair % heads
        mbarrier.wait(q_full.index(slot), (taken // 2) & 1)
        # Tiles come from the diagonal backwards.
        tiles = count + m + 1
        stage = count % STAGES
        first = m * KEYS + GROUP * ROWS
        tables = (None, None, 0)
        words = 0
        last = tiles - 1
        bias = None
        if positions is not None:
            by_distance = positions + head.to(gl.int64) * room + MARGIN
            if all_words is None:
                tables = (by_distance, None, 0)
                bias = position_bias(by_distance, GROUP * ROWS, ROWS, near, scores)
            else:
                tile = pair // heads * (blocks * (blocks + 1) // 2) + m * (m + 1) // 2
                rows = all_words + tile.to(gl.int64) * (KEYS * 32) + GROUP * (ROWS * 32)
                tables = (by_distance, rows, slot * TABLE)
                bias = both_biases(load_words(rows + m * (KEYS * 32)), slot * TABLE, by_distance, GROUP * ROWS)
                words = load_words(rows + gl.maximum(m - 1, 0) * (KEYS * 32))
        mine = q.index(slot * 2 + GROUP)
        mbarrier.wait(k_full.index(stage), (count // STAGES) & 1)
        o = gl.zeros([ROWS, WIDTH], gl.float32, sums)
        s = warpgroup_mma(mine, k.index(stage).slice(0, near).permute((1, 0)), gl.zeros([ROWS, near], gl.float32, scores),
                          use_acc=False, is_async=True)  # fmt: skip
        s = warpgroup_mma_wait(0, deps=[s])
        h = _weigh(s, half_alpha, bias, scores)
        mbarrier.arrive(k_empty.index(stage), count=1)
        query = GROUP * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scores))
        key = gl.arange(0, near, layout=gl.SliceLayout(0, scores))
        h = gl.where(gl.expand_dims(query, 1) >= gl.expand_dims(key, 0), h, 0.0)
        over = length - m * KEYS
        if over < KEYS:
            mbarrier.wait(v_full.index(stage), (count // STAGES) & 1)
            blank(v.index(stage), over, lines)
        edge = gl.convert_layout(narrow(h, dtype), weights, assert_trivial=True)
        start = count + 1
        if near == KEYS:
            p = edge
        else:
            p = gl.zeros([ROWS, KEYS], dtype, weights)
            if start < tiles:
                following, o, words = _step(
                    places, mine, edge, o, turns, start, v.index(stage).slice(0, near), half_alpha, first,
                    (last - start) * KEYS, tables, words, GROUP, STAGES, TURNS,
                )  # fmt: skip
                p = gl.convert_layout(following, weights, assert_trivial=True)
                start += 1
            else:
                mbarrier.wait(v_full.index(stage), (count // STAGES) & 1)
                o = warpgroup_mma(edge, v.index(stage).slice(0, near), o, is_async=True)
                o = warpgroup_mma_wait(0, deps=[o])
        for t in range(start, tiles):
            following, o, words = _step(
                places, mine, p, o, turns + t - count - 1, t, v.index((t - 1) % STAGES), half_alpha, first,
                (last - t) * KEYS, tables, words, GROUP, STAGES, TURNS,
            )  # fmt: skip
            p = gl.convert_layout(following, weights, assert_trivial=True)
        mbarrier.wait(v_full.index(last % STAGES), (last // STAGES) & 1)
        o = warpgroup_mma(p, v.index(last % STAGES), o, is_async=True)
        o = warpgroup_mma_wait(0, deps=[o])
        p = keep(p)
        mbarrier.arrive(v_empty.index(last % STAGES), count=1)
        # The group's query rows are no longer needed: their place serves to turn the result into whole lines.
        mine.store(narrow(o * scale, dtype))
        whole = mine.load(lines)
        fence_async_shared()
        mbarrier.arrive(q_empty.index(slot), count=1)
        at = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, lines))
        col = head * WIDTH + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
        place = out + gl.expand_dims((row + at).to(gl.int64) * (heads * WIDTH), 1) + gl.expand_dims(col, 0)
        gl.store(place, whole, mask=gl.expand_dims(at < length, 1))
        turns += last - count
        count = tiles
        taken += 1
        m, pair, row, length = hear(notes, taken)


@gluon.jit(do_not_specialize=["room", "tokens", "sequences", "blocks", "heads", "q_head", "k_head", "v_head"])
def forward_kernel(q_desc, k_desc, v_desc, out, offsets, counter, positions, by_pair, words, room, tokens, sequences, blocks, heads,
                   q_head, k_head, v_head, half_alpha, scale, WIDTH: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):  # fmt: skip
    """positions and by_pair: as `prepare_kernel` made them; words: buckets by query. None for no bias; time only beside position."""
    # Padding behind the last sequence: zeros.
    lines: gl.constexpr = whole_lines(WIDTH, 4)
    col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
    zero = gl.zeros([ROWS, WIDTH], out.dtype.element_ty, lines)
    end = gl.load(offsets + sequences).to(gl.int32)
    for at in range(end * heads + gl.program_id(0) * ROWS, tokens * heads, gl.num_programs(0) * ROWS):
        line = at + gl.arange(0, ROWS, layout=gl.SliceLayout(1, lines))
        place = out + gl.expand_dims(line.to(gl.int64) * WIDTH, 1) + gl.expand_dims(col, 0)
        gl.store(place, zero, mask=gl.expand_dims(line < tokens * heads, 1))
    dtype: gl.constexpr = q_desc.dtype
    q = gl.allocate_shared_memory(dtype, [4, ROWS, WIDTH], q_desc.layout)
    k = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], k_desc.layout)
    v = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], v_desc.layout)
    notes = notes_for(2)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(q_full.index(slot), count=1 if by_pair is None else 2)
        mbarrier.init(q_empty.index(slot), count=2)
        mbarrier.init(turn.index(slot), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)
    fence_async_shared()
    mbarrier.arrive(turn.index(0), count=1)
    descs = (q_desc, k_desc, v_desc)
    places = (q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn)
    if by_pair is not None:
        # The tables of two heads.
        reserve(2 * TABLE)
    biases = (positions, room, words, blocks)
    work = (offsets, counter, sequences, blocks, heads, q_head, k_head, v_head)
    rest = (out, half_alpha, scale, heads)
    gl.warp_specialize(
        [
            (_attend, (places, notes, rest, biases, 0, WIDTH, STAGES, TURNS)),
            (_attend, (places, notes, rest, biases, 1, WIDTH, STAGES, TURNS)),
            (_load, (descs, places, notes, work, by_pair, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
