# mypy: ignore-errors
"""Which block a program of a Hopper kernel takes next.

A job is a block of 128 tokens of a sequence and head; how long it takes goes by how many blocks of the sequence stand on its other side.
Jobs are numbered over the blocks that sequences have, so that ragged batches are as dense ones. Those of a few sequences go together, the
longest first: the last jobs are short, and what they read stays in the L2 cache.

One warp finds a job by its number. It knows the blocks of 128 sequences at a time, four a thread.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_BLOCK = gl.constexpr(128)
_SEQUENCES = gl.constexpr(128)


@gluon.jit
def _sum(a, b):
    return a + b


@gluon.jit
def _blocks_of(offsets, first, sequences, blocks, heads):
    """Of 128 sequences from `first` on: how many blocks each has, and how many jobs it and those before it."""
    lanes: gl.constexpr = gl.BlockedLayout([_SEQUENCES // 32], [32], [1], [0])
    sequence = first + gl.arange(0, _SEQUENCES, layout=lanes)
    row = gl.load(offsets + gl.minimum(sequence, sequences))
    end = gl.load(offsets + gl.minimum(sequence + 1, sequences))
    mine = gl.minimum(((end - row).to(gl.int32) + _BLOCK - 1) // _BLOCK, blocks)
    return mine, gl.associative_scan(mine * heads, 0, _sum)


@gluon.jit
def seek(number, first, before, mine, up_to, offsets, sequences, blocks, heads):
    """Goes on to the 128 sequences, `first` and on, that have job `number`; before: the jobs of those in front of them. If none has it,
    `first` is no sequence."""
    while (number >= before + gl.max(up_to, 0)) & (first < sequences):
        first += _SEQUENCES
        before += gl.max(up_to, 0)
        mine, up_to = _blocks_of(offsets, first, sequences, blocks, heads)
    return first, before, mine, up_to


@gluon.jit
def begin(offsets, sequences, blocks, heads):
    """The number of a program's first job, and what `seek` goes on from."""
    number = gl.program_id(0)
    first, before = gl.to_tensor(0), gl.to_tensor(0)
    mine, up_to = _blocks_of(offsets, first, sequences, blocks, heads)
    first, before, mine, up_to = seek(number, first, before, mine, up_to, offsets, sequences, blocks, heads)
    return number, first, before, mine, up_to


@gluon.jit
def find(number, mine, up_to, heads, TOGETHER: gl.constexpr):
    """Of job `number` of 128 sequences: which of them, which head, and how many blocks long it is; TOGETHER: jobs of a group, about."""
    together = (up_to - 1) // TOGETHER
    group = (gl.min(gl.where(up_to > number, up_to, 1 << 30), 0) - 1) // TOGETHER
    number -= gl.max(gl.where(together < group, up_to, 0), 0)
    mine = gl.where(together == group, mine, 0)
    # More jobs than its number are longer than `shorter`, and no more than that are longer than `length`, which is 1 more in the end.
    shorter, length = gl.to_tensor(0), gl.max(mine, 0)
    while length - shorter > 1:
        middle = (shorter + length) // 2
        longer = gl.sum(gl.maximum(mine - middle, 0), 0) * heads
        shorter, length = gl.where(longer > number, middle, shorter), gl.where(longer > number, length, middle)
    number -= gl.sum(gl.maximum(mine - length, 0), 0) * heads
    which = gl.associative_scan((mine >= length).to(gl.int32), 0, _sum)
    return gl.sum((which <= number // heads).to(gl.int32), 0), number % heads, length


@gluon.jit
def ask(counter):
    """Asks for the number of the next job; `answer` waits for it."""
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    return gl.atomic_add(counter + lane, gl.full_like(lane, 1), mask=lane == 0, sem="relaxed")


@gluon.jit
def answer(asked):
    lane = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [1], [0]))
    return gl.num_programs(0) + gl.sum(gl.where(lane == 0, asked, 0), 0)
