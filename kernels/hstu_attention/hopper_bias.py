# mypy: ignore-errors
"""Position and time biases on Hopper, as numbers to add to half scores.

A small kernel first lays out what is read often: tables as float32 halves, the position table with room on both sides. For the forward with
both biases it makes tables of pairs, of two keys that stand side by side, as two float16 halves in one word: of a distance and the one
before; and of every two buckets, so that one look-up serves two scores.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# Numbers in front of a position table, and twice as many more behind it: pairs that are masked or absent read something too.
MARGIN = gl.constexpr(128)
# The most time buckets, which reach seven years: four times a bucket is a byte.
BUCKETS = gl.constexpr(64)
# Bytes of a head's table of pairs.
TABLE = gl.constexpr(64 * 64 * 4)
# The layouts of words [queries, 32] and of pairs [queries, 64] in which a thread of four warps has those of its scores.
_WORDS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0]], [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 32]
    )
)
_PAIRS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[8, 0], [0, 4], [0, 8], [0, 16], [0, 32]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 64]
    )
)


@gluon.jit
def position_bias(positions, distance, ROWS: gl.constexpr, COLUMNS: gl.constexpr, layout: gl.constexpr, TURNED: gl.constexpr = False):
    """Half of the position bias of scores [queries, keys], or TURNED; distance: from the first key to the first query."""
    i = gl.expand_dims(gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout)), 1)
    j = gl.expand_dims(gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout)), 0)
    # A thread's numbers stand in rows 8 apart, and in columns that differ in all bits but 2 and 4. What depends on the thread is one
    # address; the rest are constants, the same for two numbers of three, which then share a load.
    thread, number = (i & ~8) - (j & 6), (i & 8) - (j & ~6)
    if TURNED:
        thread, number = -thread, -number
    at = (positions + distance + thread.to(gl.int64)) + number.to(gl.int64)
    return gl.inline_asm_elementwise("ld.global.nc.f32 $0, [$1];", "=f,l", [at], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def load_words(words):
    """Words of the buckets of 64 queries and 128 keys."""
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, _WORDS)), 1)
    word = gl.expand_dims(gl.arange(0, 32, layout=gl.SliceLayout(0, _WORDS)), 0)
    # Read once: the L1 cache is for the biases by distance.
    return gl.load(words + (32 * row + word), cache_modifier=".cg")


@gluon.jit
def both_biases(words, place, positions, distance):
    """Half of the position and time biases of 64 queries and 128 keys, as pairs [queries, 64].

    words: of their buckets; place: where the head's table stands; distance: from the first key to the first query.
    """
    i = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, _PAIRS)), 1)
    j = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(0, _PAIRS)), 0)
    # As in `position_bias`.
    thread, number = (i & ~8) - 2 * (j & 3), (i & 8) - 2 * (j & ~3)
    at = (positions + distance + thread.to(gl.int64)) + number.to(gl.int64)
    near = gl.inline_asm_elementwise("ld.global.nc.b32 $0, [$1];", "=r,l", [at], dtype=gl.int32, is_pure=True, pack=1)
    # A pair's place is 4 times its first bucket, which one shift makes for a whole word, and 256 times its second. The rest of the place
    # are signs of the second: zeros.
    four = words << 2
    low = gl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0xdd50;", "=r,r,r", [four, words], dtype=gl.int32, is_pure=True, pack=1)
    high = gl.inline_asm_elementwise("prmt.b32 $0, $1, $2, 0xff72;", "=r,r,r", [four, words], dtype=gl.int32, is_pure=True, pack=1)
    # By query, 4 pairs of 8 keys, 8 of 16, and 2 of those.
    at = gl.permute(gl.reshape(gl.join(low, high), [64, 4, 8, 2]), (0, 2, 3, 1))
    at = gl.convert_layout(gl.reshape(at, [64, 64]), _PAIRS, assert_trivial=True)
    # In this order, all but the pair's place is one number for a warp, which costs nothing to add.
    asm: gl.constexpr = """{ .reg .b32 a, b; mov.b32 a, bias_tables; add.s32 a, a, $3; add.s32 a, a, $2; ld.shared.b32 b, [a];
        add.rn.f16x2 $0, $1, b; }"""
    return gl.inline_asm_elementwise(asm, "=r,r,r,r", [near, at, place], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def spread(pairs, KEYS: gl.constexpr, layout: gl.constexpr):
    """The numbers of pairs [queries, 64], as float32 [queries, KEYS]: all 128, or the first 64."""
    if KEYS == 64:
        pairs, _ = gl.split(gl.permute(gl.reshape(pairs, [64, 2, 32]), (0, 2, 1)))
    asm: gl.constexpr = "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }"
    first, second = gl.inline_asm_elementwise(asm, "=f,=f,r", [pairs], dtype=(gl.float32, gl.float32), is_pure=True, pack=1)
    return gl.convert_layout(gl.reshape(gl.join(first, second), [64, KEYS]), layout, assert_trivial=True)


_NONE = gl.constexpr("")


@gluon.jit
def reserve(BYTES: gl.constexpr, REGISTERS: gl.constexpr = _NONE):
    """Declares shared memory of our own: in Gluon's, a thread cannot read where it pleases. And registers that outlive a statement.

    BYTES: a multiple of 1 KiB, which the copy engine's tiles behind it ask for.
    """
    one = gl.zeros([1], gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    asm: gl.constexpr = _reserving(BYTES, REGISTERS)
    gl.inline_asm_elementwise(asm, "=r,r", [one], dtype=gl.int32, is_pure=False, pack=1)


@gluon.constexpr_function
def _reserving(size, registers):
    return f".shared .align 1024 .b8 bias_tables[{size}]; {registers} mov.b32 $0, $1;"


@gluon.jit
def start_table(place, table):
    """Has a head's table of pairs come to its place, in bytes, by one warp; it is there after `end_table`."""
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    asm: gl.constexpr = _copying()
    gl.inline_asm_elementwise(asm, "=r,r,l", [place + 16 * lane, table + 4 * lane], dtype=gl.int32, is_pure=False, pack=1)


