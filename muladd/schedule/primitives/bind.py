"""bind STAGE LOOP...: the turns of a stage's loops run on the threads of a group, the last fastest.

    bind s3 p1.1      for p1.1 in 0..8: out[p1.1] = ...  ->  thread p1.1 of 8: out[p1.1] = ...

For devices whose work items come in groups that share memory (OpenCL, CUDA, HIP, Metal): a point of
the grid is then a group's, the kernel's own buffers are the group's, and barriers stand between
stages. Where a bound loop is reduced, each thread has a partial result; they join in a tree; such
loops come last, and are a power of two together. A stage with nothing bound is one thread's work.
"""

from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.primitives import loop_named, stage_named


def apply(plan: Plan, stage: str, *loops: str) -> Plan:
    s = stage_named(plan, stage)
    found = tuple(loop_named(plan, x) for x in loops)
    joined = 1
    for x in found:
        if x not in plan.nests[stage] or not isinstance(x.arg.extent, int):
            raise ScheduleError(f"bind: {x.arg.name} is no loop of {stage}'s own with a known size")
        if plan.owner(x) in s.reduced:
            joined *= x.arg.extent
        elif joined > 1:
            raise ScheduleError(f"bind: {x.arg.name} stands behind a reduced loop")
    if joined & (joined - 1):
        raise ScheduleError(f"bind: {joined} partial results, expected a power of two")
    return replace(plan, threads={**(plan.threads or {}), stage: found})
