"""The error function, the normal distribution, and x times a share: erf, erfc, gelu, silu.

Where the result is a float32, all but erf is computed in float64 from short approximations: that
takes no more operations than to keep float32 roundings apart, and the one rounding left is the
last. Coefficients interpolate at Chebyshev points or are fitted by rewrite/fit.py; docs/accuracy.md
says what becomes of them.
"""
from __future__ import annotations

import math

from muladd.ir import Node, const, make, ops
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.elementwise import absolute
from muladd.tensor.special import (
    PI,
    distance,
    odd_polynomial,
    short_exp,
    sigmoid,
    with_derivative,
)

# fmt: off
ERF_SMALL_32 = (
    1.1283791658483509, -0.37612626666720334, 0.11283594715160218, -0.026854212010626412,
    0.005189087423433974, -0.000801686428716587, 7.875875062685488e-05,
)

ERF_SMALL_64 = (
    1.1283791670955126, -0.37612638903183754, 0.1128379167095512, -0.02686617064512984,
    0.0052239776254232985, -0.000854832702193483, 0.00012055332902888736, -1.4925647567519332e-05,
    1.6462045441468418e-06, -1.6364642158167616e-07, 1.4792401209404813e-08,
    -1.216456005728345e-09, 8.709045129053106e-11, -4.230945824295338e-12,
)

# erfcx(a) (a + 3) in (a - 3) / (a + 3), where erfcx(a) = exp(a^2) erfc(a), for a up to 10 and 27
ERFCX_64 = (
    1.0740069070883398, -0.8833944531698836, 0.5902283571040909, -0.3104672619005659,
    0.11952776128769252, -0.026827234624532965, -0.0012124166341663043, 0.0030340620017659226,
    -0.0005483096241432971, -0.00027677784691708407, 0.00010756108318473934,
    3.03981331712676e-05, -1.746902208320199e-05, -4.7489704476079814e-06, 2.761543628091452e-06,
    9.978809177619063e-07, -4.0179756082766866e-07, -2.3120594472692116e-07,
    4.000277301001403e-08, 4.7457278546126096e-08, 2.1863421523226144e-09,
    -5.986869449013563e-09, -1.4501254703941012e-09,
)

ERFC_EXPONENT_32 = (
    -0.0002765233220998198, 1.6296608448028564, 0.9134982824325562, 0.1564614176750183,
    -0.03639610856771469, 0.006076018791645765, -0.0006386834429576993, 3.144835864077322e-05,
)

# exp(a^2 / 2) times the share of a standard normal above a, as a quotient (fit.py); a up to 14.5,
# to 8e-9
TAIL_ABOVE = (
    47.21253040844968, 41.641728255570584, 17.496203993581446, 3.903587566539653,
    0.39894623896172926,
)

TAIL_BELOW = (
    94.42506006584925, 158.62380557658574, 114.34279688302237, 44.843511540997, 9.785389251724336,
    1.0,
)
# fmt: on

TWO_OVER_SQRT_PI = 1.1283791670955126
NORMAL_PEAK = 1 / math.sqrt(2 * PI)
FARTHEST = 20.0  # a float32 result is at its limit there

# --- the error function ---------------------------------------------------------------------------


def _bell_of(a: Node, scale: float) -> Node:
    """exp(-scale a^2). Rounding the square would cost a^2 units, so a is split: the square of its
    leading bits is exact, and the rest of the square is so small that four powers of it do."""
    half = a.dtype.mantissa // 2 + 1
    whole = dt.int64 if a.dtype is dt.float64 else dt.int32
    head = make(ops.AND, (g.bitcast(a, whole), const(-1 << half, whole, a.shape)))
    head = g.bitcast(head, a.dtype)
    rest = g.mul(g.mul(g.sub(a, head), g.add(a, head)), scale)
    power = g.exp(g.mul(g.mul(head, head), -scale))
    return g.mul(power, g.polynomial(rest, (1.0, -1.0, 1 / 2, -1 / 6, 1 / 24)))


def _erfcx(a: Node, unit: float = 1.0, factor: float = 1.0) -> Node:
    """factor exp(b^2) erfc(b) for b = a / unit >= 0, in float64."""
    inverse = g.div(1.0, g.add(a, 3.0 * unit))
    ratio = g.mul(g.sub(a, 3.0 * unit), inverse)
    return g.mul(inverse, g.polynomial(ratio, [c * unit * factor for c in ERFCX_64]))


def _capped(x: Node, most: float) -> Node:
    """|x| where less than `most`, else that; NaN stays."""
    a = distance(x)
    return g.where(g.gt(a, most), most, a)


