# mypy: ignore-errors
# ruff: noqa: RUF059
"""HSTU attention's backward with biases for Hopper GPUs.

A program owns 128 keys of a sequence and head, and holds the sums of their gradients in registers while it goes through the queries that
see them, 64 at a time. Scores and their gradients are computed transposed, keys by queries, so that they are left factors of the keys'
gradients where they are. The queries' gradient is a sum over programs: one warp has the copy engine add each tile to float32 numbers in
global memory, and the last program of a sequence and head narrows them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from kernels.hstu_attention.hopper_backward import KEYS, QUERIES, async_add, score, weigh
from kernels.hstu_attention.hopper_bias import BUCKETS, MARGIN, position_bias, reserve
from kernels.hstu_attention.hopper_notes import scalar, write
from kernels.hstu_attention.hopper_tables import REGISTERS, RESERVED, add_table_gradients, add_time_bias, put_biases
from kernels.hstu_attention.hopper_tile import blank, keep, narrow, whole_lines


@gluon.jit
def _load(descs, places, where, times, STAGES: gl.constexpr):
    q_desc, k_desc, v_desc, g_desc, dq_desc = descs
    words_desc, words, words_row, words_full, words_empty, ds_full = times
    q, k, v, g, ds, dq, kv_full, full, dq_full, empty, dq_empty = places
    first, tiles, q_col, k_col, v_col, g_col = where
    mbarrier.expect(kv_full, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, [first, k_col], kv_full, k)
    tma.async_copy_global_to_shared(v_desc, [first, v_col], kv_full, v)
    for t in range(tiles):
        stage = t % STAGES
        free = (t // STAGES + 1) & 1
        mbarrier.wait(empty.index(stage), free)
        mbarrier.expect(full.index(stage), q_desc.block_type.nbytes + g_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [first + t * QUERIES, q_col], full.index(stage), q.index(stage))
        tma.async_copy_global_to_shared(g_desc, [first + t * QUERIES, g_col], full.index(stage), g.index(stage))
        if words_desc is not None:
            # Those who make the tile of gradients have read its words before.
            mbarrier.wait(words_empty, (t + 1) & 1)
            mbarrier.wait(ds_full, (t + 1) & 1)
            mbarrier.expect(words_full, words_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(words_desc, [words_row + t * KEYS, 0], words_full, words)


@gluon.jit
def _add(dq_desc, dq, dq_full, dq_empty, first, tiles, column):
    """Adds the tiles of the queries' gradient to their sum in global memory."""
    for t in range(tiles):
        mbarrier.wait(dq_full, t & 1)
        async_add(dq_desc, [first + t * QUERIES, column], dq)
        tma.store_wait(0)
        mbarrier.arrive(dq_empty, count=1)
    # Not only read from shared memory, but arrived: whoever hears of this program's end may read the sums.
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    gl.inline_asm_elementwise("cp.async.bulk.wait_group 0; mov.b32 $0, $1;", "=r,r", [lane], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _attend(places, rest, biases, WIDTH: gl.constexpr, STAGES: gl.constexpr):
    positions, nothing, by_bucket, words, ds_full, ds_empty, words_full = biases
    q, k, v, g, ds_shared, dq_shared, kv_full, full, dq_full, empty, dq_empty = places
    dk_out, dv_out, row, length, n, tiles, half_alpha, k_scale, v_scale, stride = rest
    scores: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, QUERIES, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, WIDTH, 16])
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=sums, k_width=2)
    # The gradient of 64 queries has no more rows than four warps take: the others have the other half of its columns.
    parts: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, WIDTH // 2, 16])
    dtype: gl.constexpr = v.dtype
    dk = gl.zeros([KEYS, WIDTH], gl.float32, sums)
    dv = gl.zeros([KEYS, WIDTH], gl.float32, sums)
    lines: gl.constexpr = whole_lines(WIDTH, 8)
    none = gl.zeros([KEYS, QUERIES], gl.float32, scores)
    left = length - n * KEYS
    # Beside biases and wide sums there are registers for half of the slopes only, and for fewer products at a time.
    TIGHT: gl.constexpr = WIDTH == 128
    if by_bucket is not None:
        put_biases(by_bucket)
    mbarrier.wait(kv_full, 0)
    if left < KEYS:
        blank(k, left, lines)
        blank(v, left, lines)
    for t in range(tiles):
        stage = t % STAGES
        s = score(k, q, g, full, t, t, left, lines, scores, STAGES)
        if not TIGHT:
            dp = warpgroup_mma(v, g.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0 if TIGHT else 1, deps=[s])
        # A number of shared memory keeps the loads that follow from being made early, for which there are no registers.
        y = gl.fma(s, half_alpha, position_bias(positions, t * QUERIES + scalar(nothing), KEYS, QUERIES, scores, True))
        if by_bucket is not None:
            mbarrier.wait(words_full, t & 1)
            y = add_time_bias(y, words, scores)
        p, slope = weigh(y, t, dtype, weights, scores)
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
        mbarrier.wait(ds_empty, t & 1)
        ds_shared.store(ds)
        fence_async_shared()
        ds = gl.convert_layout(ds, weights, assert_trivial=True)
        dq = warpgroup_mma(ds_shared.permute((1, 0)), k, gl.zeros([QUERIES, WIDTH], gl.float32, parts), use_acc=False, is_async=True)
        dk = warpgroup_mma(ds, q.index(stage), dk, is_async=True)
        mbarrier.arrive(ds_full, count=1)
        dq, dv = warpgroup_mma_wait(1, deps=[dq, dv])
        p = keep(p)
        mbarrier.wait(dq_empty, (t + 1) & 1)
        dq_shared.store(dq)
        fence_async_shared()
        mbarrier.arrive(dq_full, count=1)
        dk = warpgroup_mma_wait(0, deps=[dk])
        ds = keep(ds)
        mbarrier.arrive(empty.index(stage), count=1)
    at = n * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(1, lines))
    col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
    place = gl.expand_dims((row + at).to(gl.int64) * stride, 1) + gl.expand_dims(col, 0)
    # The keys and values are no longer needed: their places serve to turn the sums into whole lines.
    k.store(narrow(dk * k_scale, dtype))
    v.store(narrow(dv * v_scale, dtype))
    gl.store(dk_out + place, k.load(lines), mask=gl.expand_dims(at < length, 1))
    gl.store(dv_out + place, v.load(lines), mask=gl.expand_dims(at < length, 1))


