# mypy: ignore-errors
"""What four more warps do for Hopper's backward: time buckets for the others to look up, and the gradients of the bias tables.

A thread owns a key. Of each tile of keys and queries it finds the pairs' buckets, a byte each, and leaves them in the order in which the
others hold their scores. When those have left the scores' gradients in shared memory, it adds its own by bucket to numbers of its own, so
that nobody waits for anybody; and sums along diagonals travel from thread to thread, a query further each time, till they leave the warp.
Sixteen queries that all of a warp's keys have in one bucket each, as most have that are far apart, are dealt with at once.

Much is assembly: a thread reads where its data says, and a warp goes its own way, for both of which Gluon has no words.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

KEYS = gl.constexpr(128)
QUERIES = gl.constexpr(64)
# More buckets than seconds of 31 bits reach.
BUCKETS = gl.constexpr(72)
# Where in shared memory of our own things stand, in bytes: the threads' sums by bucket come first; cells of times; what leaves a warp of
# what travels, and a place for what goes nowhere; the head's biases; twice the seconds of a tile's queries, and the first and last of
# sixteen each; and the buckets of a tile, sixteen queries after the other. All is as much as a kernel may declare.
CELLS_AT = gl.constexpr(72 * 512)
LEAVING_AT = gl.constexpr(72 * 512 + 1024)
BIAS_AT = gl.constexpr(39936)
TIMES_AT = gl.constexpr(40256)
WORDS_AT = gl.constexpr(40896)
# A multiple of 1 KiB, which the copy engine's tiles behind it ask for.
RESERVED = gl.constexpr(48 << 10)


@gluon.jit
def reserve():
    """Declares shared memory, and registers that outlive a statement."""
    one = gl.zeros([1], gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    asm: gl.constexpr = _reserving()
    gl.inline_asm_elementwise(asm, "=r,r", [one], dtype=gl.int32, is_pure=False, pack=1)


@gluon.constexpr_function
def _reserving():
    return f""".shared .align 1024 .b8 bias_tables[{RESERVED.value}];
        .reg .b32 sums_at, leave_at, left_at, words_at; .reg .f32 d0, d1, d2, d3; mov.b32 $0, $1;"""


@gluon.jit
def put(place, x):
    """Words to shared memory of our own, at bytes `place`."""
    asm: gl.constexpr = "{ .reg .b32 a; mov.b32 a, bias_tables; add.s32 a, a, $1; st.shared.b32 [a], $2; mov.b32 $0, $1; }"
    gl.inline_asm_elementwise(asm, "=r,r,r", [place, x], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def get(place):
    asm: gl.constexpr = "{ .reg .b32 a; mov.b32 a, bias_tables; add.s32 a, a, $1; ld.shared.b32 $0, [a]; }"
    return gl.inline_asm_elementwise(asm, "=r,r", [place], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def put_biases(by_bucket, buckets):
    """The head's biases; by a group of eight warps."""
    n = gl.arange(0, 256, layout=gl.BlockedLayout([1], [32], [8], [0]))
    put(BIAS_AT + 4 * gl.minimum(n, 79), gl.load(by_bucket + gl.minimum(n, buckets - 1)))
    gl.thread_barrier()


# The layout of words [keys, 4] in which a thread of eight warps holds the buckets of its scores with sixteen queries.
FRAGMENT = gl.constexpr(
    gl.DistributedLinearLayout([[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0], [64, 0]], [], [128, 4])
)


