"""Maxima that may pass over a NaN, because everybody who reads them meets it anyway.

In a softmax the greatest score m only keeps exp(score - m) small. If a score is NaN, so is its own
exponential, and with it the sum of them all, by which every result is divided. So it does not
matter what m is then; and a processor compares two numbers in one instruction if NaNs need not be
told apart, in three otherwise.
"""
from __future__ import annotations

from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel, Stage, reaxis

# what is NaN if an operand is, and what may be
_STRICT = (ops.ADD, ops.MUL, ops.DIV, ops.FMA, ops.SQRT, ops.EXP, ops.EXP2, ops.LOG2, ops.SIN,
           ops.COS)
_SOME = (ops.CAST, ops.WHERE, ops.LT)


def careless(kernel: Kernel) -> frozenset[str]:
    """The maxima of a kernel's stages that may take any other value where one of theirs is NaN."""
    if kernel.exact:
        return frozenset()
    return frozenset(
        s.name for s in kernel.stages
        if s.reduction is ops.AMAX and s.dtype.is_float and s.argument is None
        and len(s.reduced) == 1 and all(a in kernel.shared for a in s.axes)
        and _found_elsewhere(kernel, s)
    )  # fmt: skip


def _found_elsewhere(kernel: Kernel, maximum: Stage) -> bool:
    """Whether all readers of a maximum, and readers of these, are NaN if one of its values is."""
    (turn,) = maximum.reduced
    places: dict[str, int] = {maximum.name: -1}  # stages that are NaN where a value is, by an axis
    spoilt: set[str] = set()  # stages of which every element of a row is
    for s in kernel.stages:
        reads = {r.arg[0]: r for r in s.reads()}
        if not places.keys() & reads.keys():
            continue
        strict = _strict(s.value)
        if any(r.op is ops.READ and r.arg[0] in spoilt for r in strict):
            continue
        at = next((a for a in (*s.reduced, *s.axes)
                   if _has(strict, maximum, turn, a, places)), None)  # fmt: skip
        if at is None or s.scatter or s.reduction not in (None, ops.SUM):
            return False
        if at in s.reduced:
            spoilt.add(s.name)
        elif s.reduction is None and s.argument is None and at not in kernel.shared:
            places[s.name] = s.axes.index(at)
        else:
            return False
    return bool(spoilt)


def _has(
    strict: frozenset[Node], maximum: Stage, turn: Node, axis: Node, places: dict[str, int]
) -> bool:
    """Whether the maximum's value at an axis is among nodes, or a stage that holds it there."""
    return reaxis(maximum.value, {turn: axis}, {}) in strict or any(
        r.op is ops.READ and places.get(r.arg[0], -1) >= 0 and r.srcs[places[r.arg[0]]] is axis
        for r in strict
    )


def _strict(value: Node) -> frozenset[Node]:
    """The nodes of an expression that make all of it NaN if they are."""
    of: dict[Node, frozenset[Node]] = {}
    for n in toposort((value,), into=lambda m: m.op in _STRICT or m.op in _SOME):
        found: frozenset[Node] = frozenset((n,))
        if n.op in _STRICT or n.op is ops.CAST and n.srcs[0].dtype.is_float and n.dtype.is_float:
            found = found.union(*(of[x] for x in n.srcs))
        elif n.op is ops.WHERE and n.srcs[0].op is ops.LT:  # no NaN is less, or greater
            a, b = n.srcs[0].srcs
            found |= of[n.srcs[2]] & (of[a] | of[b])
        of[n] = found
    return of[value]
