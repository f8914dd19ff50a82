"""outer LOOP...: the loops around all stages, outermost first.

    outer p1.0 p0.0    s0: p0.0 p0.1 p1.0 p1.1 r0  ->  p1.0 p0.0 { s0: p0.1 p1.1 r0 }

Only loops of shared axes can stand there; every stage moves inside the innermost of them.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, renest


def apply(plan: Plan, *loops: str) -> Plan:
    outer = tuple(loop_named(plan, x) for x in loops)
    for x in outer:
        if plan.owner(x) not in plan.kernel.shared:
            raise ScheduleError(f"outer: {x.arg.name} is no loop of a shared axis")
    if len(set(outer)) < len(outer):
        raise ScheduleError(f"outer: {' '.join(loops)} names a loop twice")
    levels = {s.name: len(outer) for s in plan.kernel.stages}
    plan = replace(plan, outer=outer, levels=levels, parallel=min(plan.parallel, len(outer)))
    return renest(plan, plan.kernel.stages)
