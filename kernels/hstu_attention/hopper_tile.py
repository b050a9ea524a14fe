# mypy: ignore-errors
"""What the Hopper kernels of HSTU attention do to a tile."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared


@gluon.jit
def tanh(x):
    return gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=r,r", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def narrow(x, dtype: gl.constexpr):
    """float32 to 16 bits, two at a time."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2)
    else:  # noqa: RET505
        return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def keep(x):
    """Uses 16-bit x at no cost, so that its registers, which a product in flight reads, are not given away before here."""
    return gl.inline_asm_elementwise("", "=r,0", [x], dtype=x.dtype, is_pure=False, pack=2)


@gluon.jit
def blank(tile, rows, lines: gl.constexpr):
    """Zeros the rows of a tile from `rows` on: they belong to other sequences, and even a NaN there must not matter."""
    x = tile.load(lines)
    row = gl.expand_dims(gl.arange(0, tile.shape[0], layout=gl.SliceLayout(1, lines)), 1)
    tile.store(gl.where(row < rows, x, gl.zeros_like(x)))
    fence_async_shared()


@gluon.constexpr_function
def whole_lines(width, warps):
    """A layout of [rows, width] in which a thread moves 16 bytes and a warp whole rows."""
    return gl.BlockedLayout([1, 8], [256 // width, width // 8], [warps, 1], [1, 0])
