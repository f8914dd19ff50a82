"""Special functions as polynomials: arcus functions, expm1, log1p, tanh, the log-gamma family.

The coefficients interpolate each function at Chebyshev points, computed with 40 digits, or are
fitted by rewrite/fit.py; the *_32 sets are good to about 6e-8 relative, the *_64 sets to about
2e-16. docs/accuracy.md says what becomes of that. A function whose polynomial
would have a poor derivative carries its exact derivative as the body's own gradient.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from muladd.ir import Body, CallArg, DType, Node, const, make, ops, param
from muladd.ir import dtype as dt
from muladd.ir.named import LOG2_E
from muladd.tensor import graph as g
from muladd.tensor.elementwise import absolute, floor

# fmt: off
ATAN_32 = (
    0.9999999995535376, -0.33333322488911593, 0.19999558100363982, -0.14278576024807985,
    0.1105077127584966, -0.08785043282362845, 0.06685281517877424, -0.04392841073326746,
    0.021912945865448393, -0.007030669470424213, 0.001057607438057242,
)

ATAN_64 = (
    1.0, -0.3333333333333325, 0.19999999999986157, -0.14285714284820428, 0.11111111080383854,
    -0.09090908440338843, 0.07692298432985685, -0.06666572806289763, 0.05881647236717415,
    -0.05259103789485882, 0.0474370596643217, -0.042828645702794474, 0.038129809754225044,
    -0.03264116292977077, 0.0259471057039563, -0.018386836817918875, 0.011122014669752633,
    -0.005484778971809356, 0.002090633535263676, -0.0005727925781292097, 9.978410811953032e-05,
    -8.26799581733715e-06,
)

ASIN_32 = (
    1.0000000002307783, 0.16666657639575913, 0.07500571381024686, 0.04450870949865153,
    0.03185718889411276, 0.014295256037820107, 0.0376771383418486,
)

ASIN_64 = (
    1.0, 0.16666666666666796, 0.07499999999966611, 0.04464285717686322, 0.030381942642327187,
    0.022372216106072148, 0.017351600625343435, 0.01398088299217101, 0.011398850408440755,
    0.010778675120995992, 0.0037180577483250537, 0.02166805886905636, -0.02093065831518245,
    0.03257934796692842,
)

EXPM1_32 = (
    1.0, 0.5000000425920544, 0.16666667139493802, 0.041665304193438314, 0.008333182071584195,
    0.0013997773379590332, 0.000199621762266955,
)

EXPM1_64 = (
    1.0, 0.5, 0.1666666666666722, 0.04166666666666706, 0.008333333333075146, 0.001388888888870455,
    0.00019841270281832442, 2.4801587616145414e-05, 2.7556979476271894e-06,
    2.7557076636642725e-07, 2.517282043357941e-08, 2.0962955815976076e-09,
)
# e^r for |r| <= ln(2)/2, to 2e-9 (fit.py)
EXP_SHORT = (
    1.0000000005920204, 1.0000000361258987, 0.4999999149303717, 0.1666642083211943,
    0.041668358032961865, 0.0083747715201001, 0.0013829420598721115,
)
# (e^r - 1) / r there, to 3e-10 (fit.py)
EXPM1_SHORT = (
    1.0000000000356013, 0.5000000046541837, 0.16666666182981507, 0.0416663548181665,
    0.008333417764604173, 0.00139409803464411, 0.0001983297644886371,
)
# (tanh(x)/x - 1)/x^2 in x^2, |x| <= 0.55
TANH_64 = (
    -0.3333333333333225, 0.1333333333316144, -0.05396825387307988, 0.02186948591221714,
    -0.00886319375171986, 0.0035917141702554185, -0.0014531915403968956, 0.0005790673011807458,
    -0.0002101954504021689, 5.0951618933990804e-05,
)
# fmt: on

PI = 3.141592653589793

# sum of B(2k) / (2k (2k-1)) x^(1-2k), the Stirling series of log gamma (Abramowitz & Stegun 6.1.40)
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def pick(d: DType, single: Sequence[float], double: Sequence[float]) -> Sequence[float]:
    """The coefficients good enough for a dtype."""
    return double if d is dt.float64 else single


Function = Callable[[Node], Node]
Derivative = Callable[[Node, Node, Node], Node]  # (x, y, cotangent of y) -> cotangent of x


def with_derivative(name: str, x: Node, function: Function, derivative: Derivative) -> Node:
    """function(x) as one CALL whose gradient is `derivative`, itself differentiable."""
    body = _body(name, x.dtype, x.shape, function, derivative)
    return make(ops.CALL, (x,), CallArg(body))


@lru_cache(maxsize=1024)
def _body(
    name: str, d: DType, shape: tuple, function: Function, derivative: Derivative
) -> Body:  # fmt: skip
    x, y, cotangent = (param(i, shape, d) for i in range(3))
    gradient = Body((derivative(x, y, cotangent),), (x, y, cotangent), f"{name}_gradient")
    return Body((function(x),), (x,), name, gradient)


def distance(x: Node) -> Node:
    """|x|, whose derivative at 0 is 1: for what is written differently on either side of 0, and is
    one function. Derivatives of all orders are then those of one of the two sides."""
    return g.where(g.lt(x, 0.0), g.neg(x), x)


def odd_polynomial(x: Node, coefficients: Sequence[float]) -> Node:
    """x times a polynomial in x^2 that begins near 1. x itself is added last, so that all other
    roundings are of small numbers."""
    first, *rest = coefficients
    return g.add(x, g.mul(x, g.polynomial(g.mul(x, x), (first - 1.0, *rest))))


# --- arcus functions ------------------------------------------------------------------------------


def _quarters_less(n: int, x: Node) -> Node:
    """n pi/2 - x, with two digits of pi."""
    high = const(n * PI / 2, x.dtype).arg
    low = (n * PI / 2 - high) + n * 6.123233995736766e-17
    return g.sub(high, g.sub(x, low))


def _atan(x: Node) -> Node:
    a = absolute(x)
    steep = g.lt(g.like(a, 1.0), a)
    t = g.where(steep, g.div(1.0, g.where(steep, a, 1.0)), a)
    angle = odd_polynomial(t, pick(x.dtype, ATAN_32, ATAN_64))
    angle = g.where(steep, _quarters_less(1, angle), angle)
    return g.where(g.lt(x, 0.0), g.neg(angle), angle)


def _atan_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, g.add(g.mul(x, x), 1.0))


def atan(x: Node) -> Node:
    return with_derivative("atan", x, _atan, _atan_derivative)


def _arc(x: Node) -> tuple[Node, Node]:
    """(whether |x| > 1/2, asin of |x|, or where that is so, of sqrt((1 - |x|) / 2), twice)."""
    a = absolute(x)
    outer = g.gt(a, 0.5)
    t = g.where(outer, g.sqrt(g.mul(g.sub(1.0, a), 0.5)), a)
    angle = odd_polynomial(t, pick(x.dtype, ASIN_32, ASIN_64))
    return outer, g.where(outer, g.mul(angle, 2.0), angle)


def _asin(x: Node) -> Node:
    outer, angle = _arc(x)
    angle = g.where(outer, _quarters_less(1, angle), angle)
    return g.where(g.lt(x, 0.0), g.neg(angle), angle)


def _acos(x: Node) -> Node:
    """pi/2 - asin(x), but near the ends what is left of 0 or pi."""
    outer, angle = _arc(x)
    below = g.lt(x, 0.0)
    inner = _quarters_less(1, g.where(below, g.neg(angle), angle))
    return g.where(outer, g.where(below, _quarters_less(2, angle), angle), inner)


def _asin_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, g.sqrt(g.mul(g.sub(1.0, x), g.add(x, 1.0))))


def asin(x: Node) -> Node:
    return with_derivative("asin", x, _asin, _asin_derivative)


def _acos_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.neg(_asin_derivative(x, y, c))


def acos(x: Node) -> Node:
    return with_derivative("acos", x, _acos, _acos_derivative)


# --- the cosine -----------------------------------------------------------------------------------


def _cos(x: Node) -> Node:
    """What runs it does not round the sum (ir/named.py)."""
    return g.sin(g.add(x, PI / 2))


def _cos_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.neg(g.mul(c, g.sin(x)))


def cos(x: Node) -> Node:
    return with_derivative("cos", x, _cos, _cos_derivative)


# --- exponential and logarithm near their zeros ---------------------------------------------------


def expm1(x: Node) -> Node:
    """exp(x) - 1 without cancellation near 0."""
    small = g.lt(absolute(x), 0.5)
    near = g.where(small, x, 0.0)
    series = g.mul(near, g.polynomial(near, pick(x.dtype, EXPM1_32, EXPM1_64)))
    return g.where(small, series, g.sub(g.exp(x), 1.0))


def log1p(x: Node) -> Node:
    """log(1 + x): what rounding 1 + x lost is added back to first order."""
    u = g.add(x, 1.0)
    near = g.lt(absolute(x), 1.0)
    lost = g.sub(x, g.sub(u, 1.0))
    correction = g.div(g.where(near, lost, 0.0), g.where(near, u, 1.0))
    return g.add(g.log(u), correction)


def _tanh(x: Node) -> Node:
    """e / (e + 2) with e = exp(2x) - 1, in float64 for results of float32; for those of float64
    (1 - q) / (1 + q) with q = exp(-2|x|), and an odd polynomial where that cancels."""
    if x.dtype is not dt.float64:
        a = g.where(g.gt(x, 20.0), 20.0, x)  # NaN stays
        e = short_expm1(g.cast(g.where(g.lt(a, -20.0), -20.0, a), dt.float64), 2.0)
        value = g.cast(g.div(e, g.add(e, 2.0)), x.dtype)
        return g.where(g.ne(x, 0.0), value, x)  # -0.0 stays
    a = absolute(x)
    q = g.exp(g.mul(a, -2.0))
    large = g.div(g.sub(1.0, q), g.add(q, 1.0))
    large = g.where(g.lt(x, 0.0), g.neg(large), large)
    near = g.lt(a, 0.55)
    small = g.where(near, x, 0.0)
    return g.where(near, odd_polynomial(small, (1.0, *TANH_64)), large)


def _tanh_derivative(x: Node, y: Node, c: Node) -> Node:
    """4 q / (1 + q)^2 with q = exp(-2|x|), which does not cancel as 1 - y^2 does."""
    q = g.exp(g.mul(distance(x), -2.0))
    share = g.div(2.0, g.add(q, 1.0))
    return g.mul(c, g.mul(g.mul(q, share), share))


def tanh(x: Node) -> Node:
    """sinh(x) / cosh(x)."""
    return with_derivative("tanh", x, _tanh, _tanh_derivative)


def _reduced(x: Node, scale: float) -> tuple[Node, Node]:
    """2^n in float64, and r with exp(scale x) = 2^n exp(scale r). Only for |scale x| < 700.

    Adding 1.5 * 2^52 + 1023 rounds to the whole number n and leaves n + 1023 in the lowest bits,
    which are the exponent field of 2^n.
    """
    magic = 1.5 * 2.0**52 + 1023
    shifted = g.stop(g.add(g.mul(x, scale * LOG2_E), magic))
    rest = g.sub(x, g.mul(g.sub(shifted, magic), g.LN_2 / scale))
    power = g.bitcast(g.mul(g.bitcast(shifted, dt.int64), 1 << 52), dt.float64)
    return power, rest


def short_exp(x: Node, scale: float = 1.0) -> Node:
    """exp(scale x) for float64 numbers, good to 2e-9: float32 results need no more."""
    power, rest = _reduced(x, scale)
    return g.mul(power, g.polynomial(rest, [c * scale**k for k, c in enumerate(EXP_SHORT)]))


def short_expm1(x: Node, scale: float = 1.0) -> Node:
    """The same less 1, as exactly near 0."""
    power, rest = _reduced(x, scale)
    series = g.polynomial(rest, [c * scale ** (k + 1) for k, c in enumerate(EXPM1_SHORT)])
    return g.add(g.mul(g.mul(power, rest), series), g.sub(power, 1.0))


def _sigmoid(x: Node) -> Node:
    if x.dtype is dt.float64:
        negative = g.lt(x, 0.0)
        e = g.exp(g.where(negative, x, g.neg(x)))
        return g.div(g.where(negative, e, 1.0), g.add(e, 1.0))
    x = g.where(g.gt(x, 600.0), 600.0, x)
    wide = g.cast(g.where(g.lt(x, -600.0), -600.0, x), dt.float64)
    return g.cast(g.div(1.0, g.add(short_exp(wide, -1.0), 1.0)), x.dtype)


def _sigmoid_derivative(x: Node, y: Node, c: Node) -> Node:
    """e / (1 + e)^2 with e = exp(-|x|), which neither overflows nor cancels as y (1 - y) does."""
    e = g.exp(g.neg(distance(x)))
    share = g.div(1.0, g.add(e, 1.0))
    return g.mul(c, g.mul(g.mul(e, share), share))


def sigmoid(x: Node) -> Node:
    """1 / (1 + exp(-x))."""
    return with_derivative("sigmoid", x, _sigmoid, _sigmoid_derivative)


# --- gamma ----------------------------------------------------------------------------------------


def lgamma(x: Node) -> Node:
    """log |gamma(x)|, computed in float64: Stirling's series from 8 on, recurrence, reflection."""
    wide = g.cast(x, dt.float64)
    reflected = g.lt(wide, 0.5)
    z = g.where(reflected, g.sub(1.0, wide), wide)
    low = g.lt(z, 8.0)
    small = g.where(low, z, 1.0)
    rising = small
    for k in range(1, 8):
        rising = g.mul(rising, g.add(small, float(k)))
    big = g.where(low, g.add(z, 8.0), z)
    inverse = g.div(1.0, big)
    series = g.mul(inverse, g.polynomial(g.mul(inverse, inverse), STIRLING))
    stirling = g.add(g.mul(g.sub(big, 0.5), g.log(big)), g.sub(series, big))
    value = g.add(stirling, 0.9189385332046727)  # log(2 pi) / 2
    value = g.where(low, g.sub(value, g.log(g.where(low, rising, 1.0))), value)
    # at infinity the series is inf - inf
    value = g.where(g.eq(z, float("inf")), g.stop(z), value)
    fraction = g.sub(wide, floor(wide))
    sine = g.sin(g.mul(g.where(reflected, fraction, 0.5), PI))
    mirrored = g.sub(g.sub(1.1447298858494002, g.log(absolute(sine))), value)  # log(pi)
    pole = g.both(reflected, g.eq(fraction, 0.0))
    pole = g.either(pole, g.eq(wide, -float("inf")))
    value = g.where(reflected, mirrored, value)
    return g.cast(g.where(pole, float("inf"), value), x.dtype)


