"""The kinds of GGUF tensors: one row each, from which a decoder and a Tensor expression follow.

Every kind of block says the same thing in another way: an element is

    scale * code + offset          (float32; the product rounded, then the sum)

where a code is a small whole number per element, and scale and offset belong to a group of
neighbours. A row says how the three lie in the block's bytes. The layouts are those of ggml
(`ggml-common.h`) and of the GGUF specification.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muladd.formats.quant.fields import Array, Block
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType

Part = Callable[[Block], Array]


@dataclass(frozen=True, eq=False)
class Kind:
    """How a tensor's elements are stored: in blocks of `elements` neighbours of a row in `bytes`.

    Of a block, `code` gives (..., elements) whole numbers -128 to 127, `scale` and `offset` give
    float32 (..., groups). A plain kind has a `dtype` instead, and blocks of one element.
    """

    name: str
    number: int  # in a file
    elements: int
    bytes: int
    code: Part | None = None
    scale: Part | None = None
    offset: Part | None = None
    dtype: DType | None = None

    def size(self, elements: int) -> int:
        """Bytes of a row (or any whole number of blocks) of so many elements."""
        return elements // self.elements * self.bytes

    def __repr__(self) -> str:
        return self.name


def _plain(name: str, number: int, dtype: DType) -> Kind:
    return Kind(name, number, 1, dtype.itemsize, dtype=dtype)


# --- parts that several kinds share --------------------------------------------------------------


def _low_six(b: Block) -> Array:
    """Eight scales of 6 bits of Q4_K and Q5_K: four in one piece, four in two."""
    return b.join(
        b.bits(6, 4, 4, shifts=(0,)),
        b.bits(4, 12, 4, shifts=(0,)) + b.bits(2, 4, 4, shifts=(6,)) * 16,
    )


def _high_six(b: Block) -> Array:
    """Eight minima of 6 bits of Q4_K and Q5_K, packed as the scales are."""
    return b.join(
        b.bits(6, 8, 4, shifts=(0,)),
        b.bits(4, 12, 4, shifts=(4,)) + b.bits(2, 8, 4, shifts=(6,)) * 16,
    )


def _scaled(d: Array, factors: Array, b: Block) -> Array:
    return d * b.arithmetic.cast(factors, "float32")


def _half_odd(d: Array, factors: Array, b: Block, step: float) -> Array:
    """d * (factor + 1/2) * step, in this order: IQ2 and IQ3_XXS."""
    return d * (b.arithmetic.cast(factors, "float32") + 0.5) * step


def _eighths(index: Array, minus: Array, b: Block) -> Array:
    """IQ1's codes, in eighths: points of -1, 0, 1, all of a point moved up or down by one eighth.
    `minus` is 1 per point that moves down."""
    points = b.points("IQ1_S", index)
    moved = (1 - minus * 2)[..., None]
    eight = points.reshape(*index.shape, 8) * 8 + moved
    return b.flat(eight, 2)


def _repeat(x: Array, times: int) -> Array:
    """Each element `times` times in a row, whether array or tensor."""
    tensor = hasattr(x, "repeat_interleave")
    return x.repeat_interleave(times, -1) if tensor else x.repeat(times, -1)


# --- IQ1 -----------------------------------------------------------------------------------------


def _iq1_s_code(b: Block) -> Array:
    low, high = b.bytes(2, 32), b.bits(1, 34, 16)  # 16 bits per 32 elements, lowest first
    threes = [b.every(high, 16, 3 * i, 1) + b.every(high, 16, 3 * i + 1, 1) * 2
              + b.every(high, 16, 3 * i + 2, 1) * 4 for i in range(4)]  # fmt: skip
    top = b.flat(b.arithmetic.join([t[..., None] for t in threes], -1), 2)
    return _eighths(low + top * 256, _repeat(b.every(high, 16, 15, 1), 4), b)


def _iq1_s_scale(b: Block) -> Array:
    odd = b.every(b.bits(3, 34, 16, shifts=(4,)), 2, 1, 1) * 2 + 1
    return _scaled(b.half(0), odd, b) * 0.125


def _iq1_m_code(b: Block) -> Array:
    low, high = b.bytes(0, 32), b.bits(4, 32, 16)
    return _eighths(low + (high & 7) * 256, high >> 3, b)


def _iq1_m_scale(b: Block) -> Array:
    """A float16 in the top nibbles of four 16-bit words; below each, four 3-bit scales."""
    words = [b.bytes(48 + 2 * i) + b.bytes(49 + 2 * i) * 256 for i in range(4)]
    bits = [((w >> 12) & 15) * (1 << (4 * i)) for i, w in enumerate(words)]
    d = b.as_half(bits[0] + bits[1] + bits[2] + bits[3])
    scales = b.join(*[(w >> (3 * i)) & 7 for w in words for i in range(4)])
    return _scaled(d, scales * 2 + 1, b) * 0.125


# --- IQ2, IQ3 ------------------------------------------------------------------------------------


def _iq2_xxs_code(b: Block) -> Array:
    index = b.every(b.bytes(2, 64), 8, 0, 4)
    return b.points("IQ2_XXS", index) * b.even_signs(b.four_sevens(2, 64, 8))


def _iq2_xs_code(b: Block) -> Array:
    """Per 8 elements a 16-bit word: 9 bits of index, 7 of signs."""
    word = b.bytes(2, 64)
    low, high = b.every(word, 2, 0, 1), b.every(word, 2, 1, 1)
    return b.points("IQ2_XS", low + (high & 1) * 256) * b.even_signs(high >> 1)


def _iq2_s_code(b: Block) -> Array:
    return b.points("IQ2_S", b.bytes(2, 32) + b.bits(2, 66, 8) * 256) * b.signs(34, 32)


def _iq3_xxs_code(b: Block) -> Array:
    return b.points("IQ3_XXS", b.bytes(2, 64)) * b.even_signs(b.four_sevens(66, 32, 4))


def _iq3_s_code(b: Block) -> Array:
    return b.points("IQ3_S", b.bytes(2, 64) + b.bits(1, 66, 8) * 256) * b.signs(74, 32)


def _iq4_xs_scale(b: Block) -> Array:
    return _scaled(b.half(0), b.bits(4, 4, 4) + b.bits(2, 2, 2) * 16 - 32, b)


# --- the table -----------------------------------------------------------------------------------

# fmt: off
_ROWS = (
    _plain("F32", 0, dt.float32),
    _plain("F16", 1, dt.float16),
    _plain("BF16", 30, dt.bfloat16),
    _plain("F64", 28, dt.float64),
    _plain("I8", 24, dt.int8),
    _plain("I16", 25, dt.int16),
    _plain("I32", 26, dt.int32),
    _plain("I64", 27, dt.int64),

    # 32 elements with one scale
    Kind("Q4_0", 2, 32, 18, lambda b: b.bits(4, 2, 16, 16) - 8, lambda b: b.half(0)),
    Kind("Q4_1", 3, 32, 20, lambda b: b.bits(4, 4, 16, 16), lambda b: b.half(0),
         lambda b: b.half(2)),
    Kind("Q5_0", 6, 32, 22, lambda b: b.bits(4, 6, 16, 16) + b.bits(1, 2, 4) * 16 - 16,
         lambda b: b.half(0)),
    Kind("Q5_1", 7, 32, 24, lambda b: b.bits(4, 8, 16, 16) + b.bits(1, 4, 4) * 16,
         lambda b: b.half(0), lambda b: b.half(2)),
    Kind("Q8_0", 8, 32, 34, lambda b: b.int8(2, 32), lambda b: b.half(0)),
    Kind("Q8_1", 9, 32, 36, lambda b: b.int8(4, 32), lambda b: b.half(0)),

    # 256 elements, groups of 16 or 32 of which have small scales of their own
    Kind("Q2_K", 10, 256, 84, lambda b: b.bits(2, 16, 64, 32),
         lambda b: _scaled(b.half(80), b.bits(4, 0, 16, shifts=(0,)), b),
         lambda b: -_scaled(b.half(82), b.bits(4, 0, 16, shifts=(4,)), b)),
    Kind("Q3_K", 11, 256, 110, lambda b: b.bits(2, 32, 64, 32) + b.bits(1, 0, 32, 32) * 4 - 4,
         lambda b: _scaled(b.half(108), b.bits(4, 96, 8, 8) + b.bits(2, 104, 4, 4) * 16 - 32, b)),
    Kind("Q4_K", 12, 256, 144, lambda b: b.bits(4, 16, 128, 32),
         lambda b: _scaled(b.half(0), _low_six(b), b),
         lambda b: -_scaled(b.half(2), _high_six(b), b)),
    Kind("Q5_K", 13, 256, 176, lambda b: b.bits(4, 48, 128, 32) + b.bits(1, 16, 32, 32) * 16,
         lambda b: _scaled(b.half(0), _low_six(b), b),
         lambda b: -_scaled(b.half(2), _high_six(b), b)),
    Kind("Q6_K", 14, 256, 210, lambda b: b.bits(4, 0, 128, 64) + b.bits(2, 128, 64, 32) * 16 - 32,
         lambda b: _scaled(b.half(208), b.int8(192, 16), b)),
    Kind("Q8_K", 15, 256, 292, lambda b: b.int8(4, 256), lambda b: b.single(0)),

    # points of codebooks
    Kind("IQ1_S", 19, 256, 50, _iq1_s_code, _iq1_s_scale),
    Kind("IQ1_M", 29, 256, 56, _iq1_m_code, _iq1_m_scale),
    Kind("IQ2_XXS", 16, 256, 66, _iq2_xxs_code,
         lambda b: _half_odd(b.half(0), b.every(b.bits(4, 2, 64, shifts=(4,)), 8, 7, 1), b, 0.25)),
    Kind("IQ2_XS", 17, 256, 74, _iq2_xs_code,
         lambda b: _half_odd(b.half(0), b.bits(4, 66, 8), b, 0.25)),
    Kind("IQ2_S", 22, 256, 82, _iq2_s_code,
         lambda b: _half_odd(b.half(0), b.bits(4, 74, 8), b, 0.25)),
    Kind("IQ3_XXS", 18, 256, 98, _iq3_xxs_code,
         lambda b: _half_odd(b.half(0), b.every(b.bits(4, 66, 32, shifts=(4,)), 4, 3, 1), b, 0.5)),
    Kind("IQ3_S", 21, 256, 110, _iq3_s_code,
         lambda b: _scaled(b.half(0), b.bits(4, 106, 4) * 2 + 1, b)),

    # 4-bit codes for chosen values
    Kind("IQ4_NL", 20, 32, 18, lambda b: b.values("NORMAL_4", b.bits(4, 2, 16, 16)),
         lambda b: b.half(0)),
    Kind("IQ4_XS", 23, 256, 136, lambda b: b.values("NORMAL_4", b.bits(4, 8, 128, 16)),
         _iq4_xs_scale),
    Kind("MXFP4", 39, 32, 17, lambda b: b.values("TWICE_E2M1", b.bits(4, 1, 16, 16)),
         lambda b: b.values("HALF_E8M0", b.bytes(0))),
    Kind("NVFP4", 40, 64, 36, lambda b: b.values("TWICE_E2M1", b.bits(4, 4, 32, 8)),
         lambda b: b.values("HALF_E4M3", b.bytes(0, 4))),

    # -1, 0 and 1; -1 to 2; -1 and 1
    Kind("TQ1_0", 34, 256, 54,
         lambda b: b.join(b.trits(0, 32, 5), b.trits(32, 16, 5), b.trits(48, 4, 4)) - 1,
         lambda b: b.half(52)),
    Kind("TQ2_0", 35, 256, 66, lambda b: b.bits(2, 0, 64, 32) - 1, lambda b: b.half(64)),
    Kind("Q2_0", 42, 64, 18, lambda b: b.bits(2, 2, 16) - 1, lambda b: b.half(0)),
    Kind("Q1_0", 41, 128, 18, lambda b: b.bits(1, 2, 16) * 2 - 1, lambda b: b.half(0)),
)
# fmt: on

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ROWS}
BY_NUMBER: dict[int, Kind] = {kind.number: kind for kind in _ROWS}
# numbers that once meant something, and what to do about such a file
RETIRED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
