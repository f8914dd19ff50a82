"""Special functions as polynomials: erf, erfc, arcus functions, expm1, log1p, the log-gamma family.

The coefficients interpolate each function at Chebyshev points, computed with 40 digits; the *_32
sets are good to about 6e-8 relative, the *_64 sets to about 2e-16. A function whose polynomial
would have a poor derivative carries its exact derivative as the body's own gradient.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from muladd.ir import Body, CallArg, DType, Node, make, ops, param
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.elementwise import absolute, floor

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

ERFC_LARGE_32 = (
    0.5479978305002455, 0.04479233331563006, -0.04599132418227097, 0.023220779715338962,
    -0.006485635649707516, 0.0003536001517600193, 0.0003899041322094708, -6.373610274270661e-05,
    -2.4203826220144857e-05,
)

ERFC_LARGE_64 = (
    0.5479978305002455, 0.04479259946985342, -0.045991232674436555, 0.02321720178735339,
    -0.006486869334785344, 0.00036676765462687744, 0.0003944798842239875, -8.2207871423712e-05,
    -3.074325494536095e-05, 9.570029364010563e-06, 3.58757690355594e-06, -1.0053504892292037e-06,
    -5.523343951128041e-07, 7.689121440481843e-08, 9.205434157876788e-08, 3.94582299422956e-09,
    -1.4135044148708287e-08, -3.745215510738493e-09, 1.6764552734591658e-09,
    1.0524148993004068e-09, -1.0496813318224705e-10, -1.8409107598598995e-10,
    -1.8136526422685e-12, 1.6544169278414468e-11,
)

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

ERFC_EXPONENT_32 = (
    -0.0002765233220998198, 1.6296608448028564, 0.9134982824325562, 0.1564614176750183,
    -0.03639610856771469, 0.006076018791645765, -0.0006386834429576993, 3.144835864077322e-05,
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
# fmt: on

PI = 3.141592653589793
TWO_OVER_SQRT_PI = 1.1283791670955126

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


# --- the error function ---------------------------------------------------------------------------


def _erf_small(x: Node) -> Node:
    """erf for |x| <= 1."""
    return g.mul(x, g.polynomial(g.mul(x, x), pick(x.dtype, ERF_SMALL_32, ERF_SMALL_64)))


def _erfc_large(a: Node) -> Node:
    """erfc for a >= 1: exp(-a^2) / a times a polynomial in (a - 4) / (a + 2)."""
    ratio = g.div(g.sub(a, 4.0), g.add(a, 2.0))
    series = g.polynomial(ratio, pick(a.dtype, ERFC_LARGE_32, ERFC_LARGE_64))
    return g.div(g.mul(g.exp(g.neg(g.mul(a, a))), series), a)


def _erf(x: Node) -> Node:
    return _erf_64(x) if x.dtype is dt.float64 else _erf_32(x)


def _erf_32(x: Node) -> Node:
    """erf within 1 ulp of float32: 1 - 2^-p(|x|) from 1 on, with p near -log2(erfc) up to 4.1 and
    growing beyond, where the result is 1."""
    a = absolute(x)
    tail = g.sub(1.0, g.exp2(g.neg(g.polynomial(a, ERFC_EXPONENT_32))))
    large = g.where(g.lt(x, 0.0), g.neg(tail), tail)
    return g.where(g.lt(a, 1.0), _erf_small(x), large)


def _erf_64(x: Node) -> Node:
    a = absolute(x)
    a = g.where(g.lt(a, 10.0), a, g.where(g.ne(a, a), a, 10.0))
    small = g.lt(a, 1.0)
    tail = g.sub(1.0, _erfc_large(g.where(small, 1.0, a)))
    large = g.where(g.lt(x, 0.0), g.neg(tail), tail)
    return g.where(small, _erf_small(x), large)


def _erfc(x: Node) -> Node:
    a = absolute(x)
    small = g.lt(a, 1.0)
    capped = g.where(g.lt(a, 30.0), a, g.where(g.ne(a, a), a, 30.0))
    tail = _erfc_large(g.where(small, 1.0, capped))
    large = g.where(g.lt(x, 0.0), g.sub(2.0, tail), tail)
    return g.where(small, g.sub(1.0, _erf_small(x)), large)


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
    """Winitzki's approximation (2008), then three Newton steps on erfc, all in float64."""
    wide = g.cast(x, dt.float64)
    a = absolute(wide)
    inside = g.lt(a, 1.0)
    safe = g.where(inside, a, 0.0)
    logarithm = g.log(g.mul(g.sub(1.0, safe), g.add(safe, 1.0)))
    half = g.add(g.mul(logarithm, 0.5), 2 / (PI * 0.147))
    y = g.sqrt(g.sub(g.sqrt(g.sub(g.mul(half, half), g.div(logarithm, 0.147))), half))
    for _ in range(3):
        error = g.sub(_erfc(y), g.sub(1.0, safe))
        y = g.add(y, g.div(error, _bell(y)))
    y = g.where(inside, y, g.where(g.eq(a, 1.0), float("inf"), g.like(a, float("nan"))))
    return g.cast(g.where(g.lt(wide, 0.0), g.neg(y), y), x.dtype)