def digamma(x: Node) -> Node:
    """The derivative of lgamma, in float64 (Abramowitz & Stegun 6.3.5, 6.3.7, 6.3.18)."""
    wide = g.cast(x, dt.float64)
    reflected = g.lt(wide, 0.5)
    z = g.where(reflected, g.sub(1.0, wide), wide)
    low = g.lt(z, 8.0)
    result = g.like(z, 0.0)
    small = g.where(low, z, 1.0)
    for k in range(8):
        result = g.sub(result, g.div(1.0, g.add(small, float(k))))
    result = g.where(low, result, 0.0)
    big = g.where(low, g.add(z, 8.0), z)
    inverse = g.div(1.0, big)
    square = g.mul(inverse, inverse)
    series = [-(2 * k - 1) * c for k, c in enumerate(STIRLING, 1)]
    tail = g.mul(square, g.polynomial(square, series))
    value = g.add(result, g.add(g.log(big), g.sub(tail, g.mul(inverse, 0.5))))
    fraction = g.sub(wide, floor(wide))
    angle = g.mul(g.where(reflected, fraction, 0.5), PI)
    cotangent = g.div(g.sin(g.add(angle, PI / 2)), g.sin(angle))
    mirrored = g.sub(value, g.mul(cotangent, PI))
    pole = g.both(reflected, g.eq(fraction, 0.0))
    at_pole = g.where(g.eq(wide, 0.0), g.div(-1.0, wide), g.like(wide, float("nan")))
    value = g.where(pole, at_pole, g.where(reflected, mirrored, value))
    return g.cast(value, x.dtype)


__all__ = [
    "acos", "asin", "atan", "digamma", "expm1", "lgamma", "log1p", "odd_polynomial", "pick",
    "short_exp", "sigmoid", "tanh", "with_derivative",
]  # fmt: skip
