"""merge OUTER INNER: two axes become one where every store sees one; loads may take it apart.

    merge p0 p1    out[p0*50 + p1] = b0[p0*58 + p1]  ->  out[p0] = b0[p0/50*58 + p0%50]

So the rows of a small image fill whole vectors together. Must come before all other directives but
`collapse`, which it is where no load tells the two apart. Raises ScheduleError if a store does.
"""

from __future__ import annotations

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan, plain
from muladd.schedule.primitives import loop_named
from muladd.schedule.primitives.collapse import collapsed


def apply(plan: Plan, outer: str, inner: str) -> Plan:
    new = collapsed(plan.kernel, loop_named(plan, outer), loop_named(plan, inner), loads=False)
    if new is None:
        raise ScheduleError(f"merge: {outer} and {inner} are not one axis to every store")
    return plain(new)