@gluon.jit(do_not_specialize=["tokens", "sequences", "blocks", "heads", "q_head", "k_head", "v_head", "g_head", "room"])
def backward_biased_kernel(q_desc, k_desc, v_desc, g_desc, dq_desc, total, ends, dq_out, dk_out, dv_out, offsets,
                    positions, by_bucket, words_desc, position_grad, time_grad, room,
                    tokens, sequences, blocks, heads,
                    q_head, k_head, v_head, g_head, half_alpha, k_scale, v_scale,
                    WIDTH: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    pid = gl.program_id(0)
    reserve(RESERVED, REGISTERS)
    n = pid % blocks
    head = (pid // blocks) % heads
    sequence = pid // blocks // heads
    row = gl.load(offsets + sequence).to(gl.int32)
    column = head * WIDTH
    stride = heads * WIDTH
    lines: gl.constexpr = whole_lines(WIDTH, 8)
    col = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, lines))
    if sequence == sequences:
        # Padding behind the last sequence: zeros.
        zero = gl.zeros([64, WIDTH], dk_out.dtype.element_ty, lines)
        for start in range(row + n * 64, tokens, blocks * 64):
            line = start + gl.arange(0, 64, layout=gl.SliceLayout(1, lines))
            place = gl.expand_dims(line.to(gl.int64) * stride + column, 1) + gl.expand_dims(col, 0)
            gl.store(dq_out + place, zero, mask=gl.expand_dims(line < tokens, 1))
            gl.store(dk_out + place, zero, mask=gl.expand_dims(line < tokens, 1))
            gl.store(dv_out + place, zero, mask=gl.expand_dims(line < tokens, 1))
    else:
        length = gl.load(offsets + sequence + 1).to(gl.int32) - row
        if n * KEYS < length:
            dtype: gl.constexpr = q_desc.dtype
            q = gl.allocate_shared_memory(dtype, [STAGES, QUERIES, WIDTH], q_desc.layout)
            k = gl.allocate_shared_memory(dtype, [KEYS, WIDTH], k_desc.layout)
            v = gl.allocate_shared_memory(dtype, [KEYS, WIDTH], v_desc.layout)
            g = gl.allocate_shared_memory(dtype, [STAGES, QUERIES, WIDTH], g_desc.layout)
            ds = gl.allocate_shared_memory(dtype, [KEYS, QUERIES], gl.NVMMASharedLayout.get_default_for([KEYS, QUERIES], dtype))
            dq = gl.allocate_shared_memory(gl.float32, [QUERIES, WIDTH], dq_desc.layout)
            kv_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
            empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
            dq_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            dq_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            mbarrier.init(kv_full, count=1)
            mbarrier.init(dq_full, count=1)
            mbarrier.init(dq_empty, count=1)
            for stage in gl.static_range(STAGES):
                mbarrier.init(full.index(stage), count=1)
                mbarrier.init(empty.index(stage), count=1)
            fence_async_shared()
            tiles = (length - n * KEYS + QUERIES - 1) // QUERIES
            descs = (q_desc, k_desc, v_desc, g_desc, dq_desc)
            places = (q, k, v, g, ds, dq, kv_full, full, dq_full, empty, dq_empty)
            where = (row + n * KEYS, tiles, head * q_head, head * k_head, head * v_head, head * g_head)
            rest = (dk_out + column, dv_out + column, row, length, n, tiles, half_alpha, k_scale, v_scale, stride)
            ds_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            ds_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
            mbarrier.init(ds_full, count=1)
            mbarrier.init(ds_empty, count=1)
            words, words_full, words_empty = None, None, None
            words_row = 0
            if words_desc is not None:
                words = gl.allocate_shared_memory(gl.int32, [KEYS, 16], words_desc.layout)
                words_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
                words_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
                mbarrier.init(words_full, count=1)
                mbarrier.init(words_empty, count=1)
                # See `pair_buckets`.
                words_row = (sequence * blocks * (blocks + 1) + n * (2 * blocks - n + 1)) * KEYS
                by_bucket += head * BUCKETS
                time_grad += head * (BUCKETS * KEYS)
            flat: gl.constexpr = gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0])
            nothing = gl.allocate_shared_memory(gl.int32, [1], flat)
            write(nothing, 0)
            fence_async_shared()
            biases = (
                positions + head.to(gl.int64) * room + MARGIN, nothing, by_bucket, words, ds_full, ds_empty, words_full,
            )  # fmt: skip
            tables = (position_grad + head.to(gl.int64) * room, time_grad, v_scale / 2)
            bars = (ds_full, ds_empty, words_full, words_empty)
            times = (words_desc, words, words_row, words_full, words_empty, ds_full)
            gl.warp_specialize(
                [
                    (_attend, (places, rest, biases, WIDTH, STAGES)),
                    (_load, (descs, places, where, times, STAGES)),
                    (_add, (dq_desc, dq, dq_full, dq_empty, row + n * KEYS, tiles, column)),
                    (add_table_gradients, (ds, tables, words, bars, tiles)),
                ],
                [1, 1, 4],
                [24, 24, 40 if words_desc is None else 72],
            )
            # The last of the programs of a sequence and head narrows their sum.
            ended = gl.atomic_add(ends + pid // blocks, 1, sem="acq_rel")
            if ended == (length + KEYS - 1) // KEYS - 1:
                for start in range(0, length, 64):
                    line = start + gl.arange(0, 64, layout=gl.SliceLayout(1, lines))
                    inside = gl.expand_dims(line < length, 1)
                    place = gl.expand_dims((row + line).to(gl.int64) * stride + column, 1) + gl.expand_dims(col, 0)
                    sums = gl.load(total + place, mask=inside, cache_modifier=".cg")
                    gl.store(dq_out + place, (sums * k_scale).to(dtype), mask=inside)