def _size(x: Node, most: float) -> Node:
    """|x|, at most that, in float64; for values whose derivative is given, since its own is 0."""
    bits = make(ops.AND, (g.bitcast(x, dt.int32), const(dt.int32.max, dt.int32, x.shape)))
    size = g.bitcast(bits, x.dtype)
    return g.cast(g.where(g.gt(size, most), most, size), dt.float64)


def _erf(x: Node) -> Node:
    return _erf_64(x) if x.dtype is dt.float64 else _erf_32(x)


def _erf_32(x: Node) -> Node:
    """1 - 2^-p(|x|) from 1 on, with p near -log2(erfc) up to 4.1 and growing beyond, where the
    result is 1."""
    a = absolute(x)
    tail = g.sub(1.0, g.exp2(g.neg(g.polynomial(a, ERFC_EXPONENT_32))))
    large = g.where(g.lt(x, 0.0), g.neg(tail), tail)
    return g.where(g.lt(a, 1.0), odd_polynomial(x, ERF_SMALL_32), large)


def _erf_64(x: Node) -> Node:
    a = _capped(x, 10.0)
    tail = g.sub(1.0, g.mul(_bell_of(a, 1.0), _erfcx(a)))
    large = g.where(g.lt(x, 0.0), g.neg(tail), tail)
    return g.where(g.lt(a, 1.0), odd_polynomial(x, ERF_SMALL_64), large)


def _erfc(x: Node) -> Node:
    return _erfc_64(x) if x.dtype is dt.float64 else _erfc_32(x)


def _erfc_32(x: Node) -> Node:
    bell, ratio = _tail(g.mul(_size(x, FARTHEST), math.sqrt(2)))
    beyond = g.cast(g.mul(g.mul(bell, 2.0), ratio), x.dtype)
    return g.where(g.lt(x, 0.0), g.sub(2.0, beyond), beyond)


def _erfc_64(x: Node) -> Node:
    a = _capped(x, 30.0)
    tail = g.mul(_bell_of(a, 1.0), _erfcx(a))
    tail = g.where(g.lt(x, 0.0), g.sub(2.0, tail), tail)
    return g.where(g.lt(a, 0.5), g.sub(1.0, odd_polynomial(x, ERF_SMALL_64)), tail)


def _bell(x: Node) -> Node:
    """The derivative of erf."""
    return g.mul(g.exp(g.neg(g.mul(x, x))), TWO_OVER_SQRT_PI)


def _erf_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.mul(c, _bell(x))


def _erfc_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.neg(g.mul(c, _bell(x)))


def erf(x: Node) -> Node:
    return with_derivative("erf", x, _erf, _erf_derivative)


def erfc(x: Node) -> Node:
    return with_derivative("erfc", x, _erfc, _erfc_derivative)


def _erfinv(x: Node) -> Node:
    """Winitzki's approximation (2008), then three Newton steps on the smaller of erf and erfc, all
    in float64."""
    wide = g.cast(x, dt.float64)
    a = absolute(wide)
    inside = g.lt(a, 1.0)
    safe = g.where(inside, a, 0.0)
    logarithm = g.log(g.mul(g.sub(1.0, safe), g.add(safe, 1.0)))
    half = g.add(g.mul(logarithm, 0.5), 2 / (PI * 0.147))
    y = g.sqrt(g.sub(g.sqrt(g.sub(g.mul(half, half), g.div(logarithm, 0.147))), half))
    for _ in range(3):
        near, far = g.sub(safe, _erf_64(y)), g.sub(_erfc(y), g.sub(1.0, safe))
        error = g.where(g.lt(safe, 0.5), near, far)
        y = g.add(y, g.div(error, _bell(y)))
    y = g.where(inside, y, g.where(g.eq(a, 1.0), float("inf"), g.like(a, float("nan"))))
    return g.cast(g.where(g.lt(wide, 0.0), g.neg(y), y), x.dtype)


def _erfinv_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, _bell(y))


def erfinv(x: Node) -> Node:
    return with_derivative("erfinv", x, _erfinv, _erfinv_derivative)


# --- the normal distribution ----------------------------------------------------------------------


def _tail(a: Node) -> tuple[Node, Node]:
    """exp(-a^2 / 2), and what it must be multiplied by to give the share of a standard normal above
    a. Both are good to 1e-8, for float64 numbers a from 0 to 30."""
    ratio = g.div(g.polynomial(a, TAIL_ABOVE), g.polynomial(a, TAIL_BELOW))
    return short_exp(g.mul(a, a), -0.5), ratio


