"""Running sums and extremes along an axis, on nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from muladd.ir import Node, iota
from muladd.tensor import graph as g

_BLOCK = 32  # terms that are summed for each place anew: n / 2 additions, side by side


def running_sum(x: Node, axis: int) -> Node:
    """Sums inside blocks, plus the running sum of the blocks' totals."""
    n: Any = x.shape[axis]
    if n <= _BLOCK:
        return _triangle(x, axis)
    block = _BLOCK
    count = -(-n // block)
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, count * block - n)
    cut = g.reshape(g.pad(x, pads), (*x.shape[:axis], count, block, *x.shape[axis + 1 :]))
    inside = _triangle(cut, axis + 1)
    totals = g.total(cut, (axis + 1,))
    before = g.sub(running_sum(totals, axis), totals) if not x.dtype.is_float \
        else shifted(running_sum(totals, axis), axis, 1)  # fmt: skip
    result = g.add(inside, g.expand(g.unsqueeze(before, axis + 1), cut.shape))
    joined = (*x.shape[:axis], count * block, *x.shape[axis + 1 :])
    return g.cut(g.reshape(result, joined), axis, 0, n)


def _triangle(x: Node, axis: int) -> Node:
    """Running sums as sums under a triangular mask."""
    n = x.shape[axis]
    shape = (*x.shape[:axis], n, n, *x.shape[axis + 1 :])  # (inputs, outputs)
    source, target = g.along(iota(n), axis, shape), g.along(iota(n), axis + 1, shape)
    wide = g.expand(g.unsqueeze(x, axis + 1), shape)
    return g.total(g.where(g.lt(target, source), 0, wide), (axis,))


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
