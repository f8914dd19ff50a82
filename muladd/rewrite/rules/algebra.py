"""Algebra of elementwise operations. A float rule is `exact` only if NaN, -0.0 and infinity agree.

Floats are never reassociated, in either profile. Where a rule's right side may be a product that
was no product before, the guard `bare` keeps the exact profile's SUM(MUL(a, b)) what it was.
"""
from __future__ import annotations

from math import frexp, isfinite

from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType
from muladd.ir.node import Node, const, make
from muladd.rewrite.engine import Rule
from muladd.rewrite.pattern import Match, anything, constant_value, number, op
from muladd.rewrite.rules.folding import folded

x, y, z = anything("x"), anything("y"), anything("z")
condition = anything("condition", "b")
c, d = number(name="c"), number(name="d")
INTEGERS = "biu"


def bare(m: Match) -> bool:
    """x is no product of floats, so that it may take the place of a product or a sum over one."""
    return m.x.op is not ops.MUL or not m.x.dtype.is_float


def _constant(m: Match, value: object) -> Node:
    return const(value, m.root.dtype, m.root.shape)


def _gather(which: ops.Op) -> Rule:
    """(x op c) op d  ->  x op (c op d)"""

    def right(m: Match) -> Node | None:
        both = folded(make(which, (m.c, m.d)))
        return both if both is None else make(which, (m.x, both))

    left = op(which, op(which, x, c), d, kinds=INTEGERS)
    name = f"{which.name.lower()}_constants"
    return Rule(name, left, right, _x_not_constant, exact=True)


def _is_least(m: Match) -> bool:
    return m.value("c") == m.x.dtype.min


def _is_all_ones(m: Match) -> bool:
    dtype = m.x.dtype
    return m.value("c") == (dtype.max if dtype.kind in "bu" else -1)


# --- division ------------------------------------------------------------------------------------


def _reciprocal(value: float, dtype: DType) -> float | None:
    """1/value if that is a normal number of the dtype, else None."""
    if not isfinite(value) or value == 0:
        return None
    rounded = const(1.0 / value, dtype).arg
    smallest_normal = 2.0 ** (2 - (1 << (dtype.exponent - 1)))
    return rounded if isfinite(rounded) and abs(rounded) >= smallest_normal else None


def _times_reciprocal(m: Match) -> Node | None:
    reciprocal = _reciprocal(m.value("c"), m.x.dtype)
    if reciprocal is None:
        return None
    return make(ops.MUL, (m.x, const(reciprocal, m.x.dtype, m.x.shape)))


def _is_power_of_two(m: Match) -> bool:
    return abs(frexp(m.value("c"))[0]) == 0.5


# --- casts ---------------------------------------------------------------------------------------


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if wide is narrow or narrow is dt.bool_:
        return True
    if wide is dt.bool_ or (narrow.is_float and not wide.is_float):
        return False
    if narrow.is_float:
        if wide is dt.float8_e4m3:  # no infinity
            return False
        return wide.exponent >= narrow.exponent and wide.mantissa >= narrow.mantissa
    if wide.is_float:
        digits = narrow.bits - (narrow.kind == "i")
        return wide.mantissa + 1 >= digits and wide.max > 2.0**digits
    return int(wide.min) <= int(narrow.min) and int(narrow.max) <= int(wide.max)


def _cast_is_lossless(m: Match) -> bool:
    source, middle, target = m.x.dtype, m.inner.dtype, m.root.dtype
    if not holds(middle, source):
        return False
    # floats saturate on the way to integers where integers wrap
    through_float = source.is_int and middle.is_float and target.is_int
    return not through_float or holds(target, source)


def _cast(m: Match) -> Node:
    return m.x if m.x.dtype is m.root.dtype else make(ops.CAST, (m.x,), None, m.root.dtype)


def _bitcast(m: Match) -> Node:
    return m.x if m.x.dtype is m.root.dtype else make(ops.BITCAST, (m.x,), None, m.root.dtype)


def _middle_keeps_bits(m: Match) -> bool:
    """bfloat16 and float8 travel as float32, where a NaN's bits are not kept."""
    return m.inner.dtype not in (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2)


def _same_dtype(m: Match) -> bool:
    return m.x.dtype is m.root.dtype


def _x_not_constant(m: Match) -> bool:
    return constant_value(m.x) is None


