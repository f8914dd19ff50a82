"""Turns that need not run: what a condition makes nothing of, found before the loops are.

Where the score of a pair is -inf outside i >= j, its exponential is 0, and sums and maxima of these
lose nothing by leaving them out. So each axis along which that holds, in every stage that reads
them, has limits that depend on the shared axes, and its loops begin and end there. (Values that are
left out count as finite: 0 times them is 0. The exact profile does not use this.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.rewrite.rules.folding import folded

_LEAST = 64  # turns of a loop below which leaving some of them out does not pay


@dataclass(frozen=True)
class Limits:
    """An axis matters from low on and below high; both depend on shared axes, None is no limit."""

    low: Dim | None = None
    high: Dim | None = None


@dataclass(frozen=True)
class _Found:
    """A stage that is `constant` outside the limits of one of its axes."""

    axis: Node
    limits: Limits
    constant: Any


def limits(kernel: Kernel) -> dict[Node, Limits]:
    """The limits of the axes of a kernel's stages that have any."""
    if kernel.exact:
        return {}
    refused: set[str] = set()
    while True:
        found = _forward(kernel, refused)
        if not found:
            return {}
        needed = _needed(kernel, found)
        if not needed:
            return _backward(kernel, found)
        refused |= needed


def _forward(kernel: Kernel, refused: set[str]) -> dict[str, _Found]:
    """Stages, in order, that are constant outside of limits: reductions are at their identity."""
    found: dict[str, _Found] = {}
    for s in kernel.stages:
        if s.name in refused or s.scatter:
            continue
        made = _of_stage(kernel, s, found)
        if made is not None:
            found[s.name] = made
    return found


def _of_stage(kernel: Kernel, s: Stage, found: dict[str, _Found]) -> _Found | None:
    best: _Found | None = None
    for axis, limit, known in _candidates(kernel, s, found):
        constant = _value(s.value, known)
        if axis in s.reduced:
            identity = 0 if s.reduction is ops.SUM else s.dtype.min
            if constant is None or constant != identity:
                continue
        elif constant is None or s.reduction is not None or s.argument is not None:
            continue
        made = _Found(axis, limit, None if axis in s.reduced else constant)
        best = made if best is None else _narrower(best, made)
    return best


def _narrower(a: _Found, b: _Found) -> _Found:
    """Both limits of an axis, where one comparison gives the lower and another the upper."""
    if a.axis is not b.axis or a.constant != b.constant:
        return a
    low = a.limits.low if a.limits.low is not None else b.limits.low
    high = a.limits.high if a.limits.high is not None else b.limits.high
    return _Found(a.axis, Limits(low, high), a.constant)


def _candidates(
    kernel: Kernel, s: Stage, found: dict[str, _Found]
) -> Iterator[tuple[Node, Limits, dict[Node, Any]]]:
    """(axis, limits, what nodes are outside of them): from stages that are read, or comparisons."""
    read: dict[tuple[Node, Limits], dict[Node, Any]] = {}
    for r in s.reads():
        f = found.get(r.arg[0])
        if f is not None and f.constant is not None:
            axis = r.srcs[kernel.stage(r.arg[0]).axes.index(f.axis)]
            if axis.op is ops.RANGE and axis not in kernel.shared:
                read.setdefault((axis, f.limits), {})[r] = f.constant
    for (axis, limit), known in read.items():
        yield axis, limit, known
    for n in toposort((s.value,)):
        if n.op is ops.LT and n.srcs[0].dtype is dtype.INDEX:
            yield from _comparison(kernel, s, n)


def _comparison(kernel: Kernel, s: Stage, n: Node) -> Iterator[tuple[Node, Limits, dict]]:
    """The limits of an axis of the stage's own that a < b gives it, where that holds and not."""
    if not all(sym.trusted(x) for x in n.srcs):
        return
    a, b = (sym.as_dim(x) for x in n.srcs)
    found = solved(kernel, s, a, b)
    if found is not None and sym.bounds(found[0].arg.extent)[1] >= _LEAST:
        axis, inside = found
        yield axis, Limits(low=inside.high, high=inside.low), {n: True}
        yield axis, inside, {n: False}


