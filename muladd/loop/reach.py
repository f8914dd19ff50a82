"""How much of an axis is needed inside of the loops that stand around a stage.

A copy of the rows of an image, made anew for each block of rows, holds the rows of that block and
those that its windows reach over it: from the least to the greatest index at which it is read while
the loops around stay where they are. A sum needs the terms that do not lie in padding.
"""
from __future__ import annotations

from collections.abc import Sequence

from muladd.ir import Dim, Node, ops, sym, toposort
from muladd.loop.kernel import Stage
from muladd.loop.limits import Limits
from muladd.loop.plan import Plan

Values = dict[Node, Dim]


def reach(
    plan: Plan, stage: Stage, axis: Node, padding: dict[Node, Limits]
) -> tuple[Dim, Dim] | None:
    """(first, end) of what is read along an axis of the stage's own, or summed outside of padding;
    None if that is all of it, or cannot be told."""
    if axis in padding:
        first, end = within(plan, stage, axis, padding[axis])
        return sym.minimum(sym.maximum(first, 0), axis.arg.extent), sym.maximum(end, 0)
    if axis not in stage.axes or axis in plan.kernel.shared or stage.argument is not None:
        return None
    at = stage.axes.index(axis)
    indices = {r.srcs[at] for s in plan.kernel.stages for r in s.reads()
               if r.arg[0] == stage.name}  # fmt: skip
    if len(indices) != 1:
        return None
    (index,) = indices
    parts = toposort((index,))
    if not all(n.op in (ops.RANGE, ops.CONST, ops.ADD, ops.MUL, ops.DIV) for n in parts):
        return None
    axes = [n for n in parts if n.op is ops.RANGE]
    fixed = {x for x in plan.enclosing(stage) if x.arg.extent != 1 and plan.owner(x) in axes}
    if not fixed:
        return None
    least, most = _turns(plan, axes, fixed)
    begin, last = (extreme(sym.as_dim(index), least, most, greatest) for greatest in (False, True))
    return begin, sym.add(last, 1)


def within(plan: Plan, stage: Stage, axis: Node, limit: Limits) -> tuple[Dim, Dim]:
    """The limits of an axis for all points that the loops around a stage have in common."""
    least, most = _turns(plan, plan.kernel.shared, set(plan.enclosing(stage)))
    low = 0 if limit.low is None else extreme(limit.low, least, most, False)
    high = axis.arg.extent if limit.high is None else extreme(limit.high, least, most, True)
    return low, high


def extreme(x: Dim, least: Values, most: Values, greatest: bool) -> Dim:
    """The greatest (or least) that an index can be while each axis lies between two values.

    Where a division's rest has not the same value in all turns, that is the divisor less 1 (or 0).
    """
    total: list[Dim] = []
    for mono, c in sym.poly(x).items():
        up = (c > 0) == greatest
        if len(mono) > 1 and any(sym.bounds(a)[0] < 0 for a in mono):
            total.append(sym.bounds(sym.build({mono: c}))[greatest])
            continue
        factors = [_extreme_atom(a, least, most, up) for a in mono]
        if len(mono) > 1:  # none is negative, so their product grows with each
            factors = [sym.maximum(f, 0) for f in factors]
        total.append(sym.mul(sym.product(factors), c))
    return sym.sum_of(total)


def _extreme_atom(a: Node, least: Values, most: Values, greatest: bool) -> Dim:
    if a in most:
        return (most if greatest else least)[a]
    axes = [x for x in toposort((a,)) if x in most]
    if all(ops.equal_dims(least[x], most[x]) for x in axes):
        return sym.replace(a, least)
    if a.op in (ops.DIV, ops.MOD):
        x, by = a.srcs
        if sym.bounds(by)[0] > 0 and not any(y in most for y in toposort((by,))):
            if a.op is ops.DIV:
                return sym.div(extreme(sym.as_dim(x), least, most, greatest), sym.as_dim(by))
            return sym.sub(sym.as_dim(by), 1) if greatest else 0
    return sym.bounds(a)[greatest]


def _turns(plan: Plan, axes: Sequence[Node], fixed: set[Node]) -> tuple[Values, Values]:
    """The least and the greatest value of each axis while the fixed ones of its loops stay."""
    least: Values = {}
    most: Values = {}
    for a in axes:
        leaves = plan.leaves[a]
        least[a] = sym.sum_of(sym.mul(x.loop, x.stride) for x in leaves if x.loop in fixed)
        inner = sym.sum_of(sym.mul(sym.sub(x.extent, 1), x.stride)
                           for x in leaves if x.loop not in fixed)  # fmt: skip
        most[a] = sym.add(least[a], inner)
    return least, most


__all__ = ["extreme", "reach", "within"]
