"""vector LOOP...: the turns of a loop become the lanes of vectors.

    vector p1.2     for p1.2 in 0..8: out[p1.2] = ...  ->  out[0:8] = ...

A reduced loop gets a partial result in each lane; they join in a tree at the end.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named


def apply(plan: Plan, *loops: str) -> Plan:
    found = frozenset(loop_named(plan, x) for x in loops)
    for x in found:
        n = x.arg.extent
        if not isinstance(n, int) or n & (n - 1):
            raise ScheduleError(f"vector: {x.arg.name} has {n} turns; lanes are a power of two")
    for nest in plan.nests.values():
        if len(found & set(nest)) > 1:
            raise ScheduleError("vector: one loop of a stage at most")
    return replace(plan, vector=plan.vector | found)
