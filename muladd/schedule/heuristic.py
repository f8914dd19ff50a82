"""The schedule a kernel gets without searching: which recipe, and nothing else."""
from __future__ import annotations

from dataclasses import replace

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node
from muladd.loop.dots import factors
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan, plain
from muladd.schedule.analysis import product, size, work
from muladd.schedule.primitives import step
from muladd.schedule.primitives.collapse import collapsed
from muladd.schedule.recipes.depthwise import depthwise
from muladd.schedule.recipes.rows import rows
from muladd.schedule.recipes.scattered import scattered

_TINY = 256  # iterations below which vectors and threads do not pay


def schedule(kernel: Kernel, machine: Machine) -> Plan:
    """A plan for a kernel on a machine."""
    plan = collapse_all(kernel)
    kernel = plan.kernel
    if any(s.scatter for s in kernel.stages):
        return scattered(plan, machine) if len(kernel.stages) == 1 else plan
    if sum(work(s) for s in kernel.stages) <= _TINY and not kernel.exact:
        return step(plan, "parallel 0")
    if any(factors(s) for s in kernel.stages):
        from muladd.schedule.recipes.dots import dots

        by_bytes = dots(plan, machine)
        if by_bytes is not None:
            return by_bytes
    products = [p for s in kernel.stages if (p := product(kernel, s)) is not None]
    if products and size(products[0].stage.reduced) > 1:
        from muladd.schedule.recipes.products import products as recipe

        made = recipe(plan, machine, products)
        if made is not None:
            return made
    return depthwise(plan, machine) or rows(plan, machine)


def collapse_all(kernel: Kernel) -> Plan:
    """The plain plan with neighbouring axes that no access tells apart merged."""
    again, lines = True, []
    while again:
        again = False
        for number in range(-1, len(kernel.stages)):
            for own in (True, False):
                first = 0
                while first + 1 < len(axes := _neighbours(kernel, number, own)):
                    new = collapsed(kernel, axes[first], axes[first + 1])
                    first += new is None
                    if new is not None:
                        kernel, again = new, True
                        lines.append(f"collapse {axes[first].arg.name} {axes[first + 1].arg.name}")
    return replace(plain(kernel), lines=tuple(lines))


def _neighbours(kernel: Kernel, number: int, own: bool) -> tuple[Node, ...]:
    """The axes that may be merged: the shared ones (number -1), or a stage's own or reduced."""
    if number < 0:
        return kernel.shared if own else ()
    s = kernel.stages[number]
    return kernel.free_axes(s) if own else s.reduced if s.lanes == 1 else ()


__all__ = ["ScheduleError", "collapse_all", "schedule"]
