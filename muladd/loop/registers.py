"""Values of lanes: registers of accumulators, masks, and how partial results are joined."""
from __future__ import annotations

from functools import reduce

import numpy as np

from muladd.ir import DType, Node, const, dtype, make, ops, sym


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


def joined(reduction: ops.Op, sofar: Node, value: Node, exact: bool, careless: bool) -> Node:
    """A reduction's result so far with one more value; careless: which may pass over a NaN."""
    if reduction is ops.SUM:
        return make(ops.ADD, (sofar, value))
    if careless:
        return make(ops.WHERE, (make(ops.LT, (sofar, value)), value, sofar))
    # which of equal zeros MAX gives depends on the order
    return make(ops.MAX, (sofar, value) if exact else (value, sofar))


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