def solved(kernel: Kernel, s: Stage, a: Dim, b: Dim) -> tuple[Node, Limits] | None:
    """Where a < b along an axis of the stage's own; None if that is not one limit, or if it depends
    on more than shared axes."""
    difference = sym.sub(a, b)  # a < b where this is negative
    own = [x for x in toposort((sym.as_node(difference),))
           if x.op is ops.RANGE and x not in kernel.shared]  # fmt: skip
    if len(own) != 1 or own[0] not in (*s.axes, *s.reduced):
        return None
    (axis,) = own
    for sign in (1, -1):
        rest = sym.sub(difference, sym.mul(axis, sign))
        if isinstance(rest, int) or axis not in toposort((rest,)):
            if sign == 1:  # axis < -rest
                return axis, Limits(high=sym.mul(rest, -1))
            return axis, Limits(low=sym.add(rest, 1))  # rest < axis
    return None


def _needed(kernel: Kernel, found: dict[str, _Found]) -> set[str]:
    """Stages that somebody reads where they are left out, without leaving that out too."""
    needed: set[str] = set()
    for s in kernel.stages:
        mine = found.get(s.name)
        for r in s.reads():
            f = found.get(r.arg[0])
            if f is None or f.constant is None:
                continue
            axis = r.srcs[kernel.stage(r.arg[0]).axes.index(f.axis)]
            if mine is None or mine.axis is not axis or mine.limits != f.limits:
                needed.add(r.arg[0])
    return needed


def _backward(kernel: Kernel, found: dict[str, _Found]) -> dict[Node, Limits]:
    """The axes' limits, with those of stages that are only read within limits."""
    result = {f.axis: f.limits for f in found.values()}
    for s in reversed(kernel.stages):
        if s.name in found or s.argument is not None or s.scatter:
            continue
        reads = [r for t in kernel.stages for r in t.reads() if r.arg[0] == s.name]
        for i, axis in enumerate(s.axes):
            if axis in kernel.shared or not reads:
                continue
            wanted = {result.get(r.srcs[i]) for r in reads}
            if len(wanted) == 1 and None not in wanted:
                result[axis] = wanted.pop()  # type: ignore[assignment]
                break
    return result


# --- constants -----------------------------------------------------------------------------------


def _value(value: Node, known: dict[Node, Any]) -> Any:
    """What an expression is, given some of its nodes; None if that is not enough to tell."""
    done: dict[Node, Node | None] = {}
    for n in toposort((value,), into=lambda m: m not in known):
        if n in known:
            done[n] = make(ops.CONST, (), known[n], n.dtype)
        else:
            done[n] = _constant(n, [done[s] for s in n.srcs])
    result = done[value]
    return None if result is None else result.arg


def _constant(n: Node, srcs: list[Node | None]) -> Node | None:
    """A node as a constant: by its operands, or although one of them is not known (but finite)."""
    if n.op is ops.CONST:
        return n
    if n.op in (ops.RANGE, ops.LOAD, ops.READ, ops.INPUT):
        return None
    if n.op is ops.WHERE and srcs[0] is not None:
        return srcs[1] if srcs[0].arg else srcs[2]
    sure = tuple(s for s in srcs if s is not None)
    if len(sure) == len(srcs):
        again = make(n.op, sure, n.arg, n.dtype if n.op in (ops.CAST, ops.BITCAST) else None)
        return folded(again)
    for s in sure:
        if n.op is ops.MUL and s.arg == 0:
            return s
        if n.op is ops.ADD and s.arg == -math.inf:
            return s
        if n.op is ops.DIV and s is srcs[0] and s.arg == 0 and n.dtype.is_float:
            return s
    return None
