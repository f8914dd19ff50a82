"""unroll [STAGE] LOOP...: write the turns of a loop out, in one stage or in all that have it.

    unroll p0.1     for p0.1 in 0..2: f(p0.1)  ->  f(0); f(1)

In a reduction every unrolled turn has an accumulator of its own.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named


def apply(plan: Plan, *words: str) -> Plan:
    names = [s.name for s in plan.kernel.stages]
    stages = [words[0]] if words and words[0] in names else names
    found = {loop_named(plan, x) for x in words if x not in names}
    for x in found:
        if not isinstance(x.arg.extent, int) or x.arg.extent > 64:
            raise ScheduleError(f"unroll: {x.arg.name} has {x.arg.extent} turns")
    around = [x.arg.name for x in found if not any(x in plan.nests[s] for s in stages)]
    if around:
        raise ScheduleError(f"unroll: {around[0]} is no loop of {', '.join(stages)}, but around")
    pairs = {(s, x) for s in stages for x in found if x in plan.nests[s]}
    return replace(plan, unroll=plan.unroll | pairs)
