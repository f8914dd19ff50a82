"""The remainder of a great float64 angle by quarter turns, right for every finite number.

Payne and Hanek, 1983, "Radian reduction for trigonometric functions", without a branch or a table
in memory. x is m * 2^(24 q) with m a multiple of 2^s, 0 <= s < 24, below 2^77. Of the turns
x / (2 pi), whole ones may be dropped; so of the binary digits of 1/(2 pi), kept as words of 24, all
before word q may. The nine words from there on are chosen by the binary digits of q, each of
which moves the row of words by a power of two. m is split into 27 and 26 bits, so that its
products with words are exact.

No angle of float64 comes nearer than 2^-62 to a multiple of a quarter turn. So the products are
added up in three sums of falling size, the first two of which are exact: multiples of 2^-48, of
2^-96, and the rest.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from muladd.ir import dtype as dt
from muladd.ir import make, ops
from muladd.ir.node import Node

if TYPE_CHECKING:
    from muladd.rewrite.transcendental import _Writer

BITS = 24  # of a word
USED = 9  # words that matter for one angle

# 0, then the binary digits of 1/(2 pi) behind the point, 24 in each word (see fit.py)
WORDS = (
    0x000000, 0x28BE60, 0xDB9391, 0x054A7F, 0x09D5F4, 0x7D4D37, 0x7036D8, 0xA5664F, 0x10E410,
    0x7F9458, 0xEAF7AE, 0xF1586D, 0xC91B8E, 0x909374, 0xB80192, 0x4BBA82, 0x746487, 0x3F877A,
    0xC72C4A, 0x69CFBA, 0x208D7D, 0x4BAED1, 0x213A67, 0x1C09AD, 0x17DF90, 0x4E6475, 0x8E60D4,
    0xCE7D27, 0x2117E2, 0xEF7E4A, 0x0EC7FE, 0x25FFF7, 0x816603, 0xFBCBC4, 0x62D682, 0x9B47DB,
    0x4D9FB3, 0xC9F2C2, 0x6DD3D1, 0x8FD9A7, 0x97FA8B, 0x5D49EE, 0xB1FAF9, 0x7C5ECF, 0x41CE7D,
    0xE294A4, 0xBA9AFE, 0xD7EC47, 0xE35742, 0x1580CC, 0x11BF1E,
)  # fmt: skip

TURN = 6.283185307179586
TURN_HIGH = 6.283185243606567  # the first 26 bits of 2 pi
TURN_LOW = 6.357301909411278e-08


def reduce(w: _Writer, x: Node) -> tuple[Node, Node]:
    """r and n (int64, modulo 4) of a float64 node x >= 2^45: x is n quarter turns and r radians."""
    bits = w.bits(x)
    exponent = w.add(w.shift_right(bits, 52), w.number(BITS - 1023 - 52, dt.int64))
    # exponent // 24, for 0 <= exponent < 1000
    q = w.shift_right(w.mul(exponent, w.number(2731, dt.int64)), 16)
    s = w.add(exponent, w.mul(q, w.number(-BITS, dt.int64)))
    mantissa = w.both_bits(bits, (1 << 52) - 1)
    m = w.add(mantissa, w.shift_left(w.add(s, w.number(1023 + 52, dt.int64)), 52))
    high = w.both_bits(m, -1 << 26)
    m, high = w.float_of(m), w.float_of(high)
    low = w.subtract(m, high)

    words = [w.mul(word, 2.0 ** (-BITS * (j + 1))) for j, word in enumerate(_from_word(w, q))]
    # of the first word, the product with the high part is whole; of the last, the low one is lost
    products = [w.mul(low, words[0])]
    for j in range(1, USED):
        products.append(w.mul(high, words[j]))
        if j < USED - 1:
            products.append(w.mul(low, words[j]))

    coarse: list[Node] = []
    middle: list[Node] = []
    fine: list[Node] = []
    for k, product in enumerate(products):
        if k < 8:  # may be great: whole turns go first, a multiple of 2 at once
            product = w.subtract(product, _rounded(w, product, 1))
        # what a product has above a multiple belongs to the coarser sum
        for total, multiple, cut in ((coarse, -48, range(4, 10)), (middle, -96, range(8, 12))):
            if k in cut:
                part = _rounded(w, product, multiple)
                total.append(part)
                product = w.subtract(product, part)
        (coarse if k < 4 else middle if k < 8 else fine).append(product)
    first, second = _total(w, coarse), _total(w, middle)
    shifted = w.add(w.mul(first, 4.0), w.format.round_whole)
    first = w.subtract(first, w.mul(w.add(shifted, -w.format.round_whole), 0.25))
    turns = w.add(first, second)
    rest = w.add(w.add(w.subtract(first, turns), second), _total(w, fine[::-1]))
    return _radians(w, turns, rest), w.bits(shifted)


def _from_word(w: _Writer, q: Node) -> list[Node]:
    """The nine words from number q (0..41) on, as floats."""
    row: list[Node] = [w.number(float(word)) for word in WORDS]
    for step in (32, 16, 8, 4, 2, 1):
        moved = make(ops.NE, (w.both_bits(q, step), w.number(0, dt.int64)))
        count = USED + step - 1
        row = [
            w.where(moved, row[i + step] if i + step < len(row) else 0.0, row[i])
            for i in range(min(count, len(row)))
        ]
    return row


def _rounded(w: _Writer, x: Node, exponent: int) -> Node:
    """x to the nearest multiple of 2^exponent; |x| is below 2^(exponent + 51)."""
    magic = 1.5 * 2.0 ** (52 + exponent)
    return w.add(w.add(x, magic), -magic)


def _total(w: _Writer, terms: list[Node]) -> Node:
    total = terms[0]
    for term in terms[1:]:
        total = w.add(total, term)
    return total


def _radians(w: _Writer, turns: Node, rest: Node) -> Node:
    """2 pi (turns + rest), rounded about once: the product of the first bits is exact."""
    high = w.float_of(w.both_bits(w.bits(turns), -1 << 27))
    low = w.subtract(turns, high)
    small = w.add(w.mul(low, TURN), w.mul(rest, TURN))
    return w.add(w.mul(high, TURN_HIGH), w.add(w.mul(high, TURN_LOW), small))
