"""The schedule for devices whose work items come in groups with memory of their own."""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan, plain
from muladd.schedule.heuristic import collapse_all
from muladd.schedule.primitives import step


def schedule(kernel: Kernel, machine: Machine) -> Plan:
    """A plan for a kernel on a machine."""
    plan = plain(collapse_all(kernel))
    for s in plan.kernel.stages:
        if kernel.exact and s.lanes > 1 and not s.scatter:
            name = s.reduced[-1].arg.name
            plan = step(plan, f"split {name} {s.lanes}")
            plan = step(plan, f"unroll {s.name} {name}.1")
    return plan