@gluon.jit
def _words():
    """The buckets of a tile's scores as words [keys, queries / 4]."""
    key = gl.expand_dims(gl.arange(0, KEYS, layout=gl.SliceLayout(1, FRAGMENT)), 1)
    word = gl.expand_dims(gl.arange(0, 4, layout=gl.SliceLayout(0, FRAGMENT)), 0)
    at = WORDS_AT + 16 * key + 4 * word
    a, b = get(at), get(at + 2048)
    c, d = get(at + 4096), get(at + 6144)
    return gl.reshape(gl.join(gl.join(a, c), gl.join(b, d)), [KEYS, QUERIES // 4])


@gluon.jit
def add_time_bias(y, layout: gl.constexpr):
    """y plus half of the time bias, by the buckets that the four warps have left."""
    w = _words()
    even, odd = gl.join(w & 255, (w >> 16) & 255), gl.join((w >> 8) & 255, (w >> 24) & 255)
    # By key, 2 queries of 8, 16 queries, 8 of those, and one of the 2.
    b = gl.permute(gl.reshape(gl.join(even, odd), [KEYS, 4, QUERIES // 16, 2, 2]), (0, 2, 3, 1, 4))
    b = gl.convert_layout(gl.reshape(b, [KEYS, QUERIES]), layout, assert_trivial=True)
    asm: gl.constexpr = _looking_up()
    return gl.inline_asm_elementwise(asm, "=f,f,r", [y, b << 2], dtype=gl.float32, is_pure=True, pack=1)


@gluon.constexpr_function
def _looking_up():
    """Assembly: $1 plus the bias $2 bytes behind the first."""
    return f"""{{ .reg .b32 a; .reg .f32 f; mov.b32 a, bias_tables; add.s32 a, a, $2; ld.shared.f32 f, [a + {BIAS_AT.value}];
        add.f32 $0, $1, f; }}"""


@gluon.constexpr_function
def _bucket(s, out):
    """Assembly: the bucket of s whole seconds >= 0, by their cell: its cut, and the bucket it starts in."""
    return f"""max.s32 b, {s}, 1; cvt.rn.f32.s32 f, b; mov.b32 b, f; shr.u32 b, b, 21; mad.lo.s32 b, b, 8, cells;
        ld.shared.v2.b32 {{b, c}}, [b]; setp.ge.s32 p, {s}, b; @p add.s32 c, c, 1; mov.b32 {out}, c;"""


@gluon.constexpr_function
def _finding():
    """Assembly: the buckets of a key and sixteen queries, $0 to $3; $4: the key's second; $5, $6: where the queries' stand, their span.

    A byte of a word belongs to query 8 (byte // 2) + 2 word + byte % 2.
    """
    lines = [
        f"""{{ .reg .pred p, q; .reg .b32 a, b, c, cells, low, high, t<16>, k<16>; .reg .f32 f;
        mov.b32 cells, bias_tables; add.s32 cells, cells, {CELLS_AT.value - 4064}; mov.b32 a, bias_tables;
        add.s32 b, a, $6; ld.shared.v2.b32 {{low, high}}, [b]; add.s32 a, a, $5;
        sub.s32 low, low, $4; sub.s32 high, high, $4; setp.ge.s32 q, low, 0;"""
    ]
    lines.append(_bucket("low", "low"))
    lines.append(_bucket("high", "high"))
    lines.append("setp.eq.and.s32 q, low, high, q; vote.sync.all.pred q, q, -1; prmt.b32 $0, low, 0, 0; mov.b32 $1, $0; mov.b32 $2, $0;")
    lines.append("mov.b32 $3, $0; @q bra FOUND;")
    for n in range(4):
        lines.append(f"ld.shared.v4.b32 {{t{4 * n}, t{4 * n + 1}, t{4 * n + 2}, t{4 * n + 3}}}, [a + {16 * n}];")
    for n in range(16):
        lines.append(f"sub.s32 t{n}, t{n}, $4; abs.s32 t{n}, t{n};")
    for n in range(16):
        lines.append(_bucket(f"t{n}", f"k{n}"))
    for word in range(4):
        first, second, third, fourth = (8 * (byte // 2) + 2 * word + byte % 2 for byte in range(4))
        lines.append(f"prmt.b32 b, k{first}, k{second}, 0x0040; prmt.b32 c, k{third}, k{fourth}, 0x0040; prmt.b32 ${word}, b, c, 0x5410;")
    lines.append("FOUND: }")
    return " ".join(lines)


@gluon.constexpr_function
def _counting(dtype):
    """Assembly: adds the gradients of sixteen queries, pairs $2 to $9, to the thread's sums by bucket; $10: where their words stand.

    Four sums are read at once; where a bucket is that of a number before, what that made of it counts.
    """
    lines = [
        """{ .reg .pred p; .reg .b32 at, w<4>, b<4>, a<4>; .reg .f32 x<4>, f<4>;
        add.s32 at, words_at, $10; ld.shared.v4.b32 {w0, w1, w2, w3}, [at]; prmt.b32 b0, w0, 0, 0;
        setp.eq.s32 p, b0, w0; setp.eq.and.s32 p, w1, w0, p; setp.eq.and.s32 p, w2, w0, p; setp.eq.and.s32 p, w3, w0, p;
        vote.sync.all.pred p, p, -1; @p bra ALIKE;"""
    ]
    for word in range(4):
        # Bytes of word q belong to queries 2q, 2q + 1, 2q + 8 and 2q + 9.
        lines += [_widen(dtype, f"${2 + word}", "x0", "x1"), _widen(dtype, f"${6 + word}", "x2", "x3")]
        for n in range(4):
            lines.append(f"prmt.b32 b{n}, w{word}, 0, {0x4440 + n}; mad.lo.s32 a{n}, b{n}, 512, sums_at; ld.shared.f32 f{n}, [a{n}];")
        for n in range(4):
            for before in range(n):
                lines.append(f"setp.eq.s32 p, b{n}, b{before}; selp.f32 f{n}, f{before}, f{n}, p;")
            lines.append(f"add.f32 f{n}, f{n}, x{n};")
        for n in range(4):
            lines.append(f"st.shared.f32 [a{n}], f{n};")
    lines.append("bra COUNTED; ALIKE: and.b32 b0, w0, 255; mad.lo.s32 a0, b0, 512, sums_at; ld.shared.f32 f0, [a0];")
    lines.append(_widen(dtype, "$2", "f1", "f2"))
    for n in range(1, 8):
        lines += [_widen(dtype, f"${2 + n}", "x0", "x1"), "add.f32 f1, f1, x0; add.f32 f2, f2, x1;"]
    lines.append("add.f32 f1, f1, f2; add.f32 f0, f0, f1; st.shared.f32 [a0], f0; COUNTED: mov.b32 $0, 0; mov.b32 $1, 0; }")
    return " ".join(lines)


@gluon.constexpr_function
def _stepping(dtype):
    """Assembly: two steps along diagonals in each quarter of the queries, whose numbers are $1 to $4."""
    lines = ["{ .reg .pred p; .reg .f32 s<4>, t<4>;"]
    for n in range(4):
        lines.append(_widen(dtype, f"${1 + n}", f"s{n}", f"t{n}"))
    for step, name in enumerate("st"):
        for n in range(4):
            lines.append(f"shfl.sync.up.b32 d{n}|p, d{n}, 1, 0, -1; selp.f32 d{n}, d{n}, 0f00000000, p; add.f32 d{n}, d{n}, {name}{n};")
        for n in range(4):
            lines.append(f"st.shared.f32 [leave_at + {64 * n + 4 * step}], d{n};")
    lines.append("add.s32 leave_at, leave_at, 8; mov.b32 $0, 0; }")
    return " ".join(lines)


@gluon.constexpr_function
def _widen(dtype, source, low, high):
    """Assembly: two numbers of 16 bits to float32."""
    if dtype == gl.bfloat16:
        return f"{{ .reg .b32 l, h; shl.b32 l, {source}, 16; and.b32 h, {source}, 0xffff0000; mov.b32 {low}, l; mov.b32 {high}, h; }}"
    return f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, {source}; cvt.f32.f16 {low}, l; cvt.f32.f16 {high}, h; }}"


@gluon.constexpr_function
def _starting():
    """Assembly: this thread's places; $1: its number. What a thread passes on goes nowhere, but for that of a warp's last."""
    return f"""{{ .reg .pred p; .reg .b32 a, b; mov.b32 a, bias_tables; mad.lo.s32 sums_at, $1, 4, a; mad.lo.s32 words_at, $1, 16, a;
        add.s32 words_at, words_at, {WORDS_AT.value}; add.s32 a, a, {LEAVING_AT.value};
        shr.u32 b, $1, 5; mad.lo.s32 left_at, b, 384, a; and.b32 b, $1, 31; setp.eq.s32 p, b, 31; mad.lo.s32 b, b, 4, a;
        add.s32 b, b, 1536; selp.b32 leave_at, left_at, b, p;
        mov.f32 d0, 0f00000000; mov.f32 d1, d0; mov.f32 d2, d0; mov.f32 d3, d0; mov.b32 $0, 0; }}"""


@gluon.constexpr_function
def _leaving():
    """Assembly: adds what is under way to what has left the warp. $0, $1, $2: all of it, in three parts of 32; $3: the thread's number.

    Number n of it belongs to distance n - 31 from the warp's first key to the tile's first query.
    """
    lines = ["{ .reg .pred p; .reg .b32 a, b; .reg .f32 f; sub.s32 leave_at, leave_at, 64; and.b32 b, $3, 31; setp.ne.s32 p, b, 31;"]
    lines.append("mad.lo.s32 a, b, 4, left_at; st.shared.f32 [a + 256], 0f00000000; sub.s32 b, 30, b; mad.lo.s32 b, b, 4, left_at;")
    for m in range(4):
        place = f"[b + {64 * (m + 1)}]"
        lines.append(f"bar.warp.sync -1; @p ld.shared.f32 f, {place}; @p add.f32 f, f, d{m}; @p st.shared.f32 {place}, f;")
        lines.append(f"mov.f32 d{m}, 0f00000000;")
    lines.append("bar.warp.sync -1; ld.shared.f32 $0, [a]; ld.shared.f32 $1, [a + 128]; ld.shared.f32 $2, [a + 256]; bar.warp.sync -1; }")
    return " ".join(lines)


# A thread's gradients, two numbers of 16 bits in one of 32: its row of the tile, and a quarter of it.
PAIRS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16]], [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0]], [[32, 0], [64, 0]], [], [128, 32]
    )
)
QUARTER = gl.constexpr(
    gl.DistributedLinearLayout([[0, 1], [0, 2], [0, 4]], [[1, 0], [2, 0], [4, 0], [8, 0], [16, 0]], [[32, 0], [64, 0]], [], [128, 8])
)
LINE = gl.constexpr(gl.SliceLayout(1, QUARTER))


