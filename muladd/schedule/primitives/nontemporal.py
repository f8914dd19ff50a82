"""nontemporal STAGE...: store a stage's results past the caches, when nobody reads them soon.

    nontemporal s3      out[0:8] = v  ->  out[0:8] = v, straight to memory
"""
from __future__ import annotations

from dataclasses import replace

from muladd.loop.plan import Plan
from muladd.schedule.primitives import stage_named


def apply(plan: Plan, *stages: str) -> Plan:
    for s in stages:
        stage_named(plan, s)
    return replace(plan, nontemporal=plan.nontemporal | frozenset(stages))
