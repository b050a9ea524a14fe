# mypy: ignore-errors
# ruff: noqa: RUF059
"""HSTU attention's backward for Hopper GPUs.

A program per multiprocessor takes blocks of 128 keys of a sequence and head until none is left. It holds the sums of their gradients in
registers while it goes through the queries that see them, 64 at a time; scores and their gradients are computed transposed, keys by
queries, so that they are left factors of the keys' gradients where they are. The queries' gradient is a sum over programs: one warp has the
copy engine add each tile to float32 numbers in global memory, and whoever has the last part of 128 queries narrows them.
"""

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.hstu_attention.hopper_bias import BUCKETS, MARGIN, position_bias, reserve
from kernels.hstu_attention.hopper_jobs import answer, ask, begin, find, seek
from kernels.hstu_attention.hopper_notes import do, hear, notes_for, scalar, tell, write
from kernels.hstu_attention.hopper_tables import REGISTERS, RESERVED, RESERVED_TIMED, add_table_gradients, add_time_bias, put_biases
from kernels.hstu_attention.hopper_tile import blank, keep, narrow, tanh, whole_lines

QUERIES = gl.constexpr(64)
KEYS = gl.constexpr(128)
# Two jobs a multiprocessor. More would not stay in the L2 cache.
TOGETHER = gl.constexpr(256)
# Of a block of queries to whose sums somebody has the first part, while he leaves it.
BUSY = gl.constexpr(-(1 << 30))


@builtin
def async_add(desc, coordinates, source, _semantic=None):
    """Adds a tile of shared memory to global memory by the copy engine."""
    coordinates = _semantic._convert_to_ir_values(coordinates, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, desc.handle, coordinates, source.handle)


