# mypy: ignore-errors
"""Position and time biases on Hopper, as numbers to add to half scores; `hopper_tables` adds the time bias in the backward.

A small kernel first lays out what is read often: tables as float32 halves, the position table with room on both sides, and times as 32-bit
seconds before a sequence's last query. A time's bucket is found by its cell, a quarter of an octave of seconds: the upper bits of the
float32. A bucket is longer than a cell, so at most one starts inside, at the cell's cut.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Numbers in front of a position table, and twice as many more behind it: pairs that are masked or absent read something too.
MARGIN = gl.constexpr(128)
CELLS = gl.constexpr(128)
# Up to so many buckets that start inside a tile are compared with, one by one. Other tiles look up every pair.
FEW = gl.constexpr(8)


@gluon.jit
def scalar(place):
    """The one number of a place in shared memory."""
    return gl.max(place.load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), 0)


@gluon.jit
def write(place, x):
    place.store(gl.full([1], x, gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0])))


@gluon.jit
def _bucket_of(passed, cells):
    """The bucket of whole seconds >= 0. cells: the cuts, then the buckets in which the cells start."""
    cell = (gl.maximum(passed, 1).to(gl.float32).to(gl.int32, bitcast=True) >> 21) - 508
    return gl.load(cells + CELLS + cell) + (passed >= gl.load(cells + cell)).to(gl.int32)


@gluon.jit
def buckets_between(q_span, k_span, cells):
    """By the extremes of a tile's times: its first bucket, and how many more there are; 1024 more where a key may be later than a query."""
    early_q, late_q = q_span
    early_k, late_k = k_span
    low = _bucket_of(gl.maximum(early_q - late_k, 0), cells)
    many = _bucket_of(gl.maximum(late_q - early_k, 0), cells) - low
    return low, gl.where(early_q >= late_k, many, many + 1024)


@gluon.jit
def add_position_bias(s, half_alpha, positions, distance, layout: gl.constexpr, TURNED: gl.constexpr = False):
    """Half of scores [queries, keys], or TURNED, and of the position bias; distance: from the first key to the first query."""
    i = gl.expand_dims(gl.arange(0, s.shape[0], layout=gl.SliceLayout(1, layout)), 1)
    j = gl.expand_dims(gl.arange(0, s.shape[1], layout=gl.SliceLayout(0, layout)), 0)
    # A thread's numbers stand in rows 8 apart, and in columns that differ in all bits but 2 and 4. What depends on the thread is one
    # address; the rest are constants, the same for two numbers of three, which then share a load.
    thread, number = (i & ~8) - (j & 6), (i & 8) - (j & ~6)
    if TURNED:
        thread, number = -thread, -number
    at = (positions + distance + thread.to(gl.int64)) + number.to(gl.int64)
    bias = gl.inline_asm_elementwise("ld.global.nc.f32 $0, [$1];", "=f,l", [at], dtype=gl.float32, is_pure=True, pack=1)
    return gl.fma(s, half_alpha, bias)


@gluon.jit
def add_time_bias(y, time_i, time_j, low, many, firsts, by_bucket, START: gl.constexpr, DIAGONAL: gl.constexpr):
    """y plus half of the time bias; low, many: as `buckets_between`; START: where this group of warps put its tables."""
    if not DIAGONAL and many <= FEW:
        y += gl.load(by_bucket + low)
        for b in range(low + 1, low + many + 1):
            step = gl.load(by_bucket + b) - gl.load(by_bucket + b - 1)
            y = _add_step(y, time_j, time_i - gl.load(firsts + b), step)
    else:
        passed = time_i - time_j
        asm: gl.constexpr = _looking_up(START)
        y = gl.inline_asm_elementwise(asm, "=f,f,r", [y, gl.maximum(passed, -passed)], dtype=gl.float32, is_pure=False, pack=1)
    return y


