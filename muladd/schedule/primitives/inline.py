"""inline [STAGE] LOOP...: the turns of a serial loop one after the other, without a loop.

    inline s0 r0     for r0 in 0..4: s += f(r0)  ->  s += f(0); s += f(1); s += f(2); s += f(3)

Unlike `unroll` it gives a reduction no more accumulators, and its terms stay in their order: for
the few taps of a window, whose places are then known when the code is made. Without a stage it is
a loop around stages: for the few tiles of a line, of which then each knows how it lies to the
border (see `loop/padding`).
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named

_MOST = 16  # turns


def apply(plan: Plan, *words: str) -> Plan:
    stage = words[0] if words and words[0] in plan.nests else ""
    loops = [x.loop.arg.name for leaves in plan.leaves.values() for x in leaves]
    if words and not stage and words[0] not in loops:
        raise ScheduleError(f"inline: no stage or loop {words[0]!r}; there are "
                            f"{', '.join((*plan.nests, *loops))}")  # fmt: skip
    found = {loop_named(plan, x) for x in words[bool(stage) :]}
    if not found:
        raise ValueError("no loop")
    own = plan.nests[stage] if stage else plan.outer[plan.parallel :]
    for x in found:
        if x not in own or (stage, x) in plan.unroll | plan.vector:
            of = f"of {stage}" if stage else "around, for it is in the grid or a stage's own"
            raise ScheduleError(f"inline: {x.arg.name} is no serial loop {of}")
        if not isinstance(x.arg.extent, int) or x.arg.extent > _MOST:
            raise ScheduleError(f"inline: {x.arg.name} has {x.arg.extent} turns, "
                                f"expected at most {_MOST}")  # fmt: skip
    return replace(plan, inline=plan.inline | {(stage, x) for x in found})
