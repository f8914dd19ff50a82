"""keep STAGE NAME: a stage's results stay in the kernel; a stage of its own, NAME, stores them.

    keep s0 d0    s0[i, j] += a[i, k] * b[k, j] -> b2[i*n + j]
              ->  s0[i, j] += a[i, k] * b[k, j];  d0[i, j] = s0[i, j] -> b2[i*n + j]

Partial results may then wait in the kernel's memory: `nest s0 k.0 i.1 j.1 k.1` sums a block of k at
a time, for a whole tile of results. Sums of 16-bit floats wait in float32, and are rounded once.
"""

from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import Node, make, ops
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan
from muladd.schedule.primitives import check_new, default_nest, stage_named


def apply(plan: Plan, stage: str, name: str) -> Plan:
    s = stage_named(plan, stage)
    check_new(plan, name, "keep")
    if s.reduction is None or s.scatter:
        raise ScheduleError(f"keep: {stage} sums nothing that could wait")
    if s.accumulator is not s.dtype and s.value.op is not ops.MUL:
        raise ScheduleError(f"keep: {stage} sums {s.dtype.name} that is no product")
    result: Node = make(ops.READ, s.axes, (stage, len(s.axes)), s.accumulator)
    old = replace(s, argument=None, position=0)
    if s.accumulator is not s.dtype:
        result = make(ops.CAST, (result,), None, s.dtype)
        sides = tuple(make(ops.CAST, (x,), None, s.accumulator) for x in s.value.srcs)
        old = replace(old, value=make(ops.MUL, sides))
    done = Stage(name, s.axes, result, argument=s.argument, position=s.position)
    stages: list[Stage] = []
    for t in plan.kernel.stages:
        if t is s:
            stages += [old, done]
        else:
            stages.append(replace(t, value=_redirected(t.value, stage, name)))
    kernel = replace(plan.kernel, stages=tuple(stages), _memo={})
    plan = replace(plan, kernel=kernel, levels={**plan.levels, name: plan.levels[stage]})
    return replace(plan, nests={**plan.nests, name: default_nest(plan, done)})


def _redirected(value: Node, old: str, new: str) -> Node:
    """The value with reads of one stage made reads of another."""
    from muladd.loop.kernel import reaxis

    return reaxis(value, {}, {old: new})