@gluon.constexpr_function
def _copying():
    lines = ["{ .reg .b32 a; mov.b32 a, bias_tables; add.s32 a, a, $1; mov.b32 $0, a;"]
    return " ".join([*lines, *(f"cp.async.cg.shared.global [a + {at}], [$2 + {at}], 16;" for at in range(0, TABLE.value, 512)), "}"])


@gluon.jit
def end_table():
    one = gl.zeros([1], gl.int32, gl.BlockedLayout([1], [32], [1], [0]))
    asm: gl.constexpr = "cp.async.wait_all; mov.b32 $0, $1;"
    gl.inline_asm_elementwise(asm, "=r,r", [one], dtype=gl.int32, is_pure=False, pack=1)
    gl.thread_barrier()


@gluon.jit
def _pair(first, second):
    """Halves of two numbers in one word. float16 ends at 65,504, and the sum of two of them must not pass that."""
    first = gl.minimum(gl.maximum(0.5 * first.to(gl.float32), -30000.0), 30000.0)
    second = gl.minimum(gl.maximum(0.5 * second.to(gl.float32), -30000.0), 30000.0)
    asm: gl.constexpr = "cvt.rn.f16x2.f32 $0, $2, $1;"
    return gl.inline_asm_elementwise(asm, "=r,f,f", [first, second], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit(do_not_specialize=["width", "room", "buckets", "position_stride", "time_stride"])
def prepare_kernel(position_bias, time_bias, positions, by_bucket, by_pair, counter, width, room, buckets, position_stride, time_stride):
    """Fills positions [H, room], and by_bucket [H, BUCKETS] or by_pair [H, BUCKETS, BUCKETS] where given, and zeros the counter.

    With by_pair, positions are pairs too. A program has 512 numbers of a head.
    """
    head, part = gl.program_id(0), gl.program_id(1)
    n = part * 512 + gl.arange(0, 512, layout=gl.BlockedLayout([1], [32], [4], [0]))
    if head + part == 0:
        gl.store(counter, 0)
    position_bias += head * position_stride
    positions += head.to(gl.int64) * room
    at = n - MARGIN
    x = gl.load(position_bias + at, mask=(at >= 0) & (at < width), other=0.0)
    if by_pair is None:
        gl.store(positions + n, 0.5 * x.to(gl.float32), mask=n < room)
    else:
        before = gl.load(position_bias + at - 1, mask=(at >= 1) & (at <= width), other=0.0)
        gl.store(positions + n, _pair(x, before), mask=n < room)
        inside = n < BUCKETS * BUCKETS
        first = gl.load(time_bias + head * time_stride + gl.minimum(n % BUCKETS, buckets - 1), mask=inside, other=0.0)
        second = gl.load(time_bias + head * time_stride + gl.minimum(n // BUCKETS, buckets - 1), mask=inside, other=0.0)
        gl.store(by_pair + head * (BUCKETS * BUCKETS) + n, _pair(first, second), mask=inside)
    if by_bucket is not None:
        x = gl.load(time_bias + head * time_stride + gl.minimum(n, buckets - 1), mask=n < BUCKETS, other=0.0)
        gl.store(by_bucket + head * BUCKETS + n, 0.5 * x.to(gl.float32), mask=n < BUCKETS)
