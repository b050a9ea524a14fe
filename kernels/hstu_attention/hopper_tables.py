# mypy: ignore-errors
"""What four more warps do for Hopper's backward: the gradients of the bias tables.

They read the scores' gradients where the others leave them, in shared memory. For the times a thread owns a key: it adds its row of a tile
by bucket to numbers of its own, so that nobody waits for anybody; sixteen queries that are in one bucket each for all of a warp's keys, as
most are that are far apart, are dealt with at once. For the positions a thread owns a diagonal, and goes along it.

Much is assembly: a thread reads where its data says, and a warp goes its own way, for both of which Gluon has no words.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from kernels.hstu_attention.hopper_bias import BUCKETS
from kernels.hstu_attention.hopper_notes import hear

KEYS = gl.constexpr(128)
QUERIES = gl.constexpr(64)
# Where in shared memory of our own things stand, in bytes: sums by distance, of even queries and of odd ones, 256 each; a place for each
# thread that goes nowhere; and for times the head's biases by bucket and the threads' sums by bucket.
EVEN_AT = gl.constexpr(0)
ODD_AT = gl.constexpr(1024)
NOWHERE_AT = gl.constexpr(2048)
BIAS_AT = gl.constexpr(2560)
SUMS_AT = gl.constexpr(3072)
RESERVED = gl.constexpr(3 << 10)
RESERVED_TIMED = gl.constexpr(35 << 10)
# What `_starting` finds.
REGISTERS = gl.constexpr(".reg .b32 sums_at, row_at, first<4>, second<4>, reach<4>;")


@gluon.jit
def put(place, x):
    """Words to shared memory of our own, at bytes `place`."""
    asm: gl.constexpr = "{ .reg .b32 a; mov.b32 a, bias_tables; add.s32 a, a, $1; st.shared.b32 [a], $2; mov.b32 $0, $1; }"
    gl.inline_asm_elementwise(asm, "=r,r,r", [place, x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def get(place):
    """float32 numbers of it."""
    asm: gl.constexpr = "{ .reg .b32 a; mov.b32 a, bias_tables; add.s32 a, a, $1; ld.shared.f32 $0, [a]; }"
    return gl.inline_asm_elementwise(asm, "=f,r", [place], dtype=gl.float32, is_pure=False, pack=1)


_MARK = gl.constexpr(0x5EEDF1A6)


@gluon.jit
def _address(tile):
    """Where a tile of 16 KiB stands in shared memory, which Gluon does not tell: it is marked and looked for.

    The mark goes at once: shared memory outlives a program, and the next one's tile may stand elsewhere.
    """
    lines: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    words = tile._reinterpret(gl.int32, [KEYS, QUERIES // 2], gl.NVMMASharedLayout(128, 32, 2))
    words.store(gl.full([KEYS, QUERIES // 2], _MARK, gl.int32, lines))
    gl.thread_barrier()
    at = 1024 * gl.arange(0, 256, layout=gl.BlockedLayout([1], [32], [4], [0]))
    asm: gl.constexpr = """{ .reg .pred p; .reg .b32 b; mov.b32 $0, 0; mov.u32 b, %total_smem_size; setp.lt.u32 p, $1, b;
        setp.ge.and.u32 p, $1, 1024, p; @p ld.shared.b32 $0, [$1]; }"""
    found = gl.inline_asm_elementwise(asm, "=&r,r", [at], dtype=gl.int32, is_pure=False, pack=1)
    address = gl.min(gl.where(found == _MARK, at, 1 << 30), 0)
    gl.thread_barrier()
    words.store(gl.zeros([KEYS, QUERIES // 2], gl.int32, lines))
    return address


@gluon.jit
def put_biases(by_bucket):
    """The head's biases; by a group of eight warps."""
    n = gl.arange(0, 256, layout=gl.BlockedLayout([1], [32], [8], [0]))
    n = gl.minimum(n, BUCKETS - 1)
    put(BIAS_AT + 4 * n, gl.load(by_bucket + n))
    gl.thread_barrier()


# The layout of words of buckets [keys, 16] in which a thread of eight warps holds those of its scores.
FRAGMENT = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 4], [0, 8], [8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0], [64, 0]], [], [128, 16]
    )
)


