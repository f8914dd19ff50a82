"""Arrays put together from parts: each part is computed where it belongs.

    where(i < 2, pad(a), pad(b))  ->  JOIN(a, b)

The language has no concatenation. A choice among padded parts says what one means, and costs every
element a look at all parts: that is cheaper than memory where the parts are few and plain, and
n times the work where they are n values to be computed. Those are joined here: a JOIN's parts are
stages of their own, which store into one array.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from muladd.compile.empty import is_empty
from muladd.compile.index import OPAQUE, is_buffer
from muladd.ir import Node, make, ops, rebuild, toposort

_LEAST = 24  # operations and loads that an element would cost, from which on parts are joined
_MOST = 1024  # operations below parts that are looked at


def joined(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The graph with JOINs where they save work, each over parts of its own."""
    order = toposort(outputs)
    done: dict[Node, Node] = {}
    if any(n.op is ops.WHERE for n in order):
        for n in order:
            found = _parts(n)
            if found is not None and _price(found[1]) >= _LEAST:
                done[n] = join([done[p] for p in found[1]], found[0])
            else:
                done[n] = _again(n, done)
        outputs = tuple(done[o] for o in outputs)
    return _apart(outputs)


def join(parts: Sequence[Node], axis: int) -> Node:
    """The parts one after the other along an axis."""
    return make(ops.JOIN, tuple(parts), axis)


def _apart(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The graph with JOINs whose parts are stored in their place alone: what lies in memory
    elsewhere (an array, a result, another JOIN or its part) is copied."""
    order = toposort(outputs)
    if not any(n.op is ops.JOIN for n in order):
        return outputs
    done: dict[Node, Node] = {}
    taken = {*outputs, *(s for n in order if n.op in OPAQUE for s in n.srcs)}
    copies: Counter[Node] = Counter()
    for n in order:
        new = _again(n, done)
        if n.op is ops.JOIN:
            parts = []
            for old, p in zip(n.srcs, new.srcs):
                if is_empty(p):
                    continue
                if {old, p} & taken or is_buffer(p) or p.op is ops.JOIN or p.op.group == "reduce":
                    copies[p] += 1
                    longer = make(ops.RESHAPE, (p,), (*[1] * copies[p], *p.shape))
                    p = make(ops.RESHAPE, (longer,), p.shape)  # to and fro: a value of its own
                taken |= {old, p}
                parts.append(p)
            new = join(parts, n.arg)
        done[n] = new
    return tuple(done[o] for o in outputs)


def _again(n: Node, done: dict[Node, Node]) -> Node:
    """n over what its sources have become."""
    srcs = tuple(done[s] for s in n.srcs)
    return n if all(a is b for a, b in zip(srcs, n.srcs)) else rebuild(n, srcs)


def _parts(n: Node) -> tuple[int, list[Node]] | None:
    """(axis, parts) of a choice among padded parts by their places along an axis."""
    if n.op is not ops.WHERE:
        return None
    parts: list[Node] = []
    axis = start = None
    end = None
    while n.op is ops.WHERE:
        condition, rest, last = n.srcs
        place = _place(condition)
        if place is None or last.op is not ops.PAD or (axis is not None and place[0] != axis):
            return None
        axis, start = place
        if end is None:
            end = n.shape[axis]
        if not _lies(last, axis, start, end):
            return None
        parts.append(last.srcs[0])
        n, end = rest, start
    if axis is None or n.op is not ops.PAD or not _lies(n, axis, 0, end):
        return None
    return axis, [n.srcs[0], *reversed(parts)]


def _place(condition: Node) -> tuple[int, int] | None:
    """(axis, k) of a condition that says: index along the axis < k."""
    if condition.op is not ops.LT:
        return None
    index, bound = condition.srcs
    while bound.op in (ops.EXPAND, ops.RESHAPE):
        bound = bound.srcs[0]
    if bound.op is not ops.CONST or index.dtype.kind not in "iu":
        return None
    axes = [a for a, n in enumerate(index.shape) if not ops.equal_dims(n, 1)]
    if index.op is ops.EXPAND:
        inner = index.srcs[0]
        ahead = index.ndim - inner.ndim
        axes = [a + ahead for a, n in enumerate(inner.shape) if not ops.equal_dims(n, 1)]
        index = inner
    while index.op is ops.RESHAPE:
        index = index.srcs[0]
    if index.op is not ops.IOTA or len(axes) != 1:
        return None
    return axes[0], bound.arg


def _lies(pad: Node, axis: int, start: object, end: object) -> bool:
    """Whether a PAD puts its source at start to end of an axis, and nothing along the others."""
    n = pad.shape[axis]
    if not (isinstance(n, int) and isinstance(start, int) and isinstance(end, int)):
        return False
    around = (start, n - end, 0)
    return all(p == (around if a == axis else (0, 0, 0)) for a, p in enumerate(pad.arg[0]))


def _price(parts: list[Node]) -> int:
    """Operations and loads that are not done for an element if it looks at its own part alone."""
    costs = []
    for p in parts:
        order = toposort((p,), into=lambda m: not (is_buffer(m) or m.op.group == "reduce"))
        costs.append(sum(1 for m in order[:_MOST] if m.op.elementwise or is_buffer(m)
                         or m.op.group == "reduce"))  # fmt: skip
    return sum(costs) - max(costs)


__all__ = ["join", "joined"]
