"""EXP2, EXP, LOG2, SIN and COS written in the language itself: their bits are part of its meaning.

Each expansion is branch-free and table-free and works on a node of any shape. It relies on the
order of its additions (adding a large constant rounds to a whole number), never on whether a
product and a sum are rounded once or twice: the bounds below hold with and without contraction.

Greatest error in units in the last place, over every input: exp2 1.1, exp and log2 1.2, sin and
cos 1.5. The types narrower than float32 are computed in float32 and rounded. Coefficients and
digits come from `fit.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muladd.errors import GraphError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType
from muladd.ir.named import LOG2_E
from muladd.ir.node import Node, const, make, toposort
from muladd.rewrite import great_angles
from muladd.rewrite.engine import keep_sum_form, through_bodies

FusedMultiplyAdd = Callable[[Node, Node, Node], Node]


@dataclass(frozen=True)
class _Format:
    """What the expansions need to know of a binary floating-point format."""

    integer: DType
    mantissa: int
    bias: int
    round_whole: float  # x + round_whole - round_whole is x rounded to a whole number
    root_half_bits: int  # the bits of sqrt(1/2), rounded down
    exp2: tuple[float, ...]
    exp: tuple[float, ...]
    ln2: tuple[float, float]  # digits: the first times any n is exact
    log2: tuple[float, ...]
    sin: tuple[float, ...]
    cos: tuple[float, ...]


_FORMATS = {
    dt.float32: _Format(
        dt.int32, 23, 127, 1.5 * 2**23, 0x3F3504F3,
        exp2=(  # (2^f - 1)/f on [-1/2, 1/2]; greatest relative error 3.5e-9
            0.6931471824645996, 0.24022644758224487, 0.055503591895103455, 0.009618841111660004,
            0.0013391136890277267, 0.00015238006017170846,
        ),
        exp=(  # (e^r - 1)/r on [-ln(2)/2, ln(2)/2]; 3.7e-9
            1.0, 0.49999988079071045, 0.166665181517601, 0.04166964814066887, 0.008368944749236107,
            0.0013745303731411695,
        ),
        ln2=(0.693145751953125, 1.4286068203094173e-06),
        log2=(  # log2(1 + f)/f - 1 on [sqrt(1/2) - 1, sqrt(2) - 1]; 1e-8
            0.4426950514316559, -0.7213473320007324, 0.4808969795703888, -0.36069726943969727,
            0.28861039876937866, -0.2396341860294342, 0.20403163135051727, -0.19046452641487122,
            0.1887807846069336, -0.11400328576564789,
        ),
        sin=(  # (sin(r)/r - 1)/r^2 in r^2, |r| <= 1.04 pi/4; 5.5e-9
            -0.16666650772094727, 0.008331934921443462, -0.00019486133533064276,
        ),
        cos=(  # (cos(r) - 1)/r^2; 2e-10
            -0.5, 0.04166663810610771, -0.0013886974193155766, 2.4396362277911976e-05,
        ),
    ),
    dt.float64: _Format(
        dt.int64, 52, 1023, 1.5 * 2**52, 0x3FE6A09E667F3BCC,
        exp2=(  # 5.6e-18
            0.6931471805599453, 0.24022650695910133, 0.05550410866482226, 0.009618129107593498,
            0.0013333558146380658, 0.00015403530457765014, 1.5252733805508415e-05,
            1.3215435001110848e-06, 1.0178086773687693e-07, 7.073826046303358e-09,
            4.449955477539561e-10,
        ),
        exp=(  # 4.2e-18
            1.0, 0.5000000000000012, 0.16666666666666471, 0.04166666666651979, 0.008333333333458674,
            0.001388888894590293, 0.00019841269581140757, 2.4801491055366002e-05,
            2.755752173876022e-06, 2.7630897243072546e-07, 2.502003026436706e-08,
        ),
        ln2=(0.6931471805601177, -1.7239444525614835e-13),
        log2=(  # 2e-17
            0.4426950408889634, -0.7213475204444824, 0.48089834696299427, -0.3606737602218539,
            0.28853900817732187, -0.24044917355051748, 0.20609929158864998, -0.18033687442893964,
            0.16029944415662228, -0.14426975840258624, 0.13115446335332043, -0.12021798425091594,
            0.11096256644630083, -0.10314876848844197, 0.09646738705865815, -0.0893950459529593,
            0.08161223462995047, -0.08177447110308421, 0.09417800421525714, -0.08692407291026431,
            0.037987514401260844,
        ),
        sin=(  # 6.5e-18
            -0.16666666666666607, 0.008333333333316442, -0.00019841269825110494,
            2.7557312088217853e-06, -2.5050510961803162e-08, 1.5882698219707724e-10,
        ),
        cos=(  # 1.2e-19
            -0.5, 0.04166666666666654, -0.0013888888888864222, 2.4801587283540553e-05,
            -2.7557312694805204e-07, 2.08755050022631e-09, -1.1348675482518607e-11,
        ),
    ),
}  # fmt: skip


class _Writer:
    """Writes elementwise expressions of one shape, at one float format."""

    def __init__(self, x: Node, fma: FusedMultiplyAdd | None) -> None:
        self.shape, self.dtype, self.fma = x.shape, x.dtype, fma
        self.format = _FORMATS[x.dtype]

    def number(self, value: float, dtype: DType | None = None) -> Node:
        return const(value, dtype or self.dtype, self.shape)

    def add(self, a: Node, b: Node | float) -> Node:
        return make(ops.ADD, (a, b if isinstance(b, Node) else self.number(b, a.dtype)))

    def mul(self, a: Node, b: Node | float) -> Node:
        return make(ops.MUL, (a, b if isinstance(b, Node) else self.number(b, a.dtype)))

    def mul_add(self, a: Node, b: Node | float, c: Node | float) -> Node:
        b = b if isinstance(b, Node) else self.number(b, a.dtype)
        c = c if isinstance(c, Node) else self.number(c, a.dtype)
        return self.fma(a, b, c) if self.fma else make(ops.ADD, (make(ops.MUL, (a, b)), c))

    def subtract(self, a: Node, b: Node) -> Node:
        return self.mul_add(b, -1.0, a)

    def shift_left(self, a: Node, bits: int) -> Node:
        return self.mul(a, 1 << bits)

    def shift_right(self, a: Node, bits: int) -> Node:
        return make(ops.DIV, (a, self.number(1 << bits, a.dtype)))

    def both_bits(self, a: Node, mask: int) -> Node:
        return make(ops.AND, (a, self.number(mask, a.dtype)))

    def less(self, a: Node | float, b: Node | float) -> Node:
        a, b = (v if isinstance(v, Node) else self.number(v) for v in (a, b))
        return make(ops.LT, (a, b))

    def where(self, condition: Node, a: Node | float, b: Node | float,
              dtype: DType | None = None) -> Node:  # fmt: skip
        a, b = (v if isinstance(v, Node) else self.number(v, dtype) for v in (a, b))
        return make(ops.WHERE, (condition, a, b))

    def bits(self, a: Node) -> Node:
        return make(ops.BITCAST, (a,), None, dt.int32 if a.dtype is dt.float32 else dt.int64)

    def float_of(self, a: Node) -> Node:
        return make(ops.BITCAST, (a,), None, self.dtype)

    def cast(self, a: Node, dtype: DType) -> Node:
        return make(ops.CAST, (a,), None, dtype)

    def horner(self, x: Node, coefficients: Sequence[float]) -> Node:
        """c0 + x*(c1 + x*(c2 + ...))"""
        total: Node | float = coefficients[-1]
        for c in coefficients[-2::-1]:
            total = self.mul_add(x, total, c)
        assert isinstance(total, Node)
        return total


def exp2(x: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """2 to the power x: 2^n * 2^r with n the nearest whole number and |r| <= 1/2."""
    if x.dtype not in _FORMATS:
        return _through_float32(exp2, x, fma)
    w = _Writer(x, fma)
    below, x = _inside(w, x, 1.0)
    n, first, second = _whole_power(w, x)
    r = w.subtract(x, n)
    value = w.mul_add(r, w.horner(r, w.format.exp2), 1.0)
    return w.where(below, 0.0, w.mul(w.mul(value, first), second))


def exp(x: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """e to the power x: 2^n * e^r with n nearest to x / ln(2), and r = x - n * ln(2).

    ln(2) has two digits. n times the first is exact, and so is what that leaves of x.
    """
    if x.dtype not in _FORMATS:
        return _through_float32(exp, x, fma)
    w = _Writer(x, fma)
    high, low = w.format.ln2
    below, x = _inside(w, x, high)
    n, first, second = _whole_power(w, w.mul(x, LOG2_E))
    r = w.mul_add(n, -low, w.mul_add(n, -high, x))
    value = w.mul_add(r, w.horner(r, w.format.exp), 1.0)
    return w.where(below, 0.0, w.mul(w.mul(value, first), second))


def _inside(w: _Writer, x: Node, unit: float) -> tuple[Node, Node]:
    """Whether x is so low that 2^(x / unit) is 0; and x, but 0 there, and no higher than the
    number from which on the power is infinite. NaN passes both.

    Masks are made of scores of -inf. A product that is 0 because it is too small costs some
    processors a hundred times as much as others do, so it is not calculated.
    """
    f = w.format
    lowest, highest = -float(f.bias + f.mantissa + 2) * unit, float(f.bias + 2) * unit
    below = w.less(x, lowest)
    x = w.where(below, 0.0, x)
    return below, w.where(w.less(highest, x), highest, x)


def _whole_power(w: _Writer, x: Node) -> tuple[Node, Node, Node]:
    """n, the whole number nearest to x, and 2^n in two factors, as it leaves the normal range at
    both ends: 2^floor(n / 2) and 2^ceil(n / 2).

    The sum x + (1.5*2^23 + 2 * bias) leaves n + 2 * bias in its lowest bits. Half of that, rounded
    down and up, are the exponent fields of the factors.
    """
    f = w.format
    magic = f.round_whole + 2 * f.bias
    shifted = w.add(x, magic)
    n = w.add(shifted, -magic)
    fields = w.bits(shifted)
    down = w.shift_right(fields, 1)
    up = w.add(fields, w.mul(down, -1))
    first, second = (w.float_of(w.shift_left(half, f.mantissa)) for half in (down, up))
    return n, first, second


def log2(x: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """Logarithm to base 2: e + log2(m) with x = 2^e * m and m between sqrt(1/2) and sqrt(2).

    Subtracting the bits of sqrt(1/2) from those of x puts e into the exponent field and the
    distance of m from sqrt(1/2) into the mantissa field. Subnormals are scaled up first.
    """
    if x.dtype not in _FORMATS:
        return _through_float32(log2, x, fma)
    w = _Writer(x, fma)
    f = w.format
    up = f.mantissa
    tiny = w.less(x, 2.0 ** (1 - f.bias))
    scaled = w.where(tiny, w.mul(x, 2.0**up), x)
    offset = w.where(tiny, -f.root_half_bits - (up << f.mantissa), -f.root_half_bits, f.integer)
    fields = w.add(w.bits(scaled), offset)
    exponent = w.cast(w.shift_right(fields, f.mantissa), w.dtype)
    mantissa = w.add(w.both_bits(fields, (1 << f.mantissa) - 1), f.root_half_bits)
    part = w.add(w.float_of(mantissa), -1.0)
    value = w.add(exponent, w.mul_add(part, w.horner(part, f.log2), part))
    infinity, nan = float("inf"), float("nan")
    at_most_zero = w.where(make(ops.NE, (x, w.number(0.0))), nan, -infinity)
    positive = w.where(w.less(x, infinity), value, infinity)
    return w.where(w.less(0.0, x), positive, at_most_zero)


def sin(x: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """Sine of x radians, from |x| = n*pi/2 + r with |r| <= pi/4 (or a little more).

    n modulo 4 chooses between the polynomials for sin(r) and cos(r), both of which are computed,
    and the sign. Working on |x| keeps sin(-0.0) = -0.0.
    """
    return _sine(x, 0, fma) if x.dtype in _FORMATS else _through_float32(sin, x, fma)


def cos(x: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """Cosine of x radians: the sine with n one higher."""
    return _sine(x, 1, fma) if x.dtype in _FORMATS else _through_float32(cos, x, fma)


def _sine(x: Node, quarters: int, fma: FusedMultiplyAdd | None) -> Node:
    """sin(x + quarters * pi/2), for 0 or 1 quarter turns."""
    w = _Writer(x, fma)
    f = w.format
    magnitude = w.float_of(w.both_bits(w.bits(x), int(f.integer.max)))
    reduce = _reduce_float32 if x.dtype is dt.float32 else _reduce_float64
    r, quadrant = reduce(magnitude, fma)
    if quarters:
        quadrant = w.add(quadrant, w.number(quarters, f.integer))
    z = w.mul(r, r)
    sine = w.mul_add(w.mul(r, z), w.horner(z, f.sin), r)
    cosine = w.mul_add(z, w.horner(z, f.cos), 1.0)
    is_odd = make(ops.NE, (w.both_bits(quadrant, 1), w.number(0, f.integer)))
    value = w.where(is_odd, cosine, sine)
    # Bit 1 of the quadrant, moved to the sign bit, flips the sign that x has.
    flip = w.shift_left(quadrant, f.integer.bits - 2)
    if not quarters:
        flip = make(ops.XOR, (flip, w.bits(x)))
    sign = w.both_bits(flip, int(f.integer.min))
    return w.float_of(make(ops.XOR, (w.bits(value), sign)))


# For k = 0..3: 2^(26 k) * 2/pi modulo 4, as multiples of 2^-27 and of 2^-56, and the rest.
_TWO_OVER_PI = (
    (0.6366197690367699, 3.3308114738561656e-09, 2.276010073078396e-18),
    (1.7235269770026207, -2.6412272785547586e-09, 5.1651711996897015e-18),
    (1.3227502405643463, -2.447338956490519e-09, 4.220776518111768e-18),
    (1.8357618600130081, 3.0772192433081713e-09, -2.1333796079983287e-18),
)
# pi/2 as multiples of 2^-24, 2^-50, 2^-76, 2^-102, 2^-128, and the rest.
_HALF_PI = (
    1.5707963109016418, 1.5893254712295857e-08, 6.123234262925839e-17,
    -2.6718908186452923e-24, 8.478427566216846e-32, 9.415205388303925e-40,
)  # fmt: skip


def _reduce_float32(x: Node, fma: FusedMultiplyAdd | None) -> tuple[Node, Node]:
    """r (float32, rounded once) and n (int32, modulo 4) of a float32 node, for every x >= 0.

    x * 2/pi modulo 4 is wanted. Where x is a whole multiple of 2^s, every multiple of 4 in
    2^s * 2/pi may be dropped, so x is scaled down by 2^(26 k) below 2^50 and multiplied by the
    bits of 2/pi that matter there. In float64, a float32 times a digit of 29 bits is exact, and
    so are the sums below wherever they cancel: all terms are multiples of one small unit.
    """
    narrow = _Writer(x, fma)
    high = narrow.less(2.0**76 * (1 - 2.0**-24), x)
    x = narrow.where(high, narrow.mul(x, 2.0**-52), x)
    odd = narrow.less(2.0**50 * (1 - 2.0**-24), x)
    x = narrow.where(odd, narrow.mul(x, 2.0**-26), x)
    x = narrow.cast(x, dt.float64)
    w = _Writer(x, fma)
    digits = [
        w.where(high, w.where(odd, d3, d2), w.where(odd, d1, d0))
        for d0, d1, d2, d3 in zip(*_TWO_OVER_PI)
    ]
    magic = w.format.round_whole
    first = w.mul(x, digits[0])
    shifted = w.add(first, magic)
    rest = w.subtract(first, w.add(shifted, -magic))
    shifted_again = w.add(w.mul_add(x, digits[1], rest), magic)
    rest = w.subtract(rest, w.add(shifted_again, -magic))
    rest = w.mul_add(x, digits[2], w.mul_add(x, digits[1], rest))
    r = w.cast(w.mul(rest, 1.5707963267948966), dt.float32)
    quadrant = w.add(w.bits(shifted), w.bits(shifted_again))
    return r, w.cast(quadrant, dt.int32)


def _reduce_float64(x: Node, fma: FusedMultiplyAdd | None) -> tuple[Node, Node]:
    """r and n (int64, modulo 4) of a float64 node x >= 0. Beyond 2^45 it takes `great_angles`.

    n is split into a multiple of 2^26 and a rest of 26 bits; each times a 26-bit digit of pi/2 is
    exact, and the products are subtracted in falling order of size. All sums down to the digits of
    2^-50 are exact; the rounding of the next one is kept (`lost`) and added back.
    """
    w = _Writer(x, fma)
    magic = w.format.round_whole
    coarse = magic * 2.0**26
    shifted = w.mul_add(x, 0.6366197723675814, magic)
    n = w.add(shifted, -magic)
    high = w.add(w.add(n, coarse), -coarse)
    low = w.subtract(n, high)
    p = [-digit for digit in _HALF_PI]
    r = x
    for part, digit in ((high, p[0]), (low, p[0]), (high, p[1]), (low, p[1]), (high, p[2])):
        r = w.mul_add(part, digit, r)
    next_term = w.mul_add(low, p[2], w.mul(high, p[3]))
    total = w.add(r, next_term)
    lost = w.add(w.subtract(r, total), next_term)
    lost = w.add(lost, w.mul_add(low, p[3], w.mul(high, p[4])))
    r = w.add(w.add(total, lost), w.mul_add(low, p[4], w.mul(n, p[5])))
    great = w.less(2.0**45, x)
    great_r, great_n = great_angles.reduce(w, x)
    great_r = w.where(w.less(x, float("inf")), great_r, float("nan"))
    return w.where(great, great_r, r), w.where(great, great_n, w.bits(shifted))


def _through_float32(expansion: Callable, x: Node, fma: FusedMultiplyAdd | None) -> Node:
    wide = make(ops.CAST, (x,), None, dt.float32)
    return make(ops.CAST, (expansion(wide, fma),), None, x.dtype)


_EXPANSIONS = {ops.EXP2: exp2, ops.EXP: exp, ops.LOG2: log2, ops.SIN: sin, ops.COS: cos}


def expand(node: Node, fma: FusedMultiplyAdd | None = None) -> Node:
    """The expansion of one of these nodes. Raises GraphError for any other."""
    if node.op not in _EXPANSIONS:
        names = ", ".join(op.name for op in _EXPANSIONS)
        raise GraphError(f"expand: {node.op.name} has no expansion; expected one of {names}")
    return _EXPANSIONS[node.op](node.srcs[0], fma)


def expand_all(outputs: Sequence[Node], fma: FusedMultiplyAdd | None = None) -> tuple[Node, ...]:
    """The outputs with each of these operations expanded, inside bodies too (each body once).

    A SUM over EXP2 does not become a SUM over the product that its expansion ends in.
    """
    return through_bodies(outputs, lambda outs: _expand_graph(outs, fma), keep_sum_form)


def _expand_graph(outputs: tuple[Node, ...], fma: FusedMultiplyAdd | None) -> tuple[Node, ...]:
    done: dict[Node, Node] = {}
    for node in toposort(outputs):
        srcs = tuple([done[s] for s in node.srcs])
        if node.op in _EXPANSIONS:
            done[node] = _EXPANSIONS[node.op](srcs[0], fma)
        else:
            done[node] = node if srcs == node.srcs else keep_sum_form(node, srcs)
    return tuple(done[o] for o in outputs)
