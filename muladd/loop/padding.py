"""Terms of a sum that lie in the padding around an image: zeros, which need not be added.

A window that reaches over the border of an image multiplies its weights by zeros there. For a tile
of results, the loops around tell which rows of the window do; these turns are not run. Where the
columns are written out, each place is known, and a term outside is no instruction at all. (Values
that are left out count as finite, as in `limits`. The exact profile does not use this.)
"""

from __future__ import annotations

from collections.abc import Iterator

from muladd.ir import Dim, Node, dtype, ops, sym
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.limits import Limits, solved


def padding(kernel: Kernel, s: Stage) -> dict[Node, Limits]:
    """The limits of a sum's reduced axes outside of which a factor is a load's zero."""
    found: dict[Node, Limits] = {}
    if kernel.exact or s.reduction is not ops.SUM:
        return found
    for less, than in _guards(kernel, s):
        where = solved(kernel, s, less, than)
        if where is not None and where[0] in s.reduced:
            axis, limit = where
            known = found.get(axis, Limits())
            low = limit.low if known.low is None else known.low
            high = limit.high if known.high is None else known.high
            found[axis] = Limits(low, high)
    return found


def lies_in(
    found: dict[Node, Limits], places: dict[Node, Dim], values: dict[Node, Dim]
) -> bool:
    """Whether a turn of a sum lies in its padding for sure. places: the axes in terms of loops;
    values: the loops of which it is a turn."""
    turn = {a: sym.replace(x, values) for a, x in places.items()} if found else {}
    for axis, limit in found.items():
        at = turn[axis]
        low, high = (x if x is None else sym.replace(x, turn) for x in (limit.low, limit.high))
        if low is not None and sym.is_less(at, low) is True:
            return True
        if high is not None and sym.is_less(at, high) is False:
            return True
    return False


def _guards(kernel: Kernel, s: Stage) -> Iterator[tuple[Dim, Dim]]:
    """The comparisons a < b that all must hold for a term of a sum of products not to be zero."""
    for factor in _parts(s.value, ops.MUL):
        while factor.op is ops.CAST:
            (factor,) = factor.srcs
        axes: dict[Node, Dim] = {}
        if factor.op is ops.READ and factor.arg[0] != s.name:
            copied = kernel.stage(factor.arg[0])
            if copied.reduction is not None or copied.scatter:
                continue
            axes = dict(zip(copied.axes, map(sym.as_dim, factor.srcs)))
            factor = copied.value
        if factor.op is ops.LOAD and len(factor.srcs) > 1:
            for guard in _parts(factor.srcs[1], ops.MUL):
                if guard.op is ops.LT and guard.srcs[0].dtype is dtype.INDEX:
                    if all(sym.trusted(x) for x in guard.srcs):
                        less, than = (sym.replace(sym.as_dim(x), axes) for x in guard.srcs)
                        yield less, than


def _parts(n: Node, op: object) -> Iterator[Node]:
    """The operands of a tree of one operation."""
    if n.op is op:
        for s in n.srcs:
            yield from _parts(s, op)
    else:
        yield n


__all__ = ["lies_in", "padding"]
