"""Sums of products of bytes: what they are, and their operands for all lanes of a vector at once.

Machines multiply bytes and add neighbours in one instruction. A lane of its result has 2 or 4
bytes of each operand; which bytes, tells the operand's index: side by side with those of the next
lane, or the same for all lanes.
"""
from __future__ import annotations

from muladd.errors import ScheduleError
from muladd.ir import Node, const, dtype, make, ops, rebuild, sym, toposort
from muladd.loop.kernel import Stage

Pair = tuple[Node, Node]


def factors(s: Stage) -> list[Pair] | None:
    """The pairs of bytes, or of a byte and 16 bits with a sign, whose products a stage adds up in
    int32, or None if that is not what it does."""
    if s.reduction is not ops.SUM or s.dtype is not dtype.int32 or s.scatter:
        return None
    if any(len(x.srcs) > 1 for x in s.loads()):  # padded rows: bytes that may not be there
        return None
    found: list[Pair] = []
    todo = [s.value]
    while todo:
        n = todo.pop()
        if n.op is ops.ADD:
            todo += reversed(n.srcs)
        elif n.op is ops.MUL and all(x.op is ops.CAST for x in n.srcs):
            pair = (n.srcs[0].srcs[0], n.srcs[1].srcs[0])
            if not all(map(_is_narrow, pair)) or all(x.dtype.bits == 16 for x in pair):
                return None
            found.append(pair)
        else:
            return None
    return found


def _is_narrow(x: Node) -> bool:
    return x.dtype.is_int and x.dtype.bits == 8 or x.dtype is dtype.int16


def dot(accumulator: Node, operands: list[Node], vector: Node, inner: Node) -> Node:
    """The accumulator and products of operands, taken in pairs, of all turns of the inner loop."""
    wide = tuple(side_by_side(x, vector, inner) for x in operands)
    return make(ops.DOT, (accumulator, *wide), None, accumulator.dtype)


def side_by_side(value: Node, vector: Node, inner: Node) -> Node:
    """An operand for all turns of the vector loop and, within each, of the inner one.

    Raises ScheduleError where its bytes lie otherwise.
    """
    lanes, group = vector.arg.extent, inner.arg.extent
    count = lanes * group
    done: dict[Node, Node] = {}
    for n in toposort((value,), into=lambda m: m.op is not ops.LOAD):
        if n.op is ops.LOAD:
            if len(n.srcs) > 1:
                raise ScheduleError("dot: an operand that is loaded under a condition")
            done[n] = make(ops.LOAD, (_index(n.srcs[0], vector, inner, count),), n.arg, n.dtype)
        elif n.op is ops.CONST:
            done[n] = const(n.arg, n.dtype, (count,))
        elif n.op.elementwise and n.srcs:
            srcs = tuple(done[s] for s in n.srcs)
            done[n] = rebuild(n, srcs)
        else:
            raise ScheduleError(f"dot: an operand made by {n.op.name}")
    return done[value]


def _index(index: Node, vector: Node, inner: Node, count: int) -> Node:
    steps: dict[Node, sym.Dim] = {vector: 0, inner: 0}
    rest: dict[tuple[Node, ...], int] = {}
    for mono, c in sym.poly(index).items():
        if mono in ((vector,), (inner,)):
            steps[mono[0]] = c
        else:
            rest[mono] = c
    base = sym.build(rest)
    free = isinstance(base, int) or not {vector, inner} & {*toposort((base,))}
    group = inner.arg.extent
    start = make(ops.EXPAND, (sym.as_node(base),), (count,))
    lane = make(ops.IOTA, (), count, dtype.INDEX)
    if free and steps == {vector: group, inner: 1}:
        return make(ops.ADD, (start, lane))
    if free and steps == {vector: 0, inner: 1}:
        again = make(ops.MOD, (lane, const(group, dtype.INDEX, (count,))))
        return make(ops.ADD, (start, again))
    raise ScheduleError(f"dot: the bytes of an operand lie {steps[vector]} apart from lane to lane "
                        f"and {steps[inner]} within one; expected {group} or 0, and 1")  # fmt: skip


__all__ = ["dot", "factors", "side_by_side"]
