"""vector [STAGE] LOOP...: the turns of a loop become vector lanes, in one stage or in all.

    vector p1.2     for p1.2 in 0..8: out[p1.2] = ...  ->  out[0:8] = ...

A reduced loop gets a partial result in each lane; they join in a tree at the end.
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
        n = x.arg.extent
        if not isinstance(n, int) or n & (n - 1):
            raise ScheduleError(f"vector: {x.arg.name} has {n} turns; lanes are a power of two")
    pairs = plan.vector | {(s, x) for s in stages for x in found if x in plan.nests[s]}
    for s in names:
        if sum(stage == s for stage, _ in pairs) > 1:
            raise ScheduleError(f"vector: one loop of a stage at most, {s} has more")
    return replace(plan, vector=pairs)
