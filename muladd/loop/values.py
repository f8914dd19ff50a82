"""What whole numbers a value of a graph, or of a stage, can be: interval arithmetic.

A look-up whose indices are known to lie inside needs no guard. `data % n` says so, as do `where`
and comparisons above it: what is added to negative indices, say, is not added to these.
"""
from __future__ import annotations

from math import inf

from muladd.ir import Node, ops, sym

Range = tuple[float, float]  # of whole numbers, but where a float is below


def whole_numbers(value: Node) -> tuple[int, int] | None:
    """The least and the greatest value of whole numbers (or of a flag), None for other dtypes."""
    done: dict[Node, Range] = {}
    todo = [value]
    while todo:
        n = todo[-1]
        below = _below(n)
        rest = [s for s in below if s not in done]
        if n in done or not rest:
            todo.pop()
            done.setdefault(n, _range(n, [done[s] for s in below]))
        else:
            todo += rest
    low, high = done[value]
    return None if value.dtype.is_float else (int(low), int(high))


def _below(n: Node) -> tuple[Node, ...]:
    """What a value is made of, as far as its range tells of the value's: of a read, the array."""
    if n.op is ops.READ and isinstance(n.arg[0], Node):
        return (n.arg[0],)
    return () if n.op in (ops.READ, ops.LOAD) or n.op.group == "reduce" else n.srcs


def _range(n: Node, of: list[Range]) -> Range:
    if n.dtype.is_float:
        return -inf, inf
    whole = (int(n.dtype.min), int(n.dtype.max))
    found: Range
    if n.op is ops.CONST:
        found = (int(n.arg), int(n.arg))
    elif n.op is ops.RANGE:
        found = sym.bounds(n)
    elif n.op is ops.IOTA:
        found = (0, max(sym.bounds(n.arg)[1] - 1, 0))
    else:
        found = _calculated(n, of)
    # what does not fit wraps
    return found if whole[0] <= found[0] and found[1] <= whole[1] else whole


def _calculated(n: Node, of: list[Range]) -> Range:
    """The range of an operation's result before it wraps."""
    op, whole = n.op, (int(n.dtype.min), int(n.dtype.max))
    if not of:
        return whole
    (low, high), (least, most) = of[0], of[-1]
    if op is ops.WHERE:
        if low == high:
            return of[1] if low else of[2]
        return _either(of[1], of[2])
    if op is ops.CAST and whole == (0, 1):
        return (int(low > 0 or high < 0), int((low, high) != (0, 0)))
    if op is ops.READ:
        return _either((low, high), (0, 0)) if len(n.srcs) > n.arg[1] else (low, high)
    if op is ops.CAST or op.group == "movement" and op is not ops.PAD:
        return low, high
    if op is ops.BITCAST and n.dtype is n.srcs[0].dtype:
        return low, high
    if op is ops.PAD:
        return _either((low, high), (int(n.arg[1]), int(n.arg[1])))
    if op is ops.LT:
        return int(high < least), int(low < most)
    if op is ops.NE:
        return int(high < least or most < low), int(not low == high == least == most)
    if op is ops.MAX:
        return max(low, least), max(high, most)
    if op is ops.ADD:
        return low + least, high + most
    if op is ops.MUL:
        ends = [a * b for a in (low, high) for b in (least, most)]
        return min(ends), max(ends)
    if op in (ops.DIV, ops.MOD) and least == most > 0:
        if op is ops.DIV:
            return low // most, high // most
        return (low, high) if 0 <= low and high < most else (0, most - 1)
    if op is ops.AND and max(low, least) >= 0:
        return 0, min(x for x, bottom in ((high, low), (most, least)) if bottom >= 0)
    return whole


def _either(a: Range, b: Range) -> Range:
    return min(a[0], b[0]), max(a[1], b[1])


__all__ = ["whole_numbers"]
