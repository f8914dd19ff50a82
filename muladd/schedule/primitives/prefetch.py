"""prefetch STAGE COPY LOOP: while a stage sums, ask memory for what a copy reads a turn of LOOP on.

    prefetch s0 c0 p1.0     s0 += a[p0, r0] * c0[r0]
                            ->  prefetch b[p1.0 + 1, r0]; s0 += a[p0, r0] * c0[r0]

So the next panel of b is near when it is copied. Each term asks for a line, several in a row for
the same one. A panel that does not lie side by side is not asked for; devices may ignore it.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import ops, toposort
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, copy: str, loop: str) -> Plan:
    s, c = stage_named(plan, stage), stage_named(plan, copy)
    if not s.reduced or c.reduced:
        raise ScheduleError(f"prefetch: {stage} must be a sum, and {copy} none")
    if c.name not in {x.arg[0] for x in s.reads()}:
        raise ScheduleError(f"prefetch: {stage} does not read {copy}")
    if any(n.op is ops.LOAD for x in c.loads() for n in toposort(x.srcs)):
        raise ScheduleError(f"prefetch: where {copy} loads is itself loaded")
    found = {s.name: (c.name, loop_named(plan, loop))}
    return replace(plan, meanwhile={**(plan.meanwhile or {}), **found})
