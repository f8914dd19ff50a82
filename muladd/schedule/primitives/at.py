"""at STAGE LEVEL: compute a stage inside the first LEVEL outer loops only.

    at c0 1     p1.0 { p0.0 { c0; s0 } }  ->  p1.0 { c0; p0.0 { s0 } }

The stage then computes all that the inner loops will read.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import renest, stage_named


def apply(plan: Plan, stage: str, level: str) -> Plan:
    s = stage_named(plan, stage)
    if not 0 <= int(level) <= len(plan.outer):
        raise ScheduleError(f"at: level {level} of {len(plan.outer)} outer loops")
    return renest(replace(plan, levels={**plan.levels, stage: int(level)}), (s,))