def _erfinv_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, _bell(y))


def erfinv(x: Node) -> Node:
    return with_derivative("erfinv", x, _erfinv, _erfinv_derivative)


# --- arcus functions ------------------------------------------------------------------------------


def _atan(x: Node) -> Node:
    a = absolute(x)
    steep = g.lt(g.like(a, 1.0), a)
    t = g.where(steep, g.div(1.0, g.where(steep, a, 1.0)), a)
    angle = g.mul(t, g.polynomial(g.mul(t, t), pick(x.dtype, ATAN_32, ATAN_64)))
    angle = g.where(steep, g.sub(PI / 2, angle), angle)
    return g.where(g.lt(x, 0.0), g.neg(angle), angle)


def _atan_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, g.add(g.mul(x, x), 1.0))


def atan(x: Node) -> Node:
    return with_derivative("atan", x, _atan, _atan_derivative)


def _asin(x: Node) -> Node:
    a = absolute(x)
    outer = g.lt(g.like(a, 0.5), a)
    t = g.where(outer, g.sqrt(g.mul(g.sub(1.0, a), 0.5)), a)
    angle = g.mul(t, g.polynomial(g.mul(t, t), pick(x.dtype, ASIN_32, ASIN_64)))
    angle = g.where(outer, g.sub(PI / 2, g.mul(angle, 2.0)), angle)
    return g.where(g.lt(x, 0.0), g.neg(angle), angle)


def _asin_derivative(x: Node, y: Node, c: Node) -> Node:
    return g.div(c, g.sqrt(g.mul(g.sub(1.0, x), g.add(x, 1.0))))


def asin(x: Node) -> Node:
    return with_derivative("asin", x, _asin, _asin_derivative)


def acos(x: Node) -> Node:
    return g.sub(PI / 2, asin(x))


# --- the cosine -----------------------------------------------------------------------------------


def _cos(x: Node) -> Node:
    """The compiler knows the sine of a sum with pi/2: it does not round the sum."""
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


def tanh(x: Node) -> Node:
    """e / (e + 2) with e = exp(2x) - 1; beyond 20 it is 1 in every dtype."""
    doubled = g.mul(x, 2.0)
    doubled = g.where(g.lt(doubled, -40.0), -40.0, g.where(g.gt(doubled, 40.0), 40.0, doubled))
    e = expm1(doubled)
    return g.div(e, g.add(e, 2.0))


def sigmoid(x: Node) -> Node:
    """1 / (1 + exp(-x)), written over exp(-|x|), which neither overflows nor has NaN derivatives.
    """
    negative = g.lt(x, 0.0)
    e = g.exp(g.where(negative, x, g.neg(x)))
    return g.div(g.where(negative, e, 1.0), g.add(e, 1.0))


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
    "acos", "asin", "atan", "digamma", "erf", "erfc", "erfinv", "expm1", "lgamma",
    "log1p", "sigmoid", "tanh", "with_derivative",
]  # fmt: skip