def _constant_right(m: Match) -> Node | None:
    """c op x  ->  x op c"""
    root = m.root
    return None if root.srcs[1] is m.c else make(root.op, (m.x, m.c))


def _commute(which: ops.Op, kinds: str) -> Rule:
    name = f"{which.name.lower()}_constant_right"
    return Rule(name, op(which, c, x, kinds=kinds), _constant_right, _x_not_constant, exact=True)


# fmt: off
RULES = (
    _commute(ops.ADD, "biuf"), _commute(ops.MUL, "biuf"), _commute(ops.MAX, INTEGERS),
    _commute(ops.AND, INTEGERS), _commute(ops.XOR, INTEGERS),
    _gather(ops.ADD), _gather(ops.MUL), _gather(ops.MAX), _gather(ops.AND), _gather(ops.XOR),

    Rule("add_zero", op(ops.ADD, x, number(0), kinds=INTEGERS), x, exact=True),
    Rule("add_negative_zero", op(ops.ADD, x, number(-0.0), kinds="f"), x, bare, exact=True),
    Rule("add_any_zero", op(ops.ADD, x, number(0.0), kinds="f"), x),
    Rule("add_negative_zero_to_product", op(ops.ADD, x, number(-0.0), kinds="f"), x),
    Rule("mul_one", x * number(1), x, bare, exact=True),
    Rule("mul_one_of_product", x * number(1), x),
    Rule("mul_zero", op(ops.MUL, x, number(0), kinds=INTEGERS), number(0), exact=True),
    Rule("negate_twice", op(ops.MUL, op(ops.MUL, x, number(-1.0)), number(-1.0), kinds="f"), x,
         bare, exact=True),
    Rule("negate_twice_of_product",
         op(ops.MUL, op(ops.MUL, x, number(-1.0)), number(-1.0), kinds="f"), x),

    Rule("div_one", op(ops.DIV, x, number(1)), x, exact=True),
    Rule("mod_one", op(ops.MOD, x, number(1)), number(0), exact=True),
    Rule("div_power_of_two", op(ops.DIV, x, c, kinds="f"), _times_reciprocal, _is_power_of_two,
         exact=True),
    Rule("div_constant", op(ops.DIV, x, c, kinds="f"), _times_reciprocal),

    Rule("max_same", op(ops.MAX, x, x), x, exact=True),
    Rule("max_least", op(ops.MAX, x, c), x, _is_least, exact=True),
    Rule("and_same", op(ops.AND, x, x), x, exact=True),
    Rule("and_zero", op(ops.AND, x, number(0)), number(0), exact=True),
    Rule("and_all_ones", op(ops.AND, x, c), x, _is_all_ones, exact=True),
    Rule("xor_same", op(ops.XOR, x, x), number(0), exact=True),
    Rule("xor_zero", op(ops.XOR, x, number(0)), x, exact=True),

    Rule("less_than_itself", op(ops.LT, x, x), lambda m: _constant(m, False), exact=True),
    Rule("unequal_to_itself", op(ops.NE, anything("x", INTEGERS), x),
         lambda m: _constant(m, False), exact=True),
    Rule("not_not", op(ops.NE, op(ops.NE, condition, number(True)), number(True)), condition,
         exact=True),
    Rule("unequal_false", op(ops.NE, condition, number(False)), condition, exact=True),

    Rule("where_true", op(ops.WHERE, number(True), x, y), x, exact=True),
    Rule("where_false", op(ops.WHERE, number(False), x, y), y, exact=True),
    Rule("where_same", op(ops.WHERE, condition, x, x), x, exact=True),
    Rule("where_where_true", op(ops.WHERE, condition, op(ops.WHERE, condition, x, y), z),
         op(ops.WHERE, condition, x, z), exact=True),
    Rule("where_where_false", op(ops.WHERE, condition, x, op(ops.WHERE, condition, y, z)),
         op(ops.WHERE, condition, x, z), exact=True),

    Rule("cast_to_itself", op(ops.CAST, x), x, _same_dtype, exact=True),
    Rule("cast_cast", op(ops.CAST, op(ops.CAST, x, name="inner")), _cast, _cast_is_lossless,
         exact=True),
    Rule("bitcast_to_itself", op(ops.BITCAST, x), x, _same_dtype, exact=True),
    Rule("bitcast_bitcast", op(ops.BITCAST, op(ops.BITCAST, x, name="inner")), _bitcast,
         _middle_keeps_bits, exact=True),
)
# fmt: on
