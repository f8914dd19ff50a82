"""Outer loops over shared axes: as many of them parallel as make chunks of a decent size."""
from __future__ import annotations

from collections.abc import Sequence

from muladd.ir import Node
from muladd.loop.plan import Plan
from muladd.schedule.analysis import extent, size, work
from muladd.schedule.primitives import loop_named, step

GRAIN = 1 << 14  # iterations that are worth a chunk of their own


def grid(plan: Plan, axes: list[Node]) -> Plan:
    """Shared axes as outer loops, as many of them parallel as make chunks of a decent size."""
    kernel = plan.kernel
    total = sum(work(s) for s in kernel.stages)
    wanted = max(1, total // GRAIN)
    names: list[str] = []
    points, parallel = 1, 0
    for a in axes:
        name, n = a.arg.name, extent(a)
        if points >= wanted:
            names.append(name)
            continue
        need = -(-wanted // points)
        if n > 2 * need:
            plan = step(plan, f"split {name} {_part(n, need)}")
            names += [f"{name}.0", f"{name}.1"]
            points *= need
            parallel += 1
        else:
            names.append(name)
            points *= n
            parallel += 1
    plan = step(plan, "outer " + " ".join(names)) if names else plan
    return step(plan, f"parallel {parallel}")


def _part(n: int, parts: int) -> int:
    """How much of an axis each of about so many parts has: if it can be, they are all equal, and no
    statement has to ask where the axis ends."""
    least = n // parts
    return next((k for k in range(least, min(2 * least, n) + 1) if n % k == 0), least)


def outer(
    plan: Plan, others: list[Node], name: str, inside: int, within: Sequence[str] = ()
) -> Plan:
    """The other shared axes and the outermost part of `name` as outer loops, and those `within`."""
    names = [a.arg.name for a in others]
    last = f"{name}.0"
    outer_first = not others
    points = size(others)
    serial: list[str] = []
    total = points * max(1, extent(loop_named(plan, last)))
    wanted = max(1, total * inside // GRAIN)
    if outer_first or total <= 2 * wanted:
        plan = step(plan, "outer " + " ".join([*names, last, *within]))
        return step(plan, f"parallel {len(names) + 1}")
    # many small points: the outermost axes are the grid, split where they would be too many
    chosen: list[str] = []
    have = 1
    for a in others:
        n = extent(a)
        if have >= wanted:
            serial.append(a.arg.name)
            continue
        need = -(-wanted // have)
        if n > 2 * need:
            plan = step(plan, f"split {a.arg.name} {_part(n, need)}")
            chosen.append(f"{a.arg.name}.0")
            serial.append(f"{a.arg.name}.1")
            have = wanted
        else:
            chosen.append(a.arg.name)
            have *= n
    plan = step(plan, "outer " + " ".join([*chosen, *serial, last, *within]))
    return step(plan, f"parallel {len(chosen)}")
