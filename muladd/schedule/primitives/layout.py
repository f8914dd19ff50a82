"""layout STAGE LOOP...: the order of a stage's buffer in memory, outermost first.

    layout c0 f0 p1.1 p1.2     c0[p1.1, p1.2, f0]  ->  c0[f0, p1.1, p1.2]
"""
from __future__ import annotations

from dataclasses import replace

from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, *loops: str) -> Plan:
    stage_named(plan, stage)
    order = tuple(loop_named(plan, x) for x in loops)
    return replace(plan, layouts={**(plan.layouts or {}), stage: order})