@gluon.jit
def _put_times(slot, seconds):
    """Seconds [queries], and the first and last of sixteen each, to one of two slots."""
    n = gl.arange(0, QUERIES, layout=seconds.type.layout)
    put(TIMES_AT + 320 * slot + 4 * n, seconds)
    sixteens = gl.reshape(seconds, [4, 16])
    low, high = gl.min(sixteens, 1), gl.max(sixteens, 1)
    m = gl.arange(0, 4, layout=low.type.layout)
    put(TIMES_AT + 256 + 320 * slot + 8 * m, low)
    put(TIMES_AT + 260 + 320 * slot + 8 * m, high)
    gl.thread_barrier()


@gluon.jit
def _find(slot, time_j, parts):
    """Words of buckets of the slot's queries: four for each sixteen. The loop, which is not unrolled, keeps registers and code few."""
    at = gl.zeros([KEYS], gl.int32, LINE) + (TIMES_AT + 320 * slot)
    found = (at, at, at, at, at, at, at, at, at, at, at, at, at, at, at, at)
    asm: gl.constexpr = _finding()
    for n in range(parts):
        some = gl.inline_asm_elementwise(
            asm, "=&r,=&r,=&r,=&r,r,r,r", [time_j, at + 64 * n, at + (256 + 8 * n)], dtype=(gl.int32, gl.int32, gl.int32, gl.int32),
            is_pure=False, pack=1,
        )  # fmt: skip
        found = found[4:] + some
    return found


