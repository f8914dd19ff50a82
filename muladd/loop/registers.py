"""Values of lanes: registers of accumulators, masks, and how partial results are joined."""
from __future__ import annotations

from functools import reduce

import numpy as np

from muladd.ir import DType, Node, const, dtype, make, ops, sym
from muladd.loop.kernel import Stage


def register(name: str, k: int, width: int, d: DType) -> Node:
    index = make(ops.EXPAND, (sym.as_node(k),), (width,)) if width else sym.as_node(k)
    return make(ops.LOAD, (index,), (name, width), d)


def wide(value: Node, width: int) -> Node:
    return make(ops.EXPAND, (value,), (width,)) if width and not value.shape else value


def match(mask: Node | bool, like: Node) -> Node:
    if isinstance(mask, bool):
        return const(mask, dtype.bool_, like.shape)
    return make(ops.EXPAND, (mask,), like.shape) if like.shape and not mask.shape else mask


def both_masks(a: Node, b: Node, width: int) -> Node:
    return (
        make(ops.MUL, (wide(a, width), wide(b, width)))
        if a.shape or b.shape
        else make(ops.MUL, (a, b))
    )


def joined(s: Stage, sofar: Node, value: Node, exact: bool, careless: bool) -> Node:
    """A stage's result so far with one more value; careless: which may pass over a NaN."""
    if s.reduction is ops.SUM and sofar.dtype.is_float:
        if not exact or s.contracted and value.op is ops.MUL:
            return _added(sofar, value)
    value = _like(sofar, value)
    if s.reduction is ops.SUM:
        return make(ops.ADD, (sofar, value))
    if careless:
        return make(ops.WHERE, (make(ops.LT, (sofar, value)), value, sofar))
    # which of equal zeros MAX gives depends on the order
    return make(ops.MAX, (sofar, value) if exact else (value, sofar))


def _added(sofar: Node, value: Node) -> Node:
    """A sum so far and one more value, where a product is rounded only with the sum; and so are
    those of a value that is a sum of them."""
    if value.op is ops.ADD and value.dtype is sofar.dtype:
        if any(x.op is ops.MUL for x in value.srcs):
            return reduce(_added, value.srcs, sofar)
    if value.op is ops.MUL:
        return make(ops.FMA, (*(_like(sofar, x) for x in value.srcs), sofar))
    return make(ops.ADD, (sofar, _like(sofar, value)))


def _like(sofar: Node, value: Node) -> Node:
    d, width = sofar.dtype, sofar.shape[0] if sofar.shape else 0
    assert isinstance(width, int)
    return wide(value if value.dtype is d else make(ops.CAST, (value,), None, d), width)


def tree(reduction: ops.Op, parts: list[Node]) -> Node:
    """Halves added pairwise: part k joins part k + n/2, as the exact profile says."""
    op = ops.ADD if reduction is ops.SUM else ops.MAX
    while len(parts) > 1:
        half = (len(parts) + 1) // 2
        pairs = [make(op, (a, b)) for a, b in zip(parts[:half], parts[half:])]
        parts = pairs + parts[len(pairs) : half]
    return reduce(lambda a, b: make(op, (a, b)), parts)


def identity(reduction: ops.Op, d: DType) -> Node:
    """The value a reduction starts from."""
    return make(ops.CONST, (), (d.min if reduction is ops.AMAX else 0), d)


def lowest(d: DType) -> float:
    """The lowest finite number."""
    return -float(np.finfo(d.numpy).max)