@gluon.jit
def _load(descs, places, notes, times, work, STAGES: gl.constexpr):
    """Takes blocks of keys until none is left, tells the others, and has their tiles come."""
    q_desc, k_desc, v_desc, g_desc = descs
    words_desc, words, words_full, words_empty, ds_full = times
    q, k, v, g, ds, dq, kv_full, kv_empty, full, dq_full, empty, dq_empty = places
    offsets, counter, sequences, blocks, heads, q_head, k_head, v_head, g_head = work
    taken = 0
    count = 0
    number, first, before, mine, up_to = begin(offsets, sequences, blocks, heads)
    while first < sequences:
        sequence, head, long = find(number - before, mine, up_to, heads, TOGETHER)
        sequence += first
        row = gl.load(offsets + sequence).to(gl.int32)
        length = gl.load(offsets + sequence + 1).to(gl.int32) - row
        n = gl.minimum((length + KEYS - 1) // KEYS, blocks) - long
        tell(notes, taken, n, sequence * heads + head, row, length)
        row += n * KEYS
        tiles = (length - n * KEYS + QUERIES - 1) // QUERIES
        for t in range(tiles):
            stage = (count + t) % STAGES
            mbarrier.wait(empty.index(stage), ((count + t) // STAGES + 1) & 1)
            mbarrier.expect(full.index(stage), q_desc.block_type.nbytes + g_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [row + t * QUERIES, head * q_head], full.index(stage), q.index(stage))
            tma.async_copy_global_to_shared(g_desc, [row + t * QUERIES, head * g_head], full.index(stage), g.index(stage))
            if words_desc is not None:
                # Those who make the tile of gradients have read its words before. See `pair_buckets` for the place.
                words_row = (sequence * blocks * (blocks + 1) + n * (2 * blocks - n + 1) + t) * KEYS
                mbarrier.wait(words_empty, (count + t + 1) & 1)
                mbarrier.wait(ds_full, (count + t + 1) & 1)
                mbarrier.expect(words_full, words_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(words_desc, [words_row, 0], words_full, words)
            if t == 0:
                mbarrier.wait(kv_empty, (taken + 1) & 1)
                mbarrier.expect(kv_full, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(k_desc, [row, head * k_head], kv_full, k)
                tma.async_copy_global_to_shared(v_desc, [row, head * v_head], kv_full, v)
        count += tiles
        taken += 1
        number = answer(ask(counter))
        first, before, mine, up_to = seek(number, first, before, mine, up_to, offsets, sequences, blocks, heads)
    tell(notes, taken, -1, 0, 0, 0)


@gluon.jit
def _bring_back(dq_desc, place, full, row, column, left, later_row, later_column, later):
    """Has 64 rows of sums come to a place in shared memory; returns what is to bring next (where, how many rows), and how many later."""
    mbarrier.expect(full, dq_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(dq_desc, [row, column], full, place)
    row, left = row + QUERIES, left - QUERIES
    if left <= 0:
        row, column, left = later_row, later_column, later
        later = 0
    return row, column, left, later


@gluon.jit
def _add(dq_desc, dq, dq_full, dq_empty, tile_full, notes, sums, whole, BUFFERS: gl.constexpr, SHARED: gl.constexpr):
    """Adds tiles of the queries' gradient to their sums in global memory, and tells of each block how much of it to narrow.

    Who comes to a block first leaves what it has, so that nobody needs to clear the sums; others wait until it has. Of a block, `added`
    is how many programs have added to it, or BUSY. SHARED: sums to narrow come back to the place of a tile, once that is on its way.
    """
    added, blocks, heads, stride = sums
    taken = 0
    count = 0
    gone = 0
    # Where the sums stand that shall come back, and how many rows: those that are next, and those behind them, which are no more than a
    # tile has. A block brings as many as its tiles have places for.
    back_row, back_column, back = 0, 0, 0
    later_row, later_column, later = 0, 0, 0
    n, pair, row, length = hear(notes, taken)
    while n >= 0:
        row += n * KEYS
        left = length - n * KEYS
        first = row + pair // heads * KEYS
        column = pair % heads * stride
        mine = added + pair.to(gl.int64) * blocks + n
        tiles = (left + QUERIES - 1) // QUERIES
        state = gl.atomic_add(mine, 0, sem="relaxed")
        for t in range(tiles):
            buffer = (count + t) % BUFFERS
            block = t // 2
            if (t & 1) == 0:
                if state == 0:
                    state = gl.atomic_cas(mine + block, 0, BUSY, sem="relaxed")
                while state < 0:
                    state = gl.atomic_add(mine + block, 0, sem="relaxed")
            mbarrier.wait(dq_full.index(buffer), ((count + t) // BUFFERS) & 1)
            do("fence.proxy.async.global")
            if state == 0:
                tma.async_copy_shared_to_global(dq_desc, [first + t * QUERIES, column], dq.index(buffer))
            else:
                async_add(dq_desc, [first + t * QUERIES, column], dq.index(buffer))
            tma.store_wait(0)
            if back > 0:
                # Whoever has read them gives the place free.
                back_row, back_column, back, later = _bring_back(
                    dq_desc, dq.index(0), tile_full, back_row, back_column, back, later_row, later_column, later
                )
            else:
                mbarrier.arrive(dq_empty.index(buffer), count=1)
            if ((t & 1) == 1) | (t + 1 == tiles):
                following = gl.atomic_add(mine + gl.minimum(block + 1, (tiles - 1) // 2), 0, sem="relaxed")
                # Not only read from shared memory, but arrived: whoever hears of it may add or read.
                do("cp.async.bulk.wait_group 0")
                gl.thread_barrier()
                before = gl.atomic_add(mine + block, gl.where(state == 0, 1 - BUSY, 1), sem="release")
                # Programs n + block and all before it add to this block: it is whole after as many others.
                last = gl.maximum(before, 0) == n + block
                tell(whole, gone + block, gl.where(last, left - block * KEYS, 0), row + block * KEYS, pair, 0)
                if SHARED & last:
                    rows = gl.minimum(left - block * KEYS, KEYS)
                    if back > 0:
                        later_row, later_column, later = first + block * KEYS, column, rows
                    else:
                        back_row, back_column, back = first + block * KEYS, column, rows
                state = following
        count += tiles
        gone += (tiles + 1) // 2
        taken += 1
        n, pair, row, length = hear(notes, taken)
    if SHARED:
        # The multiplying warps have left the last tile's place.
        mbarrier.wait(dq_full.index(0), count & 1)
        while back > 0:
            do("fence.proxy.async.global")
            back_row, back_column, back, later = _bring_back(
                dq_desc, dq.index(0), tile_full, back_row, back_column, back, later_row, later_column, later
            )
            mbarrier.wait(dq_empty.index(0), count & 1)
            count += 1
    tell(whole, gone, -1, 0, 0, 0)


@gluon.jit
def _narrow(dq_desc, tile, tile_full, dq_empty, whole, out, WIDTH: gl.constexpr, SHARED: gl.constexpr):
    """Leaves the queries' gradient of what notes tell; by two warps that have few registers, so that sums come through shared memory."""
    dq_out, heads, scale = out
    lines: gl.constexpr = whole_lines(WIDTH, 2)
    at = 0
    narrowed = 0
    left, row, pair, _ = hear(whole, at)
    while left >= 0:
        column = pair % heads * WIDTH
        if not SHARED:
            do("fence.proxy.async.global")
        for start in range(0, gl.minimum(left, KEYS), QUERIES):
            if not SHARED:
                fence_async_shared()
                gl.thread_barrier()
                mbarrier.expect(tile_full, dq_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(dq_desc, [pair // heads * KEYS + row + start, column], tile_full, tile)
            mbarrier.wait(tile_full, narrowed & 1)
            for part in gl.static_range(QUERIES // 8):
                line = start + part * 8 + gl.arange(0, 8, layout=gl.SliceLayout(1, lines))
                col = column + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
                to = gl.expand_dims((row + line).to(gl.int64) * (heads * WIDTH), 1) + gl.expand_dims(col, 0)
                x = tile.slice(part * 8, 8).load(lines) * scale
                gl.store(dq_out + to, narrow(x, dq_out.dtype.element_ty), mask=gl.expand_dims(line < left, 1))
            if SHARED:
                fence_async_shared()
                mbarrier.arrive(dq_empty.index(0), count=1)
            narrowed += 1
        at += 1
        left, row, pair, _ = hear(whole, at)


@gluon.jit
def _score(k, q, g, full, at, left, lines: gl.constexpr, scores: gl.constexpr, STAGES: gl.constexpr):
    """Starts the scores of the block of keys with the tile `at` of queries, of which `left` count, once it and its gradients have come."""
    stage = at % STAGES
    mbarrier.wait(full.index(stage), (at // STAGES) & 1)
    if left < QUERIES:
        blank(q.index(stage), left, lines)
        blank(g.index(stage), left, lines)
    none = gl.zeros([KEYS, QUERIES], gl.float32, scores)
    return warpgroup_mma(k, q.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)


@gluon.jit
def _attend(
    places, notes, rest, biases, WIDTH: gl.constexpr, STAGES: gl.constexpr, BUFFERS: gl.constexpr, SHARED: gl.constexpr
):  # fmt: skip
    """The gradients of a block of keys and of its values, and the tiles of the queries' gradient."""
    positions, nothing, room, by_bucket, words, ds_full, ds_empty, words_full = biases
    q, k, v, g, ds_shared, dq_shared, kv_full, kv_empty, full, dq_full, empty, dq_empty = places
    dk_out, dv_out, heads, half_alpha, k_scale, v_scale = rest
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, QUERIES, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, WIDTH, 16])
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sums, k_width=2)
    # The gradient of 64 queries has no more rows than four warps take: the others have the other half of its columns.
    parts: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, WIDTH // 2, 16])
    dtype: gl.constexpr = v.dtype
    lines: gl.constexpr = whole_lines(WIDTH, 8)
    none = gl.zeros([KEYS, QUERIES], gl.float32, scores)
    # Beside biases and wide sums there are registers for half of the slopes only, and for fewer products at a time.
    TIGHT: gl.constexpr = positions is not None and WIDTH == 128
    taken = 0
    count = 0
    n, pair, row, length = hear(notes, taken)
    while n >= 0:
        left = length - n * KEYS
        tiles = (left + QUERIES - 1) // QUERIES
        by_distance = None
        if positions is not None:
            by_distance = positions + (pair % heads).to(gl.int64) * room + MARGIN
        dk = gl.zeros([KEYS, WIDTH], gl.float32, sums)
        dv = gl.zeros([KEYS, WIDTH], gl.float32, sums)
        if by_bucket is not None:
            put_biases(by_bucket + pair % heads * BUCKETS)
        mbarrier.wait(kv_full, taken & 1)
        if left < KEYS:
            blank(k, left, lines)
            blank(v, left, lines)
        for t in range(tiles):
            stage = (count + t) % STAGES
            s = _score(k, q, g, full, count + t, left - t * QUERIES, lines, scores, STAGES)
            if not TIGHT:
                dp = warpgroup_mma(v, g.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
            s = warpgroup_mma_wait(0 if TIGHT else 1, deps=[s])
            if positions is None:
                y = s * half_alpha
            else:
                # A number of shared memory keeps the loads that follow from being made early, for which there are no registers.
                y = gl.fma(s, half_alpha, position_bias(by_distance, t * QUERIES + scalar(nothing), KEYS, QUERIES, scores, True))
            if by_bucket is not None:
                mbarrier.wait(words_full, (count + t) & 1)
                y = add_time_bias(y, words, scores)
            if t * QUERIES < KEYS:
                key = gl.expand_dims(gl.arange(0, KEYS, layout=gl.SliceLayout(1, scores)), 1)
                query = gl.expand_dims(t * QUERIES + gl.arange(0, QUERIES, layout=gl.SliceLayout(0, scores)), 0)
                # Half the score of a pair that counts for nothing: silu and its derivative are exactly 0 there.
                y = gl.where(query >= key, y, -30.0)
            slope = tanh(y)
            h = gl.fma(y, slope, y)
            p = gl.convert_layout(narrow(h, dtype), weights, assert_trivial=True)
            # Twice silu's derivative is 1 + tanh + silu * (1 - tanh); this is all but the 1.
            slope = gl.fma(-h, slope, h) + slope
            if not TIGHT:
                dv = warpgroup_mma(p, g.index(stage), dv, is_async=True)
                dp = warpgroup_mma_wait(1, deps=[dp])
            else:
                slope = narrow(slope, gl.float16)
                dp = warpgroup_mma(v, g.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
                dv = warpgroup_mma(p, g.index(stage), dv, is_async=True)
                dp, dv = warpgroup_mma_wait(0, deps=[dp, dv])
                p = keep(p)
                slope = keep(slope).to(gl.float32)
            ds = narrow(gl.fma(dp, slope, dp), dtype)
            if positions is not None:
                mbarrier.wait(ds_empty, (count + t) & 1)
            ds_shared.store(ds)
            fence_async_shared()
            ds = gl.convert_layout(ds, weights, assert_trivial=True)
            dq = warpgroup_mma(ds_shared.permute((1, 0)), k, gl.zeros([QUERIES, WIDTH], gl.float32, parts), use_acc=False, is_async=True)
            dk = warpgroup_mma(ds, q.index(stage), dk, is_async=True)
            if positions is not None:
                mbarrier.arrive(ds_full, count=1)
            dq, dv = warpgroup_mma_wait(1, deps=[dq, dv])
            p = keep(p)
            buffer = (count + t) % BUFFERS
            mbarrier.wait(dq_empty.index(buffer), ((count + t) // BUFFERS + 1) & 1)
            dq_shared.index(buffer).store(dq)
            fence_async_shared()
            mbarrier.arrive(dq_full.index(buffer), count=1)
            dk = warpgroup_mma_wait(0, deps=[dk])
            ds = keep(ds)
            mbarrier.arrive(empty.index(stage), count=1)
        mbarrier.arrive(kv_empty, count=1)
        key = gl.arange(0, KEYS, layout=gl.SliceLayout(1, lines))
        col = pair % heads * WIDTH + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
        place = gl.expand_dims((row + n * KEYS + key).to(gl.int64) * (heads * WIDTH), 1) + gl.expand_dims(col, 0)
        inside = gl.expand_dims(key < left, 1)
        # Places of the queries' gradient serve to turn the sums into whole lines.
        buffer = (count + tiles) % BUFFERS
        mbarrier.wait(dq_empty.index(buffer), ((count + tiles) // BUFFERS + 1) & 1)
        staged = dq_shared.index(buffer)._reinterpret(dtype, [KEYS, WIDTH], k.layout)
        staged.store(narrow(dk * k_scale, dtype))
        gl.store(dk_out + place, staged.load(lines), mask=inside)
        buffer = (count + tiles + 1) % BUFFERS
        mbarrier.wait(dq_empty.index(buffer), ((count + tiles + BUFFERS - 1) // BUFFERS + 1) & 1)
        staged = dq_shared.index(buffer)._reinterpret(dtype, [KEYS, WIDTH], k.layout)
        staged.store(narrow(dv * v_scale, dtype))
        gl.store(dv_out + place, staged.load(lines), mask=inside)
        count += tiles
        taken += 1
        n, pair, row, length = hear(notes, taken)
    if SHARED:
        mbarrier.arrive(dq_full.index(0), count=1)


@gluon.jit(do_not_specialize=["tokens", "sequences", "blocks", "heads", "q_head", "k_head", "v_head", "g_head", "room"])
def backward_kernel(q_desc, k_desc, v_desc, g_desc, dq_desc, added, dq_out, dk_out, dv_out, offsets,
                    positions, by_bucket, words_desc, position_grad, time_grad, room,
                    tokens, sequences, blocks, heads,
                    q_head, k_head, v_head, g_head, half_alpha, k_scale, v_scale,
                    WIDTH: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """dq_desc: room for sums of the queries' gradient, 128 rows more for each sequence; added: zeros, the number of the next job, and
    how many programs have added to each block of queries, by sequence and head."""
    if positions is not None:
        reserve(RESERVED if words_desc is None else RESERVED_TIMED, REGISTERS)
    # Where there is shared memory for it, a tile of the queries' gradient may wait.
    BUFFERS: gl.constexpr = 128 // WIDTH
    # Padding behind the last sequence: zeros.
    lines: gl.constexpr = whole_lines(WIDTH, 8)
    col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
    zero = gl.zeros([64, WIDTH], dk_out.dtype.element_ty, lines)
    used = gl.load(offsets + sequences).to(gl.int32)
    for at in range(used * heads + gl.program_id(0) * 64, tokens * heads, gl.num_programs(0) * 64):
        line = at + gl.arange(0, 64, layout=gl.SliceLayout(1, lines))
        place = gl.expand_dims(line.to(gl.int64) * WIDTH, 1) + gl.expand_dims(col, 0)
        behind = gl.expand_dims(line < tokens * heads, 1)
        gl.store(dq_out + place, zero, mask=behind)
        gl.store(dk_out + place, zero, mask=behind)
        gl.store(dv_out + place, zero, mask=behind)
    dtype: gl.constexpr = q_desc.dtype
    q = gl.allocate_shared_memory(dtype, [STAGES, QUERIES, WIDTH], q_desc.layout)
    k = gl.allocate_shared_memory(dtype, [KEYS, WIDTH], k_desc.layout)
    v = gl.allocate_shared_memory(dtype, [KEYS, WIDTH], v_desc.layout)
    g = gl.allocate_shared_memory(dtype, [STAGES, QUERIES, WIDTH], g_desc.layout)
    ds = gl.allocate_shared_memory(dtype, [KEYS, QUERIES], gl.NVMMASharedLayout.get_default_for([KEYS, QUERIES], dtype))
    dq = gl.allocate_shared_memory(gl.float32, [BUFFERS, QUERIES, WIDTH], dq_desc.layout)
    # What a job is, and which blocks of queries are whole.
    notes = notes_for(2 if positions is None else 3)
    whole = notes_for(1)
    kv_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    kv_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    dq_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    dq_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], mbarrier.MBarrierLayout())
    mbarrier.init(kv_full, count=1)
    mbarrier.init(kv_empty, count=1)
    for buffer in gl.static_range(BUFFERS):
        mbarrier.init(dq_full.index(buffer), count=1)
        mbarrier.init(dq_empty.index(buffer), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    fence_async_shared()
    descs = (q_desc, k_desc, v_desc, g_desc)
    places = (q, k, v, g, ds, dq, kv_full, kv_empty, full, dq_full, empty, dq_empty)
    work = (offsets, added, sequences, blocks, heads, q_head, k_head, v_head, g_head)
    rest = (dk_out, dv_out, heads, half_alpha, k_scale, v_scale)
    sums = (added + 1, blocks, heads, WIDTH)
    out = (dq_out, heads, k_scale)
    # Sums to narrow have a place of their own where there is one.
    SHARED: gl.constexpr = words_desc is not None and WIDTH == 128
    tile_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(tile_full, count=1)
    fence_async_shared()
    if SHARED:  # noqa: SIM108
        tile = dq.index(0)
    else:
        tile = gl.allocate_shared_memory(gl.float32, [QUERIES, WIDTH], dq_desc.layout)
    if positions is None:
        biases = (None, None, 0, None, None, None, None, None)
        gl.warp_specialize(
            [
                (_attend, (places, notes, rest, biases, WIDTH, STAGES, BUFFERS, SHARED)),
                (_load, (descs, places, notes, (None, None, None, None, None), work, STAGES)),
                (_add, (dq_desc, dq, dq_full, dq_empty, tile_full, notes, sums, whole, BUFFERS, SHARED)),
                (_narrow, (dq_desc, tile, tile_full, dq_empty, whole, out, WIDTH, SHARED)),
            ],
            [1, 1, 2],
            [24, 24, 24],
        )
    else:
        ds_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        ds_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(ds_full, count=1)
        mbarrier.init(ds_empty, count=1)
        words, words_full, words_empty = None, None, None
        if words_desc is not None:
            words = gl.allocate_shared_memory(gl.int32, [KEYS, 16], words_desc.layout)
            words_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            words_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            mbarrier.init(words_full, count=1)
            mbarrier.init(words_empty, count=1)
        nothing = gl.allocate_shared_memory(gl.int32, [1], gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0]))
        write(nothing, 0)
        fence_async_shared()
        biases = (positions, nothing, room, by_bucket, words, ds_full, ds_empty, words_full)
        tables = (position_grad, time_grad, room, v_scale / 2)
        bars = (ds_full, ds_empty, words_full, words_empty)
        times = (words_desc, words, words_full, words_empty, ds_full)
        gl.warp_specialize(
            [
                (_attend, (places, notes, rest, biases, WIDTH, STAGES, BUFFERS, SHARED)),
                (_load, (descs, places, notes, times, work, STAGES)),
                (_add, (dq_desc, dq, dq_full, dq_empty, tile_full, notes, sums, whole, BUFFERS, SHARED)),
                (_narrow, (dq_desc, tile, tile_full, dq_empty, whole, out, WIDTH, SHARED)),
                (add_table_gradients, (ds, tables, words, bars, notes, heads)),
            ],
            [1, 1, 2, 4],
            [24, 24, 24, 72],
        )
