"""abreast SUM LOOP STAGE...: stages run a block at a time, in each turn of a reduced loop of SUM.

    abreast s3 r3.0 s0 s1 s2    s0[:n]; s1 = max(s0); s2[:n] = exp(s0 - s1); s3 = s2[:n] @ v[:n]
                            ->  for r3.0 { s0[b]; s1 = max(s1, s0); s2[b] = exp(s0 - s1);
                                s3 = s3 * exp(before - s1) + s2[b] @ v[b] }

What lies between is one block long and stays in the cache. Sums beside SUM advance along with it.
Where they sum exp(x - m) and m is a maximum that advances too, what they have come to is scaled in
each turn (Milakov and Gimelshein, 2018): that is proved from the stages' expressions, or refused.
The axes of the stages, which are one and the same, are split alike, and SUM is kept (`keep`).
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import Node, is_const, ops, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.limits import limits
from muladd.loop.plan import Plan
from muladd.schedule.analysis import same_axes
from muladd.schedule.primitives import loop_named, renest, stage_named


def apply(plan: Plan, total: str, loop: str, *names: str) -> Plan:
    leader, outside = stage_named(plan, total), loop_named(plan, loop)
    axis = plan.owner(outside)
    if axis not in leader.reduced or outside is not plan.leaves[axis][0].loop:
        raise ScheduleError(f"abreast: {loop} is not the outermost loop of a sum of {total}")
    same = same_axes(plan.kernel, axis)
    group = [s for s in plan.kernel.stages if s.name in names]
    if len(group) < len(names):
        raise ScheduleError(f"abreast: of {' '.join(names)}, there are {len(group)} stages")
    inside = dict(plan.inside or {})
    for s in group:
        own = _own_axis(s, same)
        first = plan.leaves[own][0]
        if first.stride != plan.leaves[axis][0].stride:
            raise ScheduleError(f"abreast: {first.loop.arg.name} and {loop} are not split alike")
        inside[s.name] = (outside, first.loop)
    _check(plan.kernel, [*group, leader], same)
    decays = {**(plan.decays or {}), **_decays(plan.kernel, [*group, leader], same)}
    plan = replace(plan, kernel=_reordered(plan.kernel, leader, group), inside=inside,
                   decays=decays)  # fmt: skip
    return renest(plan, tuple(group))


def _own_axis(s: Stage, same: set[Node]) -> Node:
    found = [a for a in (*s.axes, *s.reduced) if a in same]
    if len(found) != 1 or (s.reduced and found[0] in s.axes and s.accumulator is not s.dtype):
        raise ScheduleError(f"abreast: stage {s.name} has {len(found)} axes along that of the sum")
    return found[0]


def _check(kernel: Kernel, group: list[Stage], same: set[Node]) -> None:
    """A stage of which a block is made is read by the others alone; all have the same limits."""
    names = {s.name for s in group}
    bounds = limits(kernel)
    last = bounds.get(_own_axis(group[-1], same))
    for s in group:
        own = _own_axis(s, same)
        if own in s.axes:
            readers = [t.name for t in kernel.stages for r in t.reads() if r.arg[0] == s.name]
            if s.argument is not None or not names.issuperset(readers):
                raise ScheduleError(f"abreast: {s.name} is wanted as a whole")
        elif s.argument is not None or s.accumulator is not s.dtype or s.scatter:
            raise ScheduleError(f"abreast: stage {s.name} needs a place to wait; `keep` it first")
        if last is not None and bounds.get(own) != last:
            raise ScheduleError(f"abreast: {s.name} and {group[-1].name} have other limits")


def _decays(kernel: Kernel, group: list[Stage], same: set[Node]) -> dict[str, str]:
    """Which maximum each sum must be scaled for; refuses what no scaling makes right."""
    results = {s.name: s for s in group if _own_axis(s, same) in s.reduced}
    weights: dict[str, str] = {}  # exp(x - m): which maximum m is
    decays: dict[str, str] = {}
    for s in group:
        for r in s.reads():
            name = r.arg[0]
            if name in results:
                if not _is_weight(s, r) or results[name].reduction is not ops.AMAX or s.lanes > 1:
                    raise ScheduleError(f"abreast: {s.name} needs all of {name}")
                if results[name].dtype.itemsize < 4:  # its least number is none of NumPy's
                    raise ScheduleError(f"abreast: {name} is a maximum in 16 bits")
                weights[s.name] = name
            elif name in weights:
                if s.name not in results or s.reduction is not ops.SUM or not _linear(s.value, r):
                    raise ScheduleError(f"abreast: {s.name} is no sum of {name} times something")
                if decays.setdefault(s.name, weights[name]) != weights[name]:
                    raise ScheduleError(f"abreast: {s.name} depends on two maxima")
    return decays


def _is_weight(s: Stage, maximum: Node) -> bool:
    """Whether a stage is exp(x - m), where m is the maximum, or 0 in its place where it is -inf."""
    if s.reduction is not None or s.value.op is not ops.EXP or s.value.srcs[0].op is not ops.ADD:
        return False
    a, b = s.value.srcs[0].srcs
    for x, negative in ((a, b), (b, a)):
        if negative.op is not ops.MUL or maximum in toposort((x,)):
            continue
        m = next((y for y, c in (negative.srcs, negative.srcs[::-1]) if is_const(c, -1)), None)
        if m is maximum:
            return True
        if m is not None and m.op is ops.WHERE:
            test, nothing, other = m.srcs
            reads = {n for n in toposort((test,)) if n.op in (ops.READ, ops.LOAD, ops.RANGE)}
            return other is maximum and is_const(nothing, 0) and maximum in reads
    return False


def _linear(value: Node, weight: Node) -> bool:
    """Whether an expression is a weight, or its product with something that lacks it."""
    if value is weight:
        return True
    if value.op is not ops.MUL or weight not in value.srcs:
        return False
    other = value.srcs[value.srcs[0] is weight]
    return weight not in toposort((other,))


def _reordered(kernel: Kernel, leader: Stage, group: list[Stage]) -> Kernel:
    """The stages with the sum after all that it does not wait for, and what reads them after it."""
    late = {s.name for s in (*group, leader)}
    before: list[Stage] = []
    after: list[Stage] = []
    for s in kernel.stages:
        if s is leader:
            continue
        if s not in group and any(r.arg[0] in late for r in s.reads()):
            late.add(s.name)
            after.append(s)
        else:
            before.append(s)
    names = {s.name for s in after}
    for s in (*group, leader):
        if any(r.arg[0] in names for r in s.reads()):
            raise ScheduleError(f"abreast: {s.name} needs what {leader.name} must come before")
    return replace(kernel, stages=(*before, leader, *after), _memo={})
