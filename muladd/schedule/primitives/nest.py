"""nest STAGE LOOP...: the order of a stage's own loops, outermost first.

    nest s0 r0 p0.1 p1.1 p1.2    s0: p0.1 p1.1 p1.2 r0  ->  s0: r0 p0.1 p1.1 p1.2
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, *loops: str) -> Plan:
    stage_named(plan, stage)
    order = tuple(loop_named(plan, x) for x in loops)
    if set(order) != set(plan.nests[stage]) or len(order) != len(plan.nests[stage]):
        raise ScheduleError(f"nest: {stage} has the loops "
                            f"{' '.join(x.arg.name for x in plan.nests[stage])}")  # fmt: skip
    return replace(plan, nests={**plan.nests, stage: order})
