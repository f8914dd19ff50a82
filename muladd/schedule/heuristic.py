"""The schedule a kernel gets without searching: which recipe, and nothing else."""
from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan, plain
from muladd.schedule.analysis import product, size, work
from muladd.schedule.primitives import step
from muladd.schedule.primitives.collapse import collapsed
from muladd.schedule.recipes.rows import rows

_TINY = 256  # iterations below which vectors and threads do not pay


def schedule(kernel: Kernel, machine: Machine) -> Plan:
    """A plan for a kernel on a machine."""
    plan = collapse_all(kernel)
    kernel = plan.kernel
    if any(s.scatter for s in kernel.stages):
        return plan
    if sum(work(s) for s in kernel.stages) <= _TINY and not kernel.exact:
        return step(plan, "parallel 0")
    products = [p for s in kernel.stages if (p := product(kernel, s)) is not None]
    if products and size(products[0].stage.reduced) > 1:
        from muladd.schedule.recipes.products import products as recipe

        made = recipe(plan, machine, products)
        if made is not None:
            return made
    return rows(plan, machine)


def collapse_all(kernel: Kernel) -> Plan:
    """The plain plan with neighbouring axes that no access tells apart merged."""
    again, lines = True, []
    while again:
        again = False
        groups = [kernel.shared]
        for s in kernel.stages:
            groups += [kernel.free_axes(s)]
            if s.lanes == 1:
                groups.append(s.reduced)
        for axes in groups:
            for a, b in pairwise(axes):
                new = collapsed(kernel, a, b)
                if new is not None:
                    kernel, again = new, True
                    lines.append(f"collapse {a.arg.name} {b.arg.name}")
                    break
            if again:
                break
    return replace(plain(kernel), lines=tuple(lines))


__all__ = ["ScheduleError", "collapse_all", "schedule"]
