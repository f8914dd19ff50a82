"""claim STAGE WRITER: ask memory for the lines that a tile's results go to, before it is summed.

    claim s0 s0     s0 += a[p0, r0] * b[r0, p1]; out[p0, p1] = s0
                    ->  prefetch out[p0, p1]; s0 += a[p0, r0] * b[r0, p1]; out[p0, p1] = s0

Stores to lines that are far away wait for them, and what comes after waits for the stores. WRITER
is the sum itself or a stage that stores what becomes of it. Devices may ignore it.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import stage_named


def apply(plan: Plan, stage: str, writer: str) -> Plan:
    s, w = stage_named(plan, stage), stage_named(plan, writer)
    if not s.reduced or w.argument is None or w.scatter or not set(w.axes) <= set(s.axes):
        raise ScheduleError(f"claim: {stage} is no sum for what {writer} stores")
    found = dict.fromkeys((*(plan.claims or {}).get(s.name, ()), w.name))
    return replace(plan, claims={**(plan.claims or {}), s.name: tuple(found)})