def _normal(x: Node) -> tuple[Node, Node]:
    """exp(-x^2 / 2) and the share of a standard normal below x, which is erfc(-x sqrt(1/2)) / 2,
    in float64."""
    a = _capped(x, 40.0)
    bell = _bell_of(a, 0.5)
    tail = g.mul(bell, _erfcx(a, math.sqrt(2.0), 0.5))
    tail = g.where(g.lt(x, 0.0), tail, g.sub(1.0, tail))
    small = [c * 0.5 ** (k + 1.5) for k, c in enumerate(ERF_SMALL_64)]
    near = g.add(g.mul(x, g.polynomial(g.mul(x, x), small)), 0.5)
    return bell, g.where(g.lt(a, 0.7), near, tail)


# --- x times a share ------------------------------------------------------------------------------
#
# The share s(x) is that of gelu, of its tanh form, or of silu, and s(x) + s(-x) = 1. So with
# a = |x| the value is max(x, 0) - a s(-a), where s(-a) has all its digits, and the derivatives at x
# and -x add up to 1.


def _rectified_less(x: Node, area: Node) -> Node:
    return g.sub(g.where(g.gt(x, 0.0), x, 0.0), g.cast(area, x.dtype))


def _folded(x: Node, below: Node) -> Node:
    """The derivative at x, given that at -|x|."""
    return g.where(g.lt(x, 0.0), below, g.sub(1.0, below))


def _gelu(x: Node) -> Node:
    if x.dtype is dt.float64:
        return g.mul(x, _normal(x)[1])
    a = _size(x, FARTHEST)
    bell, ratio = _tail(a)
    return _rectified_less(x, g.mul(g.mul(a, ratio), bell))


def _gelu_slope(x: Node) -> Node:
    if x.dtype is dt.float64:
        bell, share = _normal(x)
        return g.add(share, g.mul(g.mul(x, bell), NORMAL_PEAK))
    a = _size(x, FARTHEST)
    bell, ratio = _tail(a)
    return _folded(x, g.cast(g.mul(bell, g.sub(ratio, g.mul(a, NORMAL_PEAK))), x.dtype))


def _gelu_bend(x: Node, y: Node, c: Node) -> Node:
    """The derivative of gelu's slope: the normal density, times 2 - x^2."""
    a = _capped(x, 40.0)
    square = g.mul(a, a)
    bell = g.mul(g.exp(g.mul(square, -0.5)), NORMAL_PEAK)
    return g.mul(c, g.mul(bell, g.sub(2.0, square)))


def _gelu_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.mul(c, with_derivative("gelu_slope", x, _gelu_slope, _gelu_bend))


def gelu(x: Node) -> Node:
    """x times the normal distribution function."""
    return with_derivative("gelu", x, _gelu, _gelu_derivative)


# the tanh form is x sigmoid(2 z): LINEAR and CUBIC are those of 2 z
LINEAR = 2 * math.sqrt(2 / PI)
CUBIC = 0.044715 * LINEAR


def _twice_z(x: Node, factor: float = 1.0) -> Node:
    return g.mul(x, g.add(g.mul(g.mul(x, x), factor * CUBIC), LINEAR))


def _gelu_tanh(x: Node) -> Node:
    if x.dtype is dt.float64:
        return g.mul(x, sigmoid(_twice_z(x)))
    a = _size(x, FARTHEST)
    return _times_sigmoid(x, a, _twice_z(a))


def _gelu_tanh_derivative(x: Node, y: Node, c: Node) -> Node:
    a = _capped(x, FARTHEST)
    return _times_sigmoid_slope(x, _twice_z(a), _twice_z(a, 3.0), c)


def gelu_tanh(x: Node) -> Node:
    """x (1 + tanh(z)) / 2 with z = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, 2016)."""
    return with_derivative("gelu_tanh", x, _gelu_tanh, _gelu_tanh_derivative)


def _silu(x: Node) -> Node:
    if x.dtype is dt.float64:
        return g.mul(x, sigmoid(x))
    a = _size(x, 120.0)
    return _times_sigmoid(x, a, a)


def _silu_derivative(x: Node, y: Node, c: Node) -> Node:
    a = _capped(x, 800.0)
    return _times_sigmoid_slope(x, a, a, c)


def silu(x: Node) -> Node:
    """x sigmoid(x)."""
    return with_derivative("silu", x, _silu, _silu_derivative)


def _times_sigmoid(x: Node, a: Node, t: Node) -> Node:
    """x times the sigmoid of an odd function, which is t at a = |x|."""
    return _rectified_less(x, g.div(a, g.add(short_exp(t), 1.0)))


def _times_sigmoid_slope(x: Node, t: Node, growth: Node, c: Node) -> Node:
    """The cotangent of x; growth is a times the derivative of t."""
    e = g.exp(g.neg(t))
    share = g.div(1.0, g.add(e, 1.0))
    below = g.mul(g.mul(e, share), g.sub(1.0, g.mul(growth, share)))
    return g.mul(c, _folded(x, below))


__all__ = ["erf", "erfc", "erfinv", "gelu", "gelu_tanh", "silu"]
