"""at STAGE LEVEL: compute a stage inside the first LEVEL outer loops only.

    at c0 1     p1.0 { p0.0 { c0; s0 } }  ->  p1.0 { c0; p0.0 { s0 } }

The stage then computes all that the inner loops will read. Where a reduced loop of its reader is
for LEVEL (at c0 r0.0), a copy is made in each turn of that loop, of what it reads; the copy's
own axis is split alike (c0.r0.0).
"""

from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, renest, stage_named


def apply(plan: Plan, stage: str, level: str) -> Plan:
    s = stage_named(plan, stage)
    if not level.lstrip("-").isdigit():
        outside, own = loop_named(plan, level), loop_named(plan, f"{stage}.{level}")
        leaves = [next(x for x in plan.leaves[plan.owner(loop)] if x.loop is loop)
                  for loop in (outside, own)]  # fmt: skip
        if leaves[0].stride != leaves[1].stride or own is not plan.leaves[plan.owner(own)][0].loop:
            raise ScheduleError(f"at: {own.arg.name} and {level} are not split alike")
        mine, axis = plan.owner(own), plan.owner(outside)
        places = [r.srcs[s.axes.index(mine)] for t in plan.kernel.stages for r in t.reads()
                  if r.arg[0] == stage and mine in s.axes]  # fmt: skip
        if any(x is not axis for x in places):
            raise ScheduleError(f"at: {stage} is not read at {axis.arg.name} along {mine.arg.name}")
        plan = replace(plan, inside={**(plan.inside or {}), stage: (outside, own)})
        return renest(plan, (s,))
    if not 0 <= int(level) <= len(plan.outer):
        raise ScheduleError(f"at: level {level} of {len(plan.outer)} outer loops")
    return renest(replace(plan, levels={**plan.levels, stage: int(level)}), (s,))
