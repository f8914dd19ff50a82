"""ahead STAGE LOOP TURNS: ask memory for what a stage will load that many turns of a loop later.

    ahead s3 p0 8     v = a[p0, p1]  ->  prefetch a[p0 + 8, p1]; v = a[p0, p1]

For rows that are read piece by piece, which the machine does not foresee. Devices may ignore it.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import ops, toposort
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, loop: str, turns: str) -> Plan:
    s = stage_named(plan, stage)
    if any(n.op is ops.LOAD for x in s.loads() for n in toposort(x.srcs)):
        raise ScheduleError(f"ahead: where {stage} loads is itself loaded")
    if int(turns) < 1:
        raise ScheduleError(f"ahead: given {turns} turns, expected 1 or more")
    found = {s.name: (loop_named(plan, loop), int(turns))}
    return replace(plan, ahead={**(plan.ahead or {}), **found})