@gluon.constexpr_function
def _storing():
    """Assembly: words $1 to $16 to their places."""
    lines = [f"st.shared.v4.b32 [words_at + {2048 * n}], {{${4 * n + 1}, ${4 * n + 2}, ${4 * n + 3}, ${4 * n + 4}}};" for n in range(4)]
    return " ".join([*lines, "mov.b32 $0, 0;"])


@gluon.jit
def _tell(found, words_full):
    """Leaves words of buckets where all find them, and says so."""
    asm: gl.constexpr = _storing()
    gl.inline_asm_elementwise(asm, "=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r", found, dtype=gl.int32, is_pure=False, pack=1)
    gl.thread_barrier()
    mbarrier.arrive(words_full, count=1)


@gluon.jit
def _quarters(x):
    """Pairs [keys, queries / 2] in four."""
    low, high = gl.split(gl.permute(gl.reshape(x, [KEYS, 2, 2, 8]), (0, 3, 1, 2)))
    a, c = gl.split(low)
    b, d = gl.split(high)
    return (
        gl.convert_layout(a, QUARTER, assert_trivial=True), gl.convert_layout(b, QUARTER, assert_trivial=True),
        gl.convert_layout(c, QUARTER, assert_trivial=True), gl.convert_layout(d, QUARTER, assert_trivial=True),
    )  # fmt: skip


@gluon.jit
def _count(x, part, dtype: gl.constexpr):
    """Adds the numbers of pairs [keys, 8] to their threads' sums by bucket."""
    asm: gl.constexpr = _counting(dtype)
    at = gl.zeros([KEYS, 8], gl.int32, QUARTER) + 2048 * part
    gl.inline_asm_elementwise(asm, "=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r", [x, at], dtype=gl.int8, is_pure=False, pack=8)


