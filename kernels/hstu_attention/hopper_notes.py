# mypy: ignore-errors
"""What the warps of a Hopper kernel tell each other: numbers in shared memory, in two places that take turns, with barriers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

_FLAT = gl.constexpr(gl.SwizzledSharedLayout(vec=1, per_phase=1, max_phase=1, order=[0]))


@gluon.jit
def scalar(place):
    """The one number of a place in shared memory."""
    return gl.max(place.load(gl.BlockedLayout([1], [32], [gl.num_warps()], [0])), 0)


@gluon.jit
def write(place, x):
    place.store(gl.full([1], x, gl.int32, gl.BlockedLayout([1], [32], [gl.num_warps()], [0])))


@gluon.jit
def notes_for(READERS: gl.constexpr):
    """Room for two notes of four numbers each, which so many groups of warps read."""
    note = gl.allocate_shared_memory(gl.int32, [8, 1], _FLAT)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=READERS)
    return note, full, empty


@gluon.jit
def tell(notes, at, a, b, c, d):
    """Writes note number `at`, once all have read the one two before it; by one warp."""
    note, full, empty = notes
    slot = at & 1
    mbarrier.wait(empty.index(slot), (at // 2 + 1) & 1)
    write(note.index(4 * slot), a)
    write(note.index(4 * slot + 1), b)
    write(note.index(4 * slot + 2), c)
    write(note.index(4 * slot + 3), d)
    mbarrier.arrive(full.index(slot), count=1)


@gluon.jit
def hear(notes, at):
    """Note number `at`, once it is there."""
    note, full, empty = notes
    slot = at & 1
    mbarrier.wait(full.index(slot), (at // 2) & 1)
    a, b = scalar(note.index(4 * slot)), scalar(note.index(4 * slot + 1))
    c, d = scalar(note.index(4 * slot + 2)), scalar(note.index(4 * slot + 3))
    mbarrier.arrive(empty.index(slot), count=1)
    return a, b, c, d


@gluon.jit
def do(asm: gl.constexpr):
    """Instructions without operands, by every thread."""
    thread = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))
    full: gl.constexpr = asm + "; mov.b32 $0, $1;"
    gl.inline_asm_elementwise(full, "=r,r", [thread], dtype=gl.int32, is_pure=False, pack=1)