@gluon.jit
def _add_step(y, times, bounds, step):
    """y, and a step where times <= bounds."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.le.s32 p, $2, $3; mov.f32 $0, $1; @p add.f32 $0, $1, $4; }", "=f,f,r,r,f", [y, times, bounds, step],
        dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.constexpr_function
def _looking_up(start):
    """Assembly that adds the bias of whole seconds >= 0: of their cell's first bucket, or from its cut on of the second.

    The cell is that of `_bucket_of`; its cut and the two biases stand 512 bytes apart.
    """
    return f"""{{ .reg .pred p; .reg .b32 a, b, c; .reg .f32 f;
        mov.b32 a, bias_tables; max.s32 b, $2, 1; cvt.rn.f32.s32 f, b; mov.b32 b, f; shr.u32 b, b, 21; mad.lo.s32 a, b, 4, a;
        ld.shared.b32 c, [a + {4 * start - 2032}]; setp.ge.s32 p, $2, c; @p add.s32 a, a, 512;
        ld.shared.f32 f, [a + {4 * start - 1520}]; add.f32 $0, $1, f; }}"""


@gluon.jit
def reserve_tables():
    """Declares shared memory of our own, 3 KiB for two groups of warps: in Gluon's, a thread cannot read where it pleases."""
    one = gl.zeros([1], gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    # A multiple of 1 KiB, which the copy engine's tiles behind it ask for.
    asm: gl.constexpr = ".shared .align 1024 .b32 bias_tables[768]; mov.b32 $0, $1;"
    gl.inline_asm_elementwise(asm, "=r,r", [one], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def put_tables(cells, by_cell, START: gl.constexpr):
    """The cuts, and a head's biases by cell, to the place of a group of four warps."""
    n = gl.arange(0, CELLS, layout=gl.BlockedLayout([1], [32], [4], [0]))
    gl.thread_barrier()
    _put(START + n, gl.load(cells + n))
    _put(START + CELLS + n, gl.load(by_cell + n))
    _put(START + 2 * CELLS + n, gl.load(by_cell + CELLS + n))
    gl.thread_barrier()


@gluon.jit
def _put(place, x):
    asm: gl.constexpr = "{ .reg .b32 a; mov.b32 a, bias_tables; mad.lo.s32 a, $1, 4, a; st.shared.b32 [a], $2; mov.b32 $0, $1; }"
    gl.inline_asm_elementwise(asm, "=r,r,r", [place, x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=["width", "room", "buckets", "position_stride", "time_stride", "heads", "chunks"])
def prepare_kernel(position_bias, time_bias, key_times, query_times, offsets, cells, positions, by_bucket, by_cell, key_seconds,
                   query_seconds, counter, width, room, buckets, position_stride, time_stride, heads, chunks):  # fmt: skip
    """Fills positions [H, room], by_bucket [H, buckets], by_cell [H, 2, CELLS], key_seconds and query_seconds [T], and zeros the counter.

    A program for each head, and then `chunks` of 512 tokens for each sequence.
    """
    n = gl.arange(0, 512, layout=gl.BlockedLayout([1], [32], [4], [0]))
    pid = gl.program_id(0)
    if pid == 0:
        gl.store(counter, 0)
    if pid < heads:
        for start in range(0, room, 512):
            at = start + n - MARGIN
            x = gl.load(position_bias + pid * position_stride + at, mask=(at >= 0) & (at < width), other=0.0)
            gl.store(positions + pid.to(gl.int64) * room + start + n, 0.5 * x.to(gl.float32), mask=start + n < room)
        if time_bias is not None:
            time_bias += pid * time_stride
            for start in range(0, buckets, 512):
                inside = start + n < buckets
                x = gl.load(time_bias + start + n, mask=inside, other=0.0)
                gl.store(by_bucket + pid * buckets + start + n, 0.5 * x.to(gl.float32), mask=inside)
            inside = n < 2 * CELLS
            b = gl.load(cells + CELLS + n % CELLS, mask=inside, other=0) + (n >= CELLS).to(gl.int32)
            x = gl.load(time_bias + gl.minimum(b, buckets - 1), mask=inside, other=0.0)
            gl.store(by_cell + pid * 2 * CELLS + n, 0.5 * x.to(gl.float32), mask=inside)
    elif time_bias is not None:
        sequence = (pid - heads) // chunks
        first = gl.load(offsets + sequence) + (pid - heads) % chunks * 512
        end = gl.load(offsets + sequence + 1)
        if first < end:
            last = gl.load(query_times + end - 1)
            for m in gl.static_range(2):
                source = query_times if m == 0 else key_times
                target = query_seconds if m == 0 else key_seconds
                x = gl.load(source + first + n, mask=first + n < end, other=0) - last
                # 34 years count as all that is longer.
                x = gl.minimum(gl.maximum(x, -(2**30 - 1)), 2**30 - 1)
                gl.store(target + first + n, x.to(gl.int32), mask=first + n < end)
