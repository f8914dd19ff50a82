"""parallel COUNT: the first COUNT outer loops form the grid, whose points run on any thread.

    parallel 1      p0.0 p1.0 { ... }  ->  grid p0.0 { p1.0 { ... } }
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan


def apply(plan: Plan, count: str) -> Plan:
    if not 0 <= int(count) <= len(plan.outer):
        raise ScheduleError(f"parallel: {count} of {len(plan.outer)} outer loops")
    return replace(plan, parallel=int(count))