@gluon.jit
def add_time_bias(y, words, layout: gl.constexpr):
    """y [keys, queries] plus half of the time bias, by words of buckets in shared memory."""
    # Four times a bucket, a byte, is where its bias stands.
    w = words.load(FRAGMENT) << 2
    b = gl.join(gl.join(_byte(w, 0), _byte(w, 2)), gl.join(_byte(w, 1), _byte(w, 3)))
    # By key, 16 queries, 2 of 8 of those, which 8, and one of the 2.
    b = gl.permute(gl.reshape(b, [KEYS, QUERIES // 16, 4, 2, 2]), (0, 1, 3, 2, 4))
    b = gl.convert_layout(gl.reshape(b, [KEYS, QUERIES]), layout, assert_trivial=True)
    asm: gl.constexpr = _looking_up()
    return gl.inline_asm_elementwise(asm, "=f,f,r", [y, b], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def _byte(words, n: gl.constexpr):
    asm: gl.constexpr = _taking(n)
    return gl.inline_asm_elementwise(asm, "=r,r", [words], dtype=gl.int32, is_pure=True, pack=1)


@gluon.constexpr_function
def _taking(n):
    return f"prmt.b32 $0, $1, 0, {0x4440 + n};"


@gluon.constexpr_function
def _looking_up():
    """Assembly: $1 plus the bias $2 bytes behind the first."""
    return f"""{{ .reg .b32 a; .reg .f32 f; mov.b32 a, bias_tables; add.s32 a, a, $2; ld.shared.f32 f, [a + {BIAS_AT.value}];
        add.f32 $0, $1, f; }}"""


@gluon.constexpr_function
def _starting():
    """Assembly: this thread's places; $1: its number t; $2: where the tile of gradients stands. A key's row in it is 128 bytes, and chunk c
    of those, 16 bytes or eight queries, stands at c xor key % 8.

    Along its diagonal thread t goes from key t on, two queries at a time, and from the last key to the first. Query pair 4 a + (b + t / 8)
    % 4 is that of step (a, b), so that a warp's threads read from banks of their own. Rows of steps a < 4 are behind no last key for
    threads below 96, and all of a >= 4 are for the rest; `first` are the addresses of these steps at a = 0 and 4, `second` those of the
    others, `reach` their rows.
    """
    lines = [
        f"""{{ .reg .pred p; .reg .b32 a, b, c, r; mov.b32 a, bias_tables; mad.lo.s32 sums_at, $1, 4, a; mad.lo.s32 row_at, $1, 128, $2;
        add.s32 sums_at, sums_at, {SUMS_AT.value}; and.b32 b, $1, 7; mad.lo.s32 row_at, b, 16, row_at; setp.ge.s32 p, $1, 96;"""
    ]
    for b in range(4):
        lines.append(
            f"""shr.u32 a, $1, 3; add.s32 a, a, {b}; and.b32 a, a, 3; mad.lo.s32 r, a, 2, $1; mad.lo.s32 b, r, 128, $2;
            mad.lo.s32 b, a, 4, b; and.b32 c, r, 7;
            mad.lo.s32 b, c, 16, b; xor.b32 c, b, 64; add.s32 c, c, 4096; selp.b32 second{b}, b, c, p;
            sub.s32 c, c, 16384; selp.b32 first{b}, c, b, p; mov.b32 reach{b}, r; @!p add.s32 reach{b}, r, 32;"""
        )
    lines.append("mov.b32 $0, 0; }")
    return " ".join(lines)


@gluon.constexpr_function
def _counting(dtype):
    """Assembly: adds the gradients of sixteen queries to the thread's sums by bucket; $1 to $4: words of buckets, $5: 32 times which.

    Four sums are read at once; where a bucket is that of a number before, what that made of it counts.
    """
    # Bytes of word q belong to queries 2q, 2q + 1, 2q + 8 and 2q + 9, whose numbers are y0 to y3.
    numbers = [f"{_widen(dtype, f'x{q}', 'y0', 'y1')} {_widen(dtype, f'x{4 + q}', 'y2', 'y3')}" for q in range(4)]
    lines = [
        """{ .reg .pred p; .reg .b32 at, low, high, other, third, x<8>, m<4>, b<4>, a<4>; .reg .f32 y<4>, f<4>;
        xor.b32 at, row_at, $5; ld.shared.v4.b32 {x0, x1, x2, x3}, [at]; xor.b32 at, at, 16; ld.shared.v4.b32 {x4, x5, x6, x7}, [at];
        prmt.b32 low, $1, 0, 0x0000; prmt.b32 high, $4, 0, 0x3333; mov.b32 other, 0; mov.b32 third, 0;"""
    ]
    for word in range(4):
        # Bits 7 of bytes: not the first query's bucket, and not the last's either. Buckets have 7 bits.
        lines.append(f"xor.b32 m{word}, ${1 + word}, low; add.s32 m{word}, m{word}, 0x7f7f7f7f; or.b32 other, other, m{word};")
        lines.append(f"xor.b32 a0, ${1 + word}, high; add.s32 a0, a0, 0x7f7f7f7f; and.b32 a0, a0, m{word}; or.b32 third, third, a0;")
    lines.append("and.b32 other, other, 0x80808080; setp.eq.s32 p, other, 0; vote.sync.all.pred p, p, -1; @p bra ALIKE;")
    lines.append("and.b32 third, third, 0x80808080; setp.eq.s32 p, third, 0; vote.sync.all.pred p, p, -1; @p bra TWO;")
    for word in range(4):
        lines.append(numbers[word])
        for n in range(4):
            lines.append(f"prmt.b32 b{n}, ${1 + word}, 0, {0x4440 + n}; mad.lo.s32 a{n}, b{n}, 512, sums_at; ld.shared.f32 f{n}, [a{n}];")
        for n in range(4):
            for before in range(n):
                lines.append(f"setp.eq.s32 p, b{n}, b{before}; selp.f32 f{n}, f{before}, f{n}, p;")
            lines.append(f"add.f32 f{n}, f{n}, y{n};")
        for n in range(4):
            lines.append(f"st.shared.f32 [a{n}], f{n};")
    lines.append("bra COUNTED; TWO: and.b32 low, low, 255; and.b32 high, high, 255; mov.f32 f0, 0f00000000; mov.f32 f1, f0;")
    lines.append("mad.lo.s32 a0, low, 512, sums_at; mad.lo.s32 a1, high, 512, sums_at; ld.shared.f32 f2, [a0]; ld.shared.f32 f3, [a1];")
    for word in range(4):
        lines.append(numbers[word])
        for n in range(4):
            lines.append(f"and.b32 at, m{word}, {0x80 << 8 * n}; setp.ne.s32 p, at, 0; @!p add.f32 f0, f0, y{n}; @p add.f32 f1, f1, y{n};")
    lines.append("add.f32 f2, f2, f0; setp.eq.s32 p, low, high; selp.f32 f3, f2, f3, p; add.f32 f3, f3, f1;")
    lines.append("st.shared.f32 [a0], f2; st.shared.f32 [a1], f3;")
    lines.append("bra COUNTED; ALIKE: and.b32 low, low, 255; mad.lo.s32 a0, low, 512, sums_at; ld.shared.f32 f0, [a0];")
    lines.append(_widen(dtype, "x0", "f1", "f2"))
    for n in range(1, 8):
        lines += [_widen(dtype, f"x{n}", "y0", "y1"), "add.f32 f1, f1, y0; add.f32 f2, f2, y1;"]
    lines.append("add.f32 f1, f1, f2; add.f32 f0, f0, f1; st.shared.f32 [a0], f0; COUNTED: mov.b32 $0, 0; }")
    return " ".join(lines)


@gluon.constexpr_function
def _going_along(dtype):
    """Assembly: sums of even and of odd queries of the diagonal, $0 and $1, and of what it is behind the last key, $2 and $3; $4: thread.

    From thread 96 on the latter come first.
    """
    lines = ["{ .reg .pred p, q; .reg .b32 at, x; .reg .f32 y, z, s<4>;"]
    lines += [f"mov.f32 ${n}, 0f00000000; mov.f32 s{n}, 0f00000000;" for n in range(4)]
    steps, number = [(a, b) for a in range(4) for b in range(4)], _widen(dtype, "x", "y", "z")
    alone = f"{number} add.f32 $0, $0, y; add.f32 $1, $1, z;"
    lines += [f"xor.b32 at, first{b}, {16 * a}; ld.shared.b32 x, [at + {1024 * a}]; {alone}" for a, b in steps]
    lines.append("setp.ge.s32 q, $4, 64; @q bra TURN;")
    lines += [f"xor.b32 at, second{b}, {16 * a}; ld.shared.b32 x, [at + {1024 * a}]; {alone}" for a, b in steps]
    lines.append("bra GONE; TURN:")
    for a, b in steps:
        lines.append(f"xor.b32 at, second{b}, {16 * a}; setp.ge.s32 p, reach{b}, {128 - 8 * a}; @p sub.s32 at, at, 16384;")
        lines.append(f"ld.shared.b32 x, [at + {1024 * a}]; {number}")
        lines.append("@!p add.f32 s0, s0, y; @!p add.f32 s1, s1, z; @p add.f32 s2, s2, y; @p add.f32 s3, s3, z;")
    lines.append("setp.ge.s32 q, $4, 96;")
    for n in range(2):
        lines.append(f"selp.f32 y, s{2 + n}, s{n}, q; add.f32 ${n}, ${n}, y; selp.f32 ${2 + n}, s{n}, s{2 + n}, q;")
    lines.append("GONE: }")
    return " ".join(lines)


@gluon.constexpr_function
def _widen(dtype, source, low, high):
    """Assembly: two numbers of 16 bits to float32."""
    if dtype == gl.bfloat16:
        return f"{{ .reg .b32 l, h; shl.b32 l, {source}, 16; and.b32 h, {source}, 0xffff0000; mov.b32 {low}, l; mov.b32 {high}, h; }}"
    return f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, {source}; cvt.f32.f16 {low}, l; cvt.f32.f16 {high}, h; }}"


# A thread's words of buckets, and a quarter of them.
WORDS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8]], [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0]], [[32, 0], [64, 0]], [], [128, 16]
    )
)
QUARTER = gl.constexpr(
    gl.DistributedLinearLayout([[0, 1], [0, 2]], [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0]], [[32, 0], [64, 0]], [], [128, 4])
)
LINE = gl.constexpr(gl.SliceLayout(1, QUARTER))


