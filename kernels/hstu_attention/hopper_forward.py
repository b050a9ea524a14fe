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
    CELLS,
    MARGIN,
    add_position_bias,
    add_time_bias,
    buckets_between,
    put_tables,
    reserve_tables,
    scalar,
    write,
)
from kernels.hstu_attention.hopper_tile import blank, keep, narrow, tanh, whole_lines

ROWS = gl.constexpr(64)
KEYS = gl.constexpr(128)


@gluon.jit
def _load(descs, places, notes, work, biases, STAGES: gl.constexpr):
    q_desc, k_desc, v_desc = descs
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    note_m, note_row, note_length, note_head, note_key, ring, note_low, note_many = notes
    offsets, counter, total, blocks, heads, q_head, k_head, v_head = work
    positions, times = biases
    lane = gl.arange(0, KEYS, layout=gl.BlockedLayout([4], [32], [1], [0]))
    job = gl.program_id(0)
    taken = 0
    count = 0
    while job < total:
        m = blocks - 1 - job % blocks
        head = (job // blocks) % heads
        sequence = job // blocks // heads
        row = gl.load(offsets + sequence).to(gl.int32)
        length = gl.load(offsets + sequence + 1).to(gl.int32) - row
        if m * KEYS < length:
            slot = taken & 1
            mbarrier.wait(q_empty.index(slot), (taken // 2 + 1) & 1)
            write(note_m.index(slot), m)
            write(note_row.index(slot), row)
            write(note_length.index(slot), length)
            write(note_head.index(slot), head)
            mbarrier.expect(q_full.index(slot), 2 * q_desc.block_type.nbytes)
            for g in gl.static_range(2):
                tma.async_copy_global_to_shared(
                    q_desc, [row + m * KEYS + g * ROWS, head * q_head], q_full.index(slot), q.index(slot * 2 + g)
                )
            tiles = (gl.minimum((m + 1) * KEYS, length) + KEYS - 1) // KEYS
            if times is not None:
                key_seconds, query_seconds, cells, firsts, by_bucket, by_cell, buckets = times
                asking = gl.load(query_seconds + row + gl.minimum(m * KEYS + lane, length - 1))
                coming = gl.load(key_seconds + row + gl.minimum((tiles - 1) * KEYS + lane, length - 1))
                q_span = (gl.min(asking, 0), gl.max(asking, 0))
            for t in range(tiles):
                stage = (count + t) % STAGES
                free = ((count + t) // STAGES + 1) & 1
                key = row + (tiles - 1 - t) * KEYS
                if times is not None:
                    seconds = coming
                    coming = gl.load(key_seconds + row + gl.minimum(gl.maximum(tiles - 2 - t, 0) * KEYS + lane, length - 1))
                    low, many = buckets_between(q_span, (gl.min(seconds, 0), gl.max(seconds, 0)), cells)
                mbarrier.wait(k_empty.index(stage), free)
                if positions is not None:
                    write(note_key.index(stage), (tiles - 1 - t) * KEYS)
                    if times is not None:
                        ring.index(stage).store(seconds)
                        write(note_low.index(stage), low)
                        write(note_many.index(stage), many)
                    gl.thread_barrier()
                mbarrier.expect(k_full.index(stage), k_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(k_desc, [key, head * k_head], k_full.index(stage), k.index(stage))
                mbarrier.wait(v_empty.index(stage), free)
                mbarrier.expect(v_full.index(stage), v_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(v_desc, [key, head * v_head], v_full.index(stage), v.index(stage))
            count += tiles
            taken += 1
        job = gl.num_programs(0) + gl.atomic_add(counter, 1, sem="relaxed")
    slot = taken & 1
    mbarrier.wait(q_empty.index(slot), (taken // 2 + 1) & 1)
    write(note_m.index(slot), -1)
    mbarrier.arrive(q_full.index(slot), count=1)


@gluon.jit
def _weigh(s, half_alpha, first, stage, notes, owned, DIAGONAL: gl.constexpr, GROUP: gl.constexpr, layout: gl.constexpr):
    """silu of scores [queries, keys], in float32; first: the first query."""
    note_m, note_row, note_length, note_head, note_key, ring, note_low, note_many = notes
    positions, times = owned
    if positions is None:  # noqa: SIM108
        y = s * half_alpha
    else:
        # Read here, the place of the keys keeps the loads that follow from being made early, for which there are no registers.
        y = add_position_bias(s, half_alpha, positions, first - scalar(note_key.index(stage)), layout)
    if times is not None:
        time_i, firsts, by_bucket = times
        time_i = gl.convert_layout(time_i, gl.SliceLayout(1, layout), assert_trivial=True)
        time_j = ring.index(stage).load(gl.SliceLayout(0, layout))
        y = add_time_bias(
            y, gl.expand_dims(time_i, 1), gl.expand_dims(time_j, 0), scalar(note_low.index(stage)), scalar(note_many.index(stage)),
            firsts, by_bucket, 3 * CELLS * GROUP, DIAGONAL,
        )  # fmt: skip
    return gl.fma(y, tanh(y), y)


@gluon.jit
def _step(
    places, notes, mine, p, o, turns, t, before, half_alpha, first, owned, GROUP: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr
):
    """Scores of tile t while the tensor cores also apply weights p of the tile before."""
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16])
    stage = t % STAGES
    mbarrier.wait(k_full.index(stage), (t // STAGES) & 1)
    mbarrier.wait(v_full.index((t - 1) % STAGES), ((t - 1) // STAGES) & 1)
    if TURNS:
        mbarrier.wait(turn.index(GROUP), turns & 1)
    none = gl.zeros([ROWS, KEYS], gl.float32, scores)
    s = warpgroup_mma(mine, k.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
    o = warpgroup_mma(p, before, o, is_async=True)
    if TURNS:
        mbarrier.arrive(turn.index(1 - GROUP), count=1)
    s = warpgroup_mma_wait(1, deps=[s])
    if owned[0] is None:
        mbarrier.arrive(k_empty.index(stage), count=1)
    following = narrow(_weigh(s, half_alpha, first, stage, notes, owned, False, GROUP, scores), v.dtype)
    if owned[0] is not None:
        # The notes were in use till here.
        mbarrier.arrive(k_empty.index(stage), count=1)
    o = warpgroup_mma_wait(0, deps=[o])
    p = keep(p)
    mbarrier.arrive(v_empty.index((t - 1) % STAGES), count=1)
    return following, o


@gluon.jit
def _attend(places, notes, rest, biases, GROUP: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):
    q, k, v, q_full, q_empty, k_full, v_full, k_empty, v_empty, turn = places
    note_m, note_row, note_length, note_head, note_key, ring, note_low, note_many = notes
    out, half_alpha, scale, stride = rest
    positions, times = biases
    # The first tile holds the diagonal; the first of two groups needs only half of it. With times that would be too much code.
    near: gl.constexpr = KEYS // 2 if GROUP == 0 and times is None else KEYS
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, near, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, WIDTH, 16])
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sums, k_width=2)
    lines: gl.constexpr = whole_lines(WIDTH, 4)
    dtype: gl.constexpr = v.dtype
    taken = 0
    turns = 0
    # The place in the ring of key tiles where this block of queries starts.
    count = 0
    mbarrier.wait(q_full.index(0), 0)
    m = scalar(note_m.index(0))
    while m >= 0:
        slot = taken & 1
        row = scalar(note_row.index(slot))
        length = scalar(note_length.index(slot))
        head = scalar(note_head.index(slot))
        tiles = count + (gl.minimum((m + 1) * KEYS, length) + KEYS - 1) // KEYS
        first = m * KEYS + GROUP * ROWS
        owned = (None, None)
        if positions is not None:
            table, room = positions
            owned = (table + head.to(gl.int64) * room + MARGIN, None)
            if times is not None:
                key_seconds, query_seconds, cells, firsts, by_bucket, by_cell, buckets = times
                at = gl.minimum(first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scores)), length - 1)
                owned = (owned[0], (gl.load(query_seconds + row + at), firsts, by_bucket + head * buckets))
                put_tables(cells, by_cell + head * (2 * CELLS), 3 * CELLS * GROUP)
        # Tiles come from the diagonal backwards; a group of earlier rows has nothing to do in the first ones.
        skip = tiles - gl.minimum((first + ROWS - 1) // KEYS + 1, tiles - count)
        for t in range(count, skip):
            mbarrier.wait(k_full.index(t % STAGES), (t // STAGES) & 1)
            mbarrier.arrive(k_empty.index(t % STAGES), count=1)
            mbarrier.wait(v_full.index(t % STAGES), (t // STAGES) & 1)
            mbarrier.arrive(v_empty.index(t % STAGES), count=1)
        mine = q.index(slot * 2 + GROUP)
        mbarrier.wait(k_full.index(skip % STAGES), (skip // STAGES) & 1)
        o = gl.zeros([ROWS, WIDTH], gl.float32, sums)
        s = warpgroup_mma(mine, k.index(skip % STAGES).slice(0, near).permute((1, 0)), gl.zeros([ROWS, near], gl.float32, scores),
                          use_acc=False, is_async=True)  # fmt: skip
        s = warpgroup_mma_wait(0, deps=[s])
        h = _weigh(s, half_alpha, first, skip % STAGES, notes, owned, True, GROUP, scores)
        mbarrier.arrive(k_empty.index(skip % STAGES), count=1)
        query = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, scores))
        key = (tiles - 1 - skip) * KEYS + gl.arange(0, near, layout=gl.SliceLayout(0, scores))
        h = gl.where(gl.expand_dims(query, 1) >= gl.expand_dims(key, 0), h, 0.0)
        over = length - (tiles - 1 - skip) * KEYS
        if over < KEYS:
            mbarrier.wait(v_full.index(skip % STAGES), (skip // STAGES) & 1)
            blank(v.index(skip % STAGES), over, lines)
        edge = gl.convert_layout(narrow(h, dtype), weights, assert_trivial=True)
        start = skip + 1
        if near == KEYS:
            p = edge
        else:
            p = gl.zeros([ROWS, KEYS], dtype, weights)
            if start < tiles:
                following, o = _step(
                    places, notes, mine, edge, o, turns, start, v.index(skip % STAGES).slice(0, near), half_alpha, first, owned, GROUP,
                    STAGES, TURNS,
                )  # fmt: skip
                p = gl.convert_layout(following, weights, assert_trivial=True)
                start += 1
            else:
                mbarrier.wait(v_full.index(skip % STAGES), (skip // STAGES) & 1)
                o = warpgroup_mma(edge, v.index(skip % STAGES).slice(0, near), o, is_async=True)
                o = warpgroup_mma_wait(0, deps=[o])
        for t in range(start, tiles):
            following, o = _step(
                places,
                notes,
                mine,
                p,
                o,
                turns + t - skip - 1,
                t,
                v.index((t - 1) % STAGES),
                half_alpha,
                first,
                owned,
                GROUP,
                STAGES,
                TURNS,
            )
            p = gl.convert_layout(following, weights, assert_trivial=True)
        last = tiles - 1
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
        place = out + gl.expand_dims((row + at).to(gl.int64) * stride, 1) + gl.expand_dims(col, 0)
        gl.store(place, whole, mask=gl.expand_dims(at < length, 1))
        turns += last - skip
        count = tiles
        taken += 1
        mbarrier.wait(q_full.index(taken & 1), (taken // 2) & 1)
        m = scalar(note_m.index(taken & 1))


@gluon.jit(do_not_specialize=["room", "buckets", "tokens", "sequences", "blocks", "heads", "q_head", "k_head", "v_head"])
def forward_kernel(q_desc, k_desc, v_desc, out, offsets, counter, positions, key_seconds, query_seconds, cells, firsts, by_bucket, by_cell,
                   room, buckets, tokens, sequences, blocks, heads, q_head, k_head, v_head,
                   half_alpha, scale, WIDTH: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):  # fmt: skip
    """positions and what follows it: as `prepare_kernel` made them, None for no bias; time biases only beside position biases."""
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
    flat: gl.constexpr = gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])
    q = gl.allocate_shared_memory(dtype, [4, ROWS, WIDTH], q_desc.layout)
    k = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], k_desc.layout)
    v = gl.allocate_shared_memory(dtype, [STAGES, KEYS, WIDTH], v_desc.layout)
    note_m = gl.allocate_shared_memory(gl.int32, [2, 1], flat)
    note_row = gl.allocate_shared_memory(gl.int32, [2, 1], flat)
    note_length = gl.allocate_shared_memory(gl.int32, [2, 1], flat)
    note_head = gl.allocate_shared_memory(gl.int32, [2, 1], flat)
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(q_full.index(slot), count=1)
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
    note_key, ring, note_low, note_many, distances, times = None, None, None, None, None, None
    if positions is not None:
        note_key = gl.allocate_shared_memory(gl.int32, [STAGES, 1], flat)
        distances = (positions, room)
    if key_seconds is not None:
        reserve_tables()
        ring = gl.allocate_shared_memory(gl.int32, [STAGES, KEYS], flat)
        note_low = gl.allocate_shared_memory(gl.int32, [STAGES, 1], flat)
        note_many = gl.allocate_shared_memory(gl.int32, [STAGES, 1], flat)
        times = (key_seconds, query_seconds, cells, firsts, by_bucket, by_cell, buckets)
    notes = (note_m, note_row, note_length, note_head, note_key, ring, note_low, note_many)
    biases = (distances, times)
    work = (offsets, counter, blocks * heads * sequences, blocks, heads, q_head, k_head, v_head)
    rest = (out, half_alpha, scale, heads * WIDTH)
    gl.warp_specialize(
        [
            (_attend, (places, notes, rest, biases, 0, WIDTH, STAGES, TURNS)),
            (_attend, (places, notes, rest, biases, 1, WIDTH, STAGES, TURNS)),
            (_load, (descs, places, notes, work, biases, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
