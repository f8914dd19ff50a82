"""Running sums and extremes along an axis, on nodes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from muladd.ir import Node, iota
from muladd.tensor import graph as g

# A line is cut into rows, these into blocks of blocks. A row stays in the first cache while the
# sums of its blocks, and of their blocks, are run up; a block's sums are a few additions side by
# side, so that vectors have no lane which waits for another.
_BLOCK, _ROW = 8, 1024


def running_sum(x: Node, axis: int, before: bool = False) -> Node:
    """Sums of everything up to each element along an axis, or of everything before it."""
    n: Any = x.shape[axis]
    if n <= _BLOCK:
        return _triangle(x, axis) if before else doubling(x, axis, g.add, 0)
    rows = -(-n // _ROW)
    sizes = _sizes(-(-n // rows))
    levels, width = len(sizes), prod(sizes)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, rows * width - n)
    cut = g.reshape(g.pad(x, pads), (*x.shape[:axis], rows, *sizes, *x.shape[axis + 1 :]))
    last = axis + levels
    result = running_sum(cut, last, before)
    totals = cut
    for level in range(last - 1, axis, -1):
        totals = g.total(totals, (level + 1,))
        result = g.add(result, _beside(_triangle(totals, level), level + 1, cut))
    if rows > 1:
        totals = g.total(cut, tuple(range(axis + 1, last + 1)))
        earlier = running_sum(totals, axis, before=True)
        result = g.add(result, _beside(earlier, axis + 1, cut))
    joined = (*x.shape[:axis], rows * width, *x.shape[axis + 1 :])
    return g.cut(g.reshape(result, joined), axis, 0, n)


def _sizes(n: int) -> tuple[int, ...]:
    """Blocks of blocks, at least two levels of them, for so many elements or a few more."""
    inner = (_BLOCK,) if n <= _BLOCK * _BLOCK else (_BLOCK, _BLOCK)
    return (-(-n // prod(inner)), *inner)


def _beside(x: Node, axis: int, like: Node) -> Node:
    """One value for all elements of the axes from this one on that x lacks."""
    for _ in range(like.ndim - x.ndim):
        x = g.unsqueeze(x, axis)
    return g.expand(x, like.shape)


def _triangle(x: Node, axis: int) -> Node:
    """Sums of what is before each element, as sums under a triangular mask."""
    n = x.shape[axis]
    shape = (*x.shape[:axis], n, n, *x.shape[axis + 1 :])  # (inputs, outputs)
    source, target = g.along(iota(n), axis, shape), g.along(iota(n), axis + 1, shape)
    wide = g.expand(g.unsqueeze(x, axis + 1), shape)
    return g.total(g.where(g.lt(source, target), wide, 0), (axis,))


def shifted(x: Node, axis: int, by: int, value: Any = 0) -> Node:
    """Every element `by` places further on; `value` comes in at the front."""
    n: Any = x.shape[axis]
    if by >= n:
        return g.like(x, value)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (by, 0)
    return g.pad(g.cut(x, axis, 0, n - by), pads, value)


def doubling(x: Node, axis: int, join: Callable[[Node, Node], Node], neutral: Any) -> Node:
    """Running totals of any associative operation, in log2(n) steps (Hillis and Steele, 1986)."""
    n: Any = x.shape[axis]
    shift = 1
    while shift < n:
        x = join(shifted(x, axis, shift, neutral), x)
        shift *= 2
    return x


def later_greater(before: Node, now: Node) -> Node:
    kept = g.ge(now, before)
    return g.either(kept, g.ne(now, now)) if now.dtype.is_float else kept


def later_less(before: Node, now: Node) -> Node:
    kept = g.le(now, before)
    return g.either(kept, g.ne(now, now)) if now.dtype.is_float else kept
