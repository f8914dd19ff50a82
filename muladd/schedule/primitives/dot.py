"""dot STAGE LOOP: bytes are multiplied, and neighbours added, by one instruction.

    dot s0 r0    for r0 in 0..4: s0 += int32(a[r0]) * int32(b[r0])  ->  s0 += dot(a[0:4], b[0:4])

LOOP is a reduced loop of 2 or 4 turns along which both factors lie side by side. Another loop of
the stage is its vector: there a lane's bytes lie beside the next lane's, or all have the same.
The sum is the same to the last bit, for it wraps as int32 does.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.dots import factors
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named

TURNS = (2, 4)


def apply(plan: Plan, stage: str, loop: str) -> Plan:
    s, found = stage_named(plan, stage), loop_named(plan, loop)
    if factors(s) is None:
        raise ScheduleError(f"dot: {stage} is no int32 sum of products of bytes")
    if found not in plan.nests[stage] or plan.owner(found) not in s.reduced:
        raise ScheduleError(f"dot: {loop} is no reduced loop of {stage}")
    if found.arg.extent not in TURNS:
        raise ScheduleError(f"dot: {loop} has {found.arg.extent} turns, expected 2 or 4")
    if plan.dots(s) is not None:
        raise ScheduleError(f"dot: one loop of a stage at most, {stage} has more")
    return replace(plan, dotted=plan.dotted | {(stage, found)})
