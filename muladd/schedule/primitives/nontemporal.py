"""nontemporal STAGE...: store a stage's results past the caches, when nobody reads them soon.

    nontemporal s3      out[0:8] = v  ->  out[0:8] = v, straight to memory
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import stage_named

WHOLE = 16  # elements: arrays of such sizes begin at whole vectors also within a stack of them


def apply(plan: Plan, *stages: str) -> Plan:
    for name in stages:
        s = stage_named(plan, name)
        count = None if s.argument is None else plan.kernel.arguments[s.argument].size
        if s.dtype.bits < 32 or not isinstance(count, int) or count % WHOLE:
            raise ScheduleError(f"nontemporal: {name} does not store whole vectors of an array")
    return replace(plan, nontemporal=plan.nontemporal | frozenset(stages))
