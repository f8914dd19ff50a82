"""Functions of one or two numbers: exponentials, powers, angles, gamma, rounding, tests for NaN."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from muladd.ir import Node, const
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor import normal, special
from muladd.tensor.elementwise import absolute, floor, sign_bit, trunc
from muladd.tensor.handle import Handle
from muladd.tensor.operands import as_operand, common, floating, is_number, widened
from muladd.tensor.powers import power

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor

HALF_PI = special.PI / 2


class Mathematics(Handle):
    """Mathematical functions, element by element. Integers become float32 where results are real.

    Functions of several steps compute 16-bit and 8-bit floats in float32.
    """

    __slots__ = ()

    def _real(self, function: Callable[[Node], Node]) -> Tensor:
        x = floating(self)
        return self._result(g.cast(function(widened(x)), x.dtype))

    def _real2(self, who: str, other: Any, function: Callable[[Node, Node], Node]) -> Tensor:
        a, b = common(who, (self, other), floating=True)
        return self._result(g.cast(function(widened(a), widened(b)), a.dtype))

    # --- exponentials and logarithms --------------------------------------------------------------

    def exp(self) -> Tensor:
        """e to the power x."""
        return self._real(g.exp)

    def exp2(self) -> Tensor:
        """2 to the power x."""
        return self._real(g.exp2)

    def expm1(self) -> Tensor:
        """exp(x) - 1, exact near 0."""
        return self._real(special.expm1)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return self._real(g.log)

    def log2(self) -> Tensor:
        """The logarithm to base 2."""
        return self._real(g.log2)

    def log10(self) -> Tensor:
        """The logarithm to base 10."""
        return self._real(lambda x: g.mul(g.log2(x), 0.30102999566398120))

    def log1p(self) -> Tensor:
        """log(1 + x), exact near 0."""
        return self._real(special.log1p)

    def logaddexp(self, other: Any) -> Tensor:
        """log(exp(a) + exp(b)) without overflow."""
        return self._real2("logaddexp", other, logaddexp)

    def logaddexp2(self, other: Any) -> Tensor:
        """log2(2**a + 2**b) without overflow."""
        return self._real2("logaddexp2", other, lambda a, b: g.mul(
            logaddexp(g.mul(a, g.LN_2), g.mul(b, g.LN_2)), g.LOG2_E))  # fmt: skip

    def logit(self, eps: float | None = None) -> Tensor:
        """log(x / (1 - x)); with eps, x is clamped to eps..1-eps first."""
        x: Any = self if eps is None else self.clamp(eps, 1 - eps)
        return (x / (1 - x)).log()

    def xlogy(self, other: Any) -> Tensor:
        """x * log(y), 0 where x is 0 (unless y is NaN)."""
        x, y = (self._result(n) for n in common("xlogy", (self, other), floating=True))
        zero = (x == 0) & ~y.isnan()
        return zero.where(0.0, x * zero.where(1.0, y).log())

    # --- powers -----------------------------------------------------------------------------------

    def pow(self, exponent: Any) -> Tensor:
        """self ** exponent. Integer powers of negative bases are defined; others give NaN."""
        return power(self, exponent)

    def square(self) -> Tensor:
        """x * x (of bool: 0 or 1, int64)."""
        return self**2

    def sqrt(self) -> Tensor:
        """The square root; NaN below 0."""
        return self._result(g.sqrt(floating(self)))

    def rsqrt(self) -> Tensor:
        """1 / sqrt(x)."""
        return self._real(lambda x: g.div(1.0, g.sqrt(x)))

    def cbrt(self) -> Tensor:
        """The cube root, of negative numbers too: a power, and one Newton step."""
        return self._real(_cbrt)

    def float_power(self, exponent: Any) -> Tensor:
        """self ** exponent, computed in float64."""
        exponent = exponent if is_number(exponent) else exponent.double()
        return self.double() ** exponent

    def ldexp(self, other: Any) -> Tensor:
        """self * 2**other."""
        if is_number(other):
            return self * 2.0**other
        return self * (other if other.dtype.is_float else other.float()).exp2()

    def reciprocal(self) -> Tensor:
        """1 / x."""
        return self._result(g.div(1.0, floating(self)))

    def hypot(self, other: Any) -> Tensor:
        """sqrt(x*x + y*y) without overflow in between."""
        return self._real2("hypot", other, _hypot)

    # --- angles -----------------------------------------------------------------------------------

    def sin(self) -> Tensor:
        """The sine of x radians."""
        return self._real(g.sin)

    def cos(self) -> Tensor:
        """The cosine of x radians."""
        return self._real(special.cos)

    def tan(self) -> Tensor:
        """sin(x) / cos(x)."""
        return self._real(lambda x: g.div(g.sin(x), special.cos(x)))

    def asin(self) -> Tensor:
        """The angle in -pi/2..pi/2 whose sine is x."""
        return self._real(special.asin)

    def acos(self) -> Tensor:
        """The angle in 0..pi whose cosine is x."""
        return self._real(special.acos)

    def atan(self) -> Tensor:
        """The angle in -pi/2..pi/2 whose tangent is x."""
        return self._real(special.atan)

    def atan2(self, other: Any) -> Tensor:
        """The angle of the point (other, self), in -pi..pi."""
        return self._real2("atan2", other, _atan2)

    def sinh(self) -> Tensor:
        """(exp(x) - exp(-x)) / 2."""
        return self._real(_sinh)

    def cosh(self) -> Tensor:
        """(exp(x) + exp(-x)) / 2."""
        return self._real(lambda x: g.mul(g.add(g.exp(x), g.exp(g.neg(x))), 0.5))

    def tanh(self) -> Tensor:
        """sinh(x) / cosh(x)."""
        return self._real(special.tanh)

    def asinh(self) -> Tensor:
        """The inverse of sinh."""
        return self._real(_asinh)

    def acosh(self) -> Tensor:
        """The inverse of cosh, for x >= 1."""
        return self._real(_acosh)

    def atanh(self) -> Tensor:
        """The inverse of tanh, for -1 < x < 1."""
        return self._real(lambda x: g.mul(
            g.sub(special.log1p(x), special.log1p(g.neg(x))), 0.5))  # fmt: skip

    def deg2rad(self) -> Tensor:
        """Degrees to radians."""
        return self * (special.PI / 180)

    def rad2deg(self) -> Tensor:
        """Radians to degrees."""
        return self * (180 / special.PI)

    def sinc(self) -> Tensor:
        """sin(pi x) / (pi x), 1 at 0."""
        zero = self == 0
        x = zero.where(1.0, self) * special.PI
        return zero.where(1.0, x.sin() / x)

    # --- special functions ------------------------------------------------------------------------

    def erf(self) -> Tensor:
        """The error function."""
        return self._real(normal.erf)

    def erfc(self) -> Tensor:
        """1 - erf(x), with full relative precision for large x."""
        return self._real(normal.erfc)

    def erfinv(self) -> Tensor:
        """The inverse of erf, for -1 <= x <= 1."""
        return self._real(normal.erfinv)

    def lgamma(self) -> Tensor:
        """log |gamma(x)|."""
        return self._real(special.lgamma)

    def digamma(self) -> Tensor:
        """The derivative of lgamma."""
        return self._real(special.digamma)

    def mvlgamma(self, p: int) -> Tensor:
        """The logarithm of the multivariate gamma function of dimension p."""
        total: Any = p * (p - 1) / 4 * math.log(math.pi)
        for j in range(p):
            total = (self - j / 2).lgamma() + total
        return total

    def entr(self) -> Tensor:
        """-x log(x); 0 at 0, -inf below."""
        return (self < 0).where(-math.inf, -self.xlogy((self < 0).where(1.0, self)))

    def ndtr(self) -> Tensor:
        """The normal distribution function: the share of a standard normal below x."""
        return (self * -math.sqrt(0.5)).erfc() * 0.5

    # --- rounding and signs -----------------------------------------------------------------------

    def floor(self) -> Tensor:
        """The greatest whole number not above x."""
        return self._result(g.level(floor(self.node), self.node))

    def ceil(self) -> Tensor:
        """The least whole number not below x."""
        x = self.node
        return self if not x.dtype.is_float else self._result(  # type: ignore[return-value]
            g.level(ceil(x), x))  # fmt: skip

    def trunc(self) -> Tensor:
        """The whole part, towards zero."""
        return self._result(g.level(trunc(self.node), self.node))

    def fix(self) -> Tensor:
        """The same as trunc."""
        return self.trunc()

    def frac(self) -> Tensor:
        """x - trunc(x), with the sign of x."""
        return self - self.trunc()

    def round(self, decimals: int = 0) -> Tensor:
        """The nearest whole number, halves to even; or to that many decimals."""
        if decimals:
            scale = 10.0**decimals
            return (self * scale).round() / scale
        return self._result(g.level(round_half_even(self.node), self.node))

    def abs(self) -> Tensor:
        """The magnitude."""
        return self._result(absolute(self.node))

    def absolute(self) -> Tensor:
        """The same as abs."""
        return self.abs()

    def sign(self) -> Tensor:
        """-1, 0 or 1 (0 for NaN)."""
        x = self.node
        if x.dtype is dt.bool_:
            return self._result(x)
        one = g.where(g.gt(x, 0), 1, g.like(x, 0))
        if x.dtype.kind == "u":
            return self._result(one)
        return self._result(g.level(g.where(g.lt(x, 0), -1, one), x))

    def sgn(self) -> Tensor:
        """The same as sign."""
        return self.sign()

    def signbit(self) -> Tensor:
        """Whether the sign bit is set (true for -0.0)."""
        x = self.node
        if x.dtype.is_float:
            return self._result(sign_bit(x))
        if x.dtype is dt.bool_:
            return self._result(const(False, dt.bool_, x.shape))
        return self._result(g.lt(x, 0))

    def copysign(self, other: Any) -> Tensor:
        """|self| with the sign of other."""
        other = as_operand(other, self.device, "copysign")
        if is_number(other):
            negative = math.copysign(1.0, other) < 0
            return -(self.abs()) if negative else self.abs()
        magnitude, other = (
            self._result(n) for n in common("copysign", (self.abs(), other), floating=True)
        )
        return other.signbit().where(-magnitude, magnitude)

    def heaviside(self, values: Any) -> Tensor:
        """0 below 0, 1 above, `values` at 0."""
        return (self == 0).where(values, (self > 0).cast(self.dtype))

    # --- NaN and infinity -------------------------------------------------------------------------

    def isnan(self) -> Tensor:
        """Whether not a number."""
        x = self.node
        return self._result(g.ne(x, x) if x.dtype.is_float else const(False, dt.bool_, x.shape))

    def isinf(self) -> Tensor:
        """Whether plus or minus infinity."""
        x = self.node
        if not x.dtype.is_float:
            return self._result(const(False, dt.bool_, x.shape))
        return self._result(g.eq(absolute(x), float("inf")))

    def isfinite(self) -> Tensor:
        """Whether neither infinite nor NaN."""
        x = self.node
        if not x.dtype.is_float:
            return self._result(const(True, dt.bool_, x.shape))
        return self._result(g.lt(absolute(x), float("inf")))

    def isposinf(self) -> Tensor:
        """Whether plus infinity."""
        return self.isinf() & (self > 0)

    def isneginf(self) -> Tensor:
        """Whether minus infinity."""
        return self.isinf() & (self < 0)

    def nan_to_num(
        self, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
    ) -> Tensor:
        """NaN and the infinities replaced by numbers (default 0 and the greatest finite ones)."""
        if not self.dtype.is_float:
            return self  # type: ignore[return-value]
        top = greatest_finite(self.dtype)
        result = self.isnan().where(nan, self)
        result = self.isposinf().where(top if posinf is None else posinf, result)
        return self.isneginf().where(-top if neginf is None else neginf, result)


# --- on nodes -------------------------------------------------------------------------------------


def greatest_finite(d: dt.DType) -> float:
    """The greatest finite value of a float dtype."""
    if d is dt.float8_e4m3:
        return 448.0
    return (2.0 - 2.0**-d.mantissa) * 2.0 ** ((1 << (d.exponent - 1)) - 1)


def ceil(x: Node) -> Node:
    t = trunc(x)
    return g.add(t, g.cast(g.lt(t, x), x.dtype))


def round_half_even(x: Node) -> Node:
    if not x.dtype.is_float:
        return x
    wide = g.stop(widened(x))
    down = floor(wide)
    rest = g.sub(wide, down)
    half = g.mul(down, 0.5)
    odd = g.ne(floor(half), half)
    up = g.either(g.gt(rest, 0.5), g.both(g.eq(rest, 0.5), odd))
    return g.cast(g.add(down, g.cast(up, wide.dtype)), x.dtype)


def logaddexp(a: Node, b: Node) -> Node:
    top = g.maximum(a, b)
    finite = g.lt(absolute(top), float("inf"))
    shift = g.where(finite, g.stop(top), 0.0)
    joined = g.add(g.exp(g.sub(a, shift)), g.exp(g.sub(b, shift)))
    return g.where(finite, g.add(g.log(g.where(finite, joined, 1.0)), shift), top)


def _hypot(a: Node, b: Node) -> Node:
    a, b = special.distance(a), special.distance(b)
    first, infinity = g.lt(b, a), float("inf")
    top, low = g.where(first, a, b), g.where(first, b, a)
    usual = g.both(g.gt(top, 0.0), g.lt(top, infinity))
    safe = g.where(usual, top, 1.0)
    ratio = g.div(low, safe)
    result = g.where(usual, g.mul(safe, g.sqrt(g.add(g.mul(ratio, ratio), 1.0))),
                     g.add(g.where(g.gt(top, 0.0), top, g.stop(top)), g.stop(low)))  # fmt: skip
    return g.where(g.either(g.eq(a, infinity), g.eq(b, infinity)), infinity, result)


def _cbrt(x: Node) -> Node:
    a = absolute(g.stop(x))
    positive = g.both(g.gt(a, 0.0), g.lt(a, float("inf")))
    safe = g.where(positive, a, 1.0)
    root = g.exp2(g.mul(g.log2(safe), 1 / 3))
    root = g.where(g.lt(x, 0.0), g.neg(root), root)
    square = g.mul(root, root)
    # one Newton step from a constant: its derivative 1 / (3 root^2) is the cube root's
    step = g.div(g.sub(x, g.mul(square, root)), g.mul(square, 3.0))
    return g.where(positive, g.add(root, step), x)


def _atan2(y: Node, x: Node) -> Node:
    # the smaller over the larger keeps the quotient in -1..1
    ay, ax = absolute(y), absolute(x)
    steep = g.gt(ay, ax)
    top, low = g.where(steep, g.neg(x), y), g.where(steep, y, x)
    origin = g.eq(low, 0.0)
    both_infinite = g.both(g.eq(ax, float("inf")), g.eq(ay, float("inf")))
    ratio = g.div(top, g.where(g.either(origin, both_infinite), 1.0, low))
    one = g.where(g.ne(sign_bit(x), sign_bit(y)), -1.0, g.like(x, 1.0))
    angle = special.atan(g.where(both_infinite, one, ratio))
    below, left = sign_bit(y), sign_bit(x)  # the signs of zeros count
    angle = g.where(g.both(origin, g.invert(steep)), g.where(below, -0.0, g.like(x, 0.0)), angle)
    quarter = g.where(below, -HALF_PI, g.like(y, HALF_PI))
    half = g.where(below, -special.PI, g.like(y, special.PI))
    flat = g.where(left, g.add(angle, half), angle)
    angle = g.where(steep, g.add(angle, quarter), flat)
    return g.where(g.ne(x, x), x, g.where(g.ne(y, y), y, angle))


def _sinh(x: Node) -> Node:
    e = special.expm1(g.where(g.lt(x, 0.0), g.neg(x), x))
    half = g.mul(g.add(e, g.div(e, g.add(e, 1.0))), 0.5)
    half = g.where(g.eq(e, float("inf")), e, half)
    return g.where(g.lt(x, 0.0), g.neg(half), half)


def _asinh(x: Node) -> Node:
    a = g.where(g.lt(x, 0.0), g.neg(x), x)
    big = g.gt(a, 1e8)
    t = g.where(big, 1.0, a)
    near = special.log1p(g.add(t, g.div(g.mul(t, t), g.add(g.sqrt(g.add(g.mul(t, t), 1.0)), 1.0))))
    far = g.add(g.log(g.where(big, a, 1.0)), g.LN_2)
    r = g.where(big, far, near)
    return g.where(g.lt(x, 0.0), g.neg(r), r)


def _acosh(x: Node) -> Node:
    big = g.gt(x, 1e8)
    t = g.sub(g.where(big, 2.0, x), 1.0)
    near = special.log1p(g.add(t, g.sqrt(g.add(g.mul(t, 2.0), g.mul(t, t)))))
    far = g.add(g.log(g.where(big, x, 1.0)), g.LN_2)
    return g.where(g.lt(x, 1.0), float("nan"), g.where(big, far, near))
