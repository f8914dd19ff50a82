"""unsigned STAGE SUMS RESULT: the right side's bytes lose their sign; what that adds is taken off.

    unsigned s0 z0 d0    s0[i, j] += a[i, k] * b[k, j] over k -> b2[i*n + j]
                     ->  s0[i, j] += a[i, k] * (b[k, j] + 128) over k
                         z0[i] += a[i, f] over f
                         d0[i, j] = s0[i, j] - 128 * z0[i] -> b2[i*n + j]

For machines that multiply bytes without a sign by bytes with one. A byte plus 128 is the byte with
its highest bit turned, and the sums wrap as int32 does, so the result is the same to the last bit.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import const, dtype, make, ops, sym, toposort
from muladd.loop.dots import factors
from muladd.loop.kernel import Stage, reaxis
from muladd.loop.plan import Leaf, Plan
from muladd.schedule.primitives import default_nest, keep, stage_named

_HALF = 128


def apply(plan: Plan, stage: str, sums: str, result: str) -> Plan:
    s = stage_named(plan, stage)
    found = factors(s)
    if found is None or len(found) != 1 or any(x.dtype is not dtype.int8 for x in found[0]):
        raise ScheduleError(f"unsigned: {stage} sums no products of two int8")
    ((left, right),) = found
    plan = keep.apply(plan, stage, result)
    turned = make(ops.BITCAST, (right,), None, dtype.uint8)
    turned = make(ops.XOR, (turned, const(_HALF, dtype.uint8)))
    wide = tuple(make(ops.CAST, (x,), None, dtype.int32) for x in (left, turned))
    inside = toposort((left,))
    rows = tuple(a for a in s.axes if a in inside)
    if any(a not in plan.kernel.shared for a in rows):
        raise ScheduleError(f"unsigned: rows of {stage} that are no shared axes")
    fresh = {a: sym.axis(f"{sums}.{a.arg.name}", a.arg.extent) for a in s.reduced}
    z = Stage(sums, rows, reaxis(wide[0], dict(fresh), {}), ops.SUM, tuple(fresh.values()))
    stages: list[Stage] = []
    for t in plan.kernel.stages:
        if t.name == stage:
            stages += [z, replace(t, value=make(ops.MUL, wide))]
        elif t.name == result:
            read = make(ops.READ, rows, (sums, len(rows)), dtype.int32)
            more = make(ops.MUL, (read, const(-_HALF, dtype.int32)))
            stages.append(replace(t, value=make(ops.ADD, (t.value, more))))
        else:
            stages.append(t)
    leaves = {**plan.leaves, **{a: (Leaf(a, 1),) for a in fresh.values()}}
    plan = replace(plan, kernel=replace(plan.kernel, stages=tuple(stages), _memo={}),
                   leaves=leaves, levels={**plan.levels, sums: plan.levels[stage]})  # fmt: skip
    return replace(plan, nests={**plan.nests, sums: default_nest(plan, z)})
