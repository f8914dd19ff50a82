"""Operations on constants become constants: the number is the op's NumPy meaning, rounded once."""
from __future__ import annotations

from fractions import Fraction
from math import isfinite, isnan
from typing import Any

import numpy as np

from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType
from muladd.ir.node import Node, const
from muladd.rewrite.engine import Rule
from muladd.rewrite.pattern import Match, constant_value, number, op

TRANSCENDENTAL = (ops.EXP2, ops.LOG2, ops.SIN, ops.EXP, ops.COS)
_NARROW = (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2)


def folded(node: Node) -> Node | None:
    """The constant an elementwise operation over constants comes to, where that is certain."""
    values = [constant_value(s) for s in node.srcs]
    if node.op is ops.CAST:
        result = cast_value(values[0], node.srcs[0].dtype, node.dtype)
    elif node.op is ops.BITCAST:
        result = _bitcast_value(values[0], node.srcs[0].dtype, node.dtype)
    elif node.op is ops.MAX and node.dtype.is_float:
        a, b = values
        result = a if a > b or isnan(a) else b
    else:
        assert node.op.numpy is not None
        with np.errstate(all="ignore"):
            arrays = [np.array([v], s.dtype.numpy) for v, s in zip(values, node.srcs)]
            result = node.op.numpy(*arrays)[0].item()
    return None if result is None else const(result, node.dtype, node.shape)


def _fold(match: Match) -> Node | None:
    return folded(match.root)


def _fold_product(match: Match) -> Node | None:
    """As `folded`, but only where nothing is rounded: a product under a SUM is not rounded, and a
    constant in its place would be. What a SUM makes of infinities and NaN is the same."""
    a, b = (constant_value(s) for s in match.root.srcs)
    result = folded(match.root)
    if result is None or not match.root.dtype.is_float:
        return result
    value = constant_value(result)
    if isfinite(a) and isfinite(b):
        if not isfinite(value) or Fraction(a) * Fraction(b) != Fraction(value):
            return None
    return result


def cast_value(value: Any, source: DType, target: DType) -> Any:
    """A Python number as another dtype, or None where this would round twice."""
    if target is dt.bool_:
        return value != 0
    if target.is_int:
        if not source.is_float:
            return int(value)  # `const` wraps it
        if isnan(value):
            return 0
        if not isfinite(value):
            return target.max if value > 0 else target.min
        return max(int(target.min), min(int(target.max), int(value)))
    if target in _NARROW and (source is dt.float64 or (source.is_int and abs(value) >= 1 << 24)):
        return None
    if target is dt.float16 and source.is_int and abs(value) >= 1 << 24:
        return None
    with np.errstate(all="ignore"):
        return np.array([value], source.numpy).astype(target.numpy)[0].item()


def _bitcast_value(value: Any, source: DType, target: DType) -> Any:
    if source.is_float and isnan(value):
        return None  # a Python float does not promise the bits of a NaN
    stored = np.ascontiguousarray(dt.encode(np.array([value], source.numpy), source))
    result = dt.decode(stored.view(target.storage), target)[0].item()
    return None if target.is_float and isnan(result) else result


def _rule(which: ops.Op) -> Rule:
    certain = which not in TRANSCENDENTAL
    left = op(which, *[number() for _ in range(which.arity)])
    name = f"fold_{which.name.lower()}"
    return Rule(name, left, _fold_product if which is ops.MUL else _fold, exact=certain)


RULES = tuple(
    _rule(row) for row in (*ops.ELEMENTWISE, ops.EXP, ops.COS) if row is not ops.WHERE
)
