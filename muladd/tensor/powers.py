"""Powers: by squaring where the exponent is whole, else through the logarithm to base 2."""
from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError
from muladd.ir import Node
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.elementwise import absolute, bit, floor, sign_bit
from muladd.tensor.handle import Handle
from muladd.tensor.operands import common, is_number, widened

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor

_MOST = 64  # whole exponents of floats up to this one by squaring


def power(base: Any, exponent: Any) -> Tensor:
    """base ** exponent, where at least one is a tensor."""
    owner = base if isinstance(base, Handle) else exponent
    if is_number(exponent):
        value = exponent.item() if hasattr(exponent, "item") else exponent
        special_case = _power_of_number(base, value)
        if special_case is not None:
            return special_case
    elif is_number(base) and base == 2 and exponent.dtype.is_float:
        return exponent.exp2()
    a, b = common("pow", (base, exponent))
    if not a.dtype.is_float:
        return owner._result(_integer_power(a, b))
    return owner._result(g.cast(_general_power(widened(a), widened(b)), a.dtype))


def _power_of_number(x: Any, exponent: Any) -> Tensor | None:
    """Whole exponents by squaring, and the square root; None for the rest."""
    if isinstance(exponent, float) and not x.dtype.is_float:
        return power(x.float(), exponent)
    if exponent == 0.5:
        return x.sqrt()
    if exponent == -0.5:
        return x.rsqrt()
    most = _MOST if x.dtype.is_float else float("inf")
    if not isfinite(exponent) or exponent != int(exponent) or abs(exponent) > most:
        return None
    n = int(exponent)
    if x.dtype is dt.bool_:  # bool counts as 0 and 1 here
        return power(x.cast(dt.int64), n)
    if n < 0:
        if not x.dtype.is_float:
            raise DTypeError(
                f"pow: an integer tensor to the power {n} is no integer; cast it to a float"
            )
        return power(x, -n).reciprocal()
    if n == 0:
        return x._result(g.level(g.like(x.node, 1), x.node))
    result: Any = None
    square = x
    while n:
        if n & 1:
            result = square if result is None else result * square
        n >>= 1
        square = square * square if n else square
    return result if result is not x else x._result(x.node)


def _integer_power(a: Node, b: Node) -> Node:
    """By squaring over all bits of the exponent, wrapping as products do; negative exponents of
    integers give 0 (or 1, -1)."""
    result, square = g.like(a, 1), a
    for k in range(b.dtype.bits - (b.dtype.kind == "i")):
        result = g.where(bit(b, k), g.mul(result, square), result)
        square = g.mul(square, square)
    if b.dtype.kind != "i":
        return result
    unit = g.where(g.eq(a, 1), 1, g.like(a, 0))
    odd = g.ne(g.mod(b, 2), 0)
    unit = g.where(g.eq(a, -1), g.where(odd, -1, g.like(a, 1)), unit)
    return g.where(g.lt(b, 0), unit, result)


def _general_power(a: Node, b: Node) -> Node:
    magnitude = absolute(a)
    zero = g.eq(magnitude, 0.0)
    # the logarithm sees no zero, so that gradients there stay finite
    safe = g.where(zero, 1.0, magnitude)
    result = g.exp2(g.mul(b, g.log2(safe)))
    half = g.mul(b, 0.5)
    whole, even = g.eq(floor(b), b), g.eq(floor(half), half)
    negative = g.lt(a, 0.0)
    odd = g.both(whole, g.invert(even))
    signed = g.where(g.both(negative, odd), g.neg(result), result)
    undefined = g.both(g.both(negative, g.invert(whole)), g.lt(magnitude, float("inf")))
    signed = g.where(undefined, g.like(a, float("nan")), signed)
    at_zero = g.where(g.lt(b, 0.0), float("inf"), g.like(b, 0.0))
    at_zero = g.where(g.both(odd, sign_bit(a)), g.neg(at_zero), at_zero)
    signed = g.where(zero, g.where(g.ne(b, b), b, at_zero), signed)
    # |a| = 1 to the power of an infinity is 1, though 0 * infinity is NaN; 1 to any power is 1
    infinite = g.both(g.eq(magnitude, 1.0), g.eq(absolute(b), float("inf")))
    signed = g.where(g.either(infinite, g.eq(a, 1.0)), 1.0, signed)
    return g.where(g.eq(b, 0.0), 1.0, signed)