@gluon.jit
def _take(words, words_full, words_empty, t):
    """A tile's words [keys, 16] in four."""
    mbarrier.wait(words_full, t & 1)
    x = words.load(WORDS)
    # Words that are still on their way to registers must not be overtaken by the copy engine, which waits for no barrier of threads.
    fence_async_shared()
    mbarrier.arrive(words_empty, count=1)
    low, high = gl.split(gl.permute(gl.reshape(x, [KEYS, 2, 2, 4]), (0, 3, 1, 2)))
    a, c = gl.split(low)
    b, d = gl.split(high)
    return (
        gl.convert_layout(a, QUARTER, assert_trivial=True), gl.convert_layout(b, QUARTER, assert_trivial=True),
        gl.convert_layout(c, QUARTER, assert_trivial=True), gl.convert_layout(d, QUARTER, assert_trivial=True),
    )  # fmt: skip


@gluon.jit
def add_table_gradients(ds, tables, words, bars, notes, heads):
    """Adds tiles of scores' gradients [keys, queries] from the diagonal on to those of the tables.

    tables: position_grad [H, room] and time_grad [H, BUCKETS, KEYS], room, and what all is multiplied by.
    """
    position_grad, time_grad, room, scale = tables
    ds_full, ds_empty, words_full, words_empty = bars
    key = gl.arange(0, KEYS, layout=LINE)
    zero = gl.zeros([KEYS], gl.int32, LINE)
    start: gl.constexpr = _starting()
    gl.inline_asm_elementwise(start, "=r,r,r", [key, zero + _address(ds)], dtype=gl.int32, is_pure=False, pack=1)
    nowhere = NOWHERE_AT + 4 * key
    # Distances of what a thread finds first, and second, which the first 65 threads do not.
    one = gl.where(key >= 96, KEYS - key, -key)
    other = gl.where(key >= 96, -key, KEYS - key)
    for n in gl.static_range(4):
        put(EVEN_AT + 512 * n + 4 * key, zero)
    if words is not None:
        for bucket in range(BUCKETS):
            put(SUMS_AT + 4 * key + 512 * bucket, zero)
    gl.thread_barrier()
    mbarrier.arrive(ds_empty, count=1)
    taken = 0
    count = 0
    block, pair, _, length = hear(notes, taken)
    while block >= 0:
        left = length - block * KEYS
        tiles = (left + QUERIES - 1) // QUERIES
        # Four, which nobody who unrolls loops knows.
        parts = 4 * gl.minimum(tiles, 1)
        by_distance = position_grad + (pair % heads).to(gl.int64) * room
        if words is not None:
            x0, x1, x2, x3 = _take(words, words_full, words_empty, count)
        for t in range(tiles):
            mbarrier.wait(ds_full, (count + t) & 1)
            if words is not None:
                adding: gl.constexpr = _counting(ds.dtype)
                for part in range(parts):
                    at = gl.zeros([KEYS, 4], gl.int32, QUARTER) + 32 * part
                    gl.inline_asm_elementwise(adding, "=r,r,r,r,r,r,r,r,r", [x0, at], dtype=gl.int8, is_pure=False, pack=4)
                    x0, x1, x2, x3 = x1, x2, x3, x0
            along: gl.constexpr = _going_along(ds.dtype)
            even_one, odd_one, even_other, odd_other = gl.inline_asm_elementwise(
                along, "=&f,=&f,=&f,=&f,r", [key], dtype=(gl.float32, gl.float32, gl.float32, gl.float32), is_pure=False, pack=1
            )
            at_one, at_odd_one = EVEN_AT + 4 * ((one + t * QUERIES) & 255), ODD_AT + 4 * ((one + t * QUERIES + 1) & 255)
            at_other = gl.where(key > 64, EVEN_AT + 4 * ((other + t * QUERIES) & 255), nowhere)
            at_odd_other = gl.where(key > 64, ODD_AT + 4 * ((other + t * QUERIES + 1) & 255), nowhere)
            a, b, c, d = get(at_one), get(at_odd_one), get(at_other), get(at_odd_other)
            put(at_one, a + even_one)
            put(at_odd_one, b + odd_one)
            put(at_other, c + even_other)
            put(at_odd_other, d + odd_other)
            gl.thread_barrier()
            mbarrier.arrive(ds_empty, count=1)
            if words is not None:  # noqa: SIM102
                if t + 1 < tiles:
                    x0, x1, x2, x3 = _take(words, words_full, words_empty, count + t + 1)
            # 64 distances will not be seen again.
            _leave(by_distance, t * QUERIES - QUERIES - key, scale, key < QUERIES, nowhere)
        _leave(by_distance, tiles * QUERIES - key, scale, key >= 0, nowhere)
        if words is not None:
            # Two threads have a bucket; each goes through the sums of 64 keys, and no two of a warp read from one bank.
            gl.thread_barrier()
            of_bucket = gl.zeros([KEYS], gl.float32, LINE)
            for some in range(parts * 2):
                for n in gl.static_range(8):
                    at = SUMS_AT + 512 * (key & 63) + 4 * ((key & 64) + ((8 * some + n + key) & 63))
                    of_bucket += get(at)
                    put(at, zero)
            gl.thread_barrier()
            at_bucket = time_grad + ((pair % heads) * BUCKETS + (key & 63)) * KEYS + (2 * gl.program_id(0) + key // 64) % KEYS
            gl.atomic_add(at_bucket, of_bucket * scale, sem="relaxed")
        count += tiles
        taken += 1
        block, pair, _, length = hear(notes, taken)


@gluon.jit
def _leave(position_grad, distance, scale, mine, nowhere):
    """Adds sums by distance to the table's gradient and forgets them."""
    even, odd = EVEN_AT + 4 * (distance & 255), ODD_AT + 4 * (distance & 255)
    x = get(even) + get(odd)
    mine = mine & (distance >= 0)
    gl.atomic_add(position_grad + distance, x * scale, mask=mine, sem="relaxed")
    zero = gl.zeros([KEYS], gl.int32, LINE)
    put(gl.where(mine, even, nowhere), zero)
    put(gl.where(mine, odd, nowhere), zero)


@gluon.jit(do_not_specialize=["room", "width", "buckets"])
def collect_kernel(position_sums, time_sums, position_grad, time_grad, room, width, buckets):
    """Position_grad [H, width] and time_grad [H, buckets] of sums by distance [H, room] and by bucket and key [H, BUCKETS, KEYS].

    A program has 512 distances and 8 buckets of a head.
    """
    head, part = gl.program_id(0).to(gl.int64), gl.program_id(1)
    n = part * 512 + gl.arange(0, 512, layout=gl.BlockedLayout([1], [32], [4], [0]))
    x = gl.load(position_sums + head * room + n, mask=n < width)
    gl.store(position_grad + head * width + n, x.to(position_grad.dtype.element_ty), mask=n < width)
    if time_sums is not None:
        rows: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [4, 1], [1, 0])
        bucket = part * 8 + gl.arange(0, 8, layout=gl.SliceLayout(1, rows))
        key = gl.arange(0, KEYS, layout=gl.SliceLayout(0, rows))
        at = (head * BUCKETS + gl.expand_dims(bucket, 1)) * KEYS + gl.expand_dims(key, 0)
        x = gl.sum(gl.load(time_sums + at, mask=gl.expand_dims(bucket < BUCKETS, 1), other=0.0), 1)
        gl.store(time_grad + head * buckets + bucket, x.to(time_grad.dtype.element_ty), mask=bucket < buckets)
