"""prefetch STAGE READER LOOP: while a stage sums, ask memory for what a reader wants a turn later.

    prefetch s0 c0 p1.0     s0 += a[p0, r0] * c0[r0]
                            ->  prefetch b[p1.0 + 1, r0]; s0 += a[p0, r0] * c0[r0]
    prefetch s0 s0 p0       ->  prefetch a[p0 + 1, r0]; s0 += a[p0, r0] * c0[r0]

The reader is a copy for the sum, or the sum itself; the turn is one of LOOP. So the next panel of b
is near when it is copied, and the next row of a when it is summed. Each term asks for a line,
several in a row for the same one. What does not lie side by side is not asked for; devices may
ignore it.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import ops, toposort
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, reader: str, loop: str) -> Plan:
    s, c = stage_named(plan, stage), stage_named(plan, reader)
    if not s.reduced or (c.reduced and c is not s):
        raise ScheduleError(f"prefetch: {stage} must be a sum, and {reader} none, or the same")
    if c is not s and c.name not in {x.arg[0] for x in s.reads()}:
        raise ScheduleError(f"prefetch: {stage} does not read {reader}")
    if any(n.op is ops.LOAD for x in c.loads() for n in toposort(x.srcs)):
        raise ScheduleError(f"prefetch: where {reader} loads is itself loaded")
    axis = plan.owner(loop_named(plan, loop))
    own = reader in (plan.inside or {})  # a copy made in turns of its reader's loop has its own
    if not own and not any(axis in toposort(x.srcs[:1]) for x in c.loads()):
        raise ScheduleError(f"prefetch: what {reader} loads is the same in all turns of {loop}")
    found = {**dict((plan.meanwhile or {}).get(s.name, ())), c.name: loop_named(plan, loop)}
    return replace(plan, meanwhile={**(plan.meanwhile or {}), s.name: tuple(found.items())})