@gluon.jit
def _step(a, b, c, d, dtype: gl.constexpr):
    """Takes quarters of pairs [keys, 8] along their diagonals."""
    x = gl.reshape(gl.join(gl.join(a, c), gl.join(b, d)), [KEYS, QUERIES // 2])
    asm: gl.constexpr = _stepping(dtype)
    gl.inline_asm_elementwise(asm, "=r,r,r,r,r", [gl.convert_layout(x, PAIRS, assert_trivial=True)], dtype=gl.int8, is_pure=False, pack=4)


@gluon.jit
def add_table_gradients(ds, sums, times, ds_full, ds_empty, words_full, tiles):
    """Adds tiles of scores' gradients [keys, queries] from the diagonal on to those of the tables.

    sums: position_grad, where distance 0 is counted, and time_grad [BUCKETS, KEYS]; times: the cells, the seconds of keys and queries, and
    the last of both.
    """
    position_grad, time_grad, scale = sums
    cells, key_seconds, query_seconds, last = times
    key = gl.arange(0, KEYS, layout=LINE)
    lane = key & 31
    zero = gl.zeros([KEYS], gl.int32, LINE)
    start: gl.constexpr = _starting()
    gl.inline_asm_elementwise(start, "=r,r", [key], dtype=gl.int32, is_pure=False, pack=1)
    n = gl.arange(0, QUERIES, layout=gl.BlockedLayout([1], [32], [4], [0]))
    if cells is not None:
        # Four, which nobody who unrolls loops knows.
        parts = 4 * gl.minimum(tiles, 1)
        for b in range(parts * (BUCKETS // 4)):
            put(4 * key + 512 * b, zero)
        put(CELLS_AT + 4 * key, gl.load(cells + key))
        put(CELLS_AT + 512 + 4 * key, gl.load(cells + KEYS + key))
        time_j = gl.load(key_seconds + gl.minimum(key, last))
        coming = gl.load(query_seconds + gl.minimum(QUERIES + n, last))
        _put_times(0, gl.load(query_seconds + gl.minimum(n, last)))
        _tell(_find(0, time_j, parts), words_full)
    # Numbers of 16 bits are taken two at a time.
    pairs = ds._reinterpret(gl.int32, [KEYS, QUERIES // 2], gl.NVMMASharedLayout(128, 32, 2))
    carry = gl.zeros([KEYS], gl.float32, LINE)
    # How far the tile's first query is from a thread's part of what leaves its warp.
    apart = lane - 31 - key // 32 * 32
    for t in range(tiles):
        if cells is not None:
            _put_times((t + 1) & 1, coming)
            coming = gl.load(query_seconds + gl.minimum((t + 2) * QUERIES + n, last))
            following = _find((t + 1) & 1, time_j, parts)
        mbarrier.wait(ds_full, t & 1)
        x0, x1, x2, x3 = _quarters(pairs.load(PAIRS))
        mbarrier.arrive(ds_empty, count=1)
        if cells is not None:
            for part in range(parts):
                _count(x0, part, ds.dtype)
                x0, x1, x2, x3 = x1, x2, x3, x0
            # The others have these gradients from them, so they have read the words.
            _tell(following, words_full)
        _step(x0, x1, x2, x3, ds.dtype)
        leaving: gl.constexpr = _leaving()
        near, middle, far = gl.inline_asm_elementwise(
            leaving, "=&f,=&f,=&f,r", [key], dtype=(gl.float32, gl.float32, gl.float32), is_pure=False, pack=1
        )
        distance = t * QUERIES + apart
        gl.atomic_add(position_grad + distance, (near + carry) * scale, mask=distance >= 0, sem="relaxed")
        gl.atomic_add(position_grad + distance + 32, middle * scale, mask=distance >= -32, sem="relaxed")
        carry = far
    gl.atomic_add(position_grad + tiles * QUERIES + apart, carry * scale, mask=tiles * QUERIES + apart >= 0, sem="relaxed")
    if cells is not None:
        for b in range(parts * (BUCKETS // 4)):
            x = get(4 * key + 512 * b).to(gl.float32, bitcast=True)
            gl.atomic_add(time_grad + b * KEYS + key, x * scale, mask=x != 0, sem="relaxed")
