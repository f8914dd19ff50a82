"""Reductions over nothing, over one element, over constants and over repeated values.

A float SUM starts from +0.0, so even over a single element it turns -0.0 into 0.0; such rules, and
all that change the order of additions, belong to the fast profile.
"""
from __future__ import annotations

from math import isfinite

from muladd.ir import ops, sym
from muladd.ir.node import Node, const, make
from muladd.rewrite.engine import Rule
from muladd.rewrite.pattern import Match, Operation, anything, number, op

x, c = anything("x"), number(name="c")
INTEGERS = "iu"


def _reduced(m: Match) -> list:
    """The sizes of the axes that disappear."""
    return [m.root.srcs[0].shape[a] for a in m.root.arg]


def _single(m: Match) -> bool:
    return all(ops.equal_dims(n, 1) for n in _reduced(m))


def _reshape(m: Match) -> Node:
    if ops.equal_shapes(m.x.shape, m.root.shape):
        return m.x
    return make(ops.RESHAPE, (m.x,), m.root.shape)


def _of_none(m: Match) -> bool:
    return any(isinstance(n, int) and n == 0 for n in _reduced(m))


def _count(m: Match) -> int | None:
    """How many elements each result is made of, if that is a number above zero."""
    n = sym.product(_reduced(m))
    return n if isinstance(n, int) and n > 0 else None


def _sum_of_constant(m: Match) -> Node | None:
    n = _count(m)
    total = None if n is None else m.value("c") * n
    if total is None or (m.root.dtype.is_float and not isfinite(total)):
        return None
    return const(total, m.root.dtype, m.root.shape)


def _amax_of_constant(m: Match) -> Node | None:
    return None if _count(m) is None else const(m.value("c"), m.root.dtype, m.root.shape)


def _repeated(m: Match) -> Node | None:
    """What each result sums or compares copies of: EXPAND's source without the reduced axes, if
    EXPAND repeated along every one of them."""
    source, wide = m.x, m.root.srcs[0]
    added = wide.ndim - source.ndim
    inside = [a - added for a in m.root.arg if a >= added]
    if any(not ops.equal_dims(source.shape[a], 1) for a in inside) or _count(m) is None:
        return None
    kept = tuple(n for i, n in enumerate(source.shape) if i not in inside)
    if len(kept) != source.ndim:
        source = make(ops.RESHAPE, (source,), kept)
    same = ops.equal_shapes(kept, m.root.shape)
    return source if same else make(ops.EXPAND, (source,), m.root.shape)


def _sum_of_repeated(m: Match) -> Node | None:
    source, n = _repeated(m), _count(m)
    if source is None:
        return None
    factor = const(n, m.root.dtype, m.root.shape)
    if m.root.dtype.is_float and factor.srcs and not isfinite(factor.srcs[0].arg):
        return None
    return make(ops.MUL, (source, factor))


def _widened(m: Match) -> Node | None:
    """The reduction of EXPAND's source, expanded: it repeats, but only along axes that stay."""
    source, wide = m.x, m.root.srcs[0]
    added = wide.ndim - source.ndim
    axes = tuple(a - added for a in m.root.arg)
    if any(a < 0 or not ops.equal_dims(source.shape[a], wide.shape[a + added]) for a in axes):
        return None
    return make(ops.EXPAND, (make(m.root.op, (source,), axes),), m.root.shape)


def _inner_read_once(m: Match) -> bool:
    return not m.shared(m.inner)


def _merged(m: Match) -> Node:
    """One reduction over both sets of axes, counted in the innermost source."""
    inner, outer = m.inner.arg, m.root.arg
    left = [a for a in range(m.x.ndim) if a not in inner]
    axes = tuple(sorted({*inner, *(left[a] for a in outer)}))
    return make(m.root.op, (m.x,), axes)


def _nested(which: ops.Op, kinds: str) -> Operation:
    return op(which, op(which, x, name="inner"), kinds=kinds)


# fmt: off
RULES = (
    Rule("sum_of_none", op(ops.SUM, x), lambda m: const(0, m.root.dtype, m.root.shape), _of_none,
         exact=True),
    Rule("amax_of_none", op(ops.AMAX, x),
         lambda m: const(m.root.dtype.min, m.root.dtype, m.root.shape), _of_none, exact=True),
    Rule("sum_of_one", op(ops.SUM, x, kinds=INTEGERS), _reshape, _single, exact=True),
    Rule("sum_of_one_float", op(ops.SUM, x, kinds="f"), _reshape, _single),
    Rule("amax_of_one", op(ops.AMAX, x), _reshape, _single, exact=True),
    Rule("sum_of_constant", op(ops.SUM, c, kinds=INTEGERS), _sum_of_constant, exact=True),
    Rule("sum_of_constant_float", op(ops.SUM, c, kinds="f"), _sum_of_constant),
    Rule("amax_of_constant", op(ops.AMAX, c), _amax_of_constant, exact=True),
    Rule("sum_of_repeated", op(ops.SUM, op(ops.EXPAND, x), kinds=INTEGERS), _sum_of_repeated,
         exact=True),
    Rule("sum_of_repeated_float", op(ops.SUM, op(ops.EXPAND, x), kinds="f"), _sum_of_repeated),
    Rule("amax_of_repeated", op(ops.AMAX, op(ops.EXPAND, x)), _repeated, exact=True),
    Rule("sum_of_widened", op(ops.SUM, op(ops.EXPAND, x), kinds=INTEGERS), _widened, exact=True),
    Rule("sum_of_widened_float", op(ops.SUM, op(ops.EXPAND, x), kinds="f"), _widened),
    Rule("amax_of_widened", op(ops.AMAX, op(ops.EXPAND, x)), _widened, exact=True),
    Rule("sum_sum", _nested(ops.SUM, INTEGERS), _merged, _inner_read_once, exact=True),
    Rule("sum_sum_float", _nested(ops.SUM, "f"), _merged, _inner_read_once),
    Rule("amax_amax", _nested(ops.AMAX, "biu"), _merged, _inner_read_once, exact=True),
    Rule("amax_amax_float", _nested(ops.AMAX, "f"), _merged, _inner_read_once),
)
# fmt: on
