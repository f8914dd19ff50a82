"""split LOOP FACTOR...: one loop becomes several; the factors are the inner ones' extents.

    split p0 6        p0<512  ->  p0.0<86  p0.1<6
    split p0 2 8      p0<100  ->  p0.0<7   p0.1<2  p0.2<8

The last turn of the outermost loop may overhang; lowering masks, clamps or skips what is outside.
"""

from __future__ import annotations

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan, split
from muladd.schedule.primitives import loop_named


def apply(plan: Plan, loop: str, *factors: str) -> Plan:
    names = tuple(f"{loop}.{i}" for i in range(len(factors) + 1))
    extents = tuple(int(f) for f in factors)
    if not extents or min(extents) < 1:
        raise ScheduleError(f"split: {loop} by {extents}; factors are whole numbers from 1 on")
    return split(plan, loop_named(plan, loop), extents, names)
