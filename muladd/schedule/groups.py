"""The schedule for devices whose work items come in groups with memory of their own.

Three ways. Elementwise work, short or strided reductions: a work item for each result. Long rows:
a group for each row, whose threads take its columns in turns and join their partial results. Matrix
products: a group for each tile, whose threads bring panels of both sides into its memory and
keep a few results each in registers.
"""

from __future__ import annotations

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, accesses, extent, operations, product, size, stride
from muladd.schedule.heuristic import collapse_all
from muladd.schedule.primitives import step

LANES = 64  # threads for a row: the exact profile's number of partial results
LONG = 128  # elements from which a row is worth a group
# PoCL 3.0 takes minutes to compile much code between many barriers; then a work item does it alone
MOST_JOINED, MOST_NODES = 3, 200
TILE, STEPS, EACH = 16, 16, 4  # threads along a side of a tile, depth of a panel, results a thread


def schedule(kernel: Kernel, machine: Machine) -> Plan:
    """A plan for a kernel on a machine."""
    plan = collapse_all(kernel)
    kernel = plan.kernel
    if any(s.scatter for s in kernel.stages):
        return plan
    if len([s for s in kernel.stages if s.reduced]) == 1:
        found = [p for s in kernel.stages if (p := product(kernel, s)) is not None]
        if found and found[0].stage.lanes == 1:
            made = tiles(plan, found[0])
            if made is not None:
                return made
    joined = sum(map(_wants_group, kernel.stages))
    nodes = sum(map(operations, kernel.stages))
    return rows(plan) if 0 < joined <= MOST_JOINED and nodes <= MOST_NODES else plan


def _wants_group(s: Stage) -> bool:
    return s.lanes > 1 or (
        bool(s.reduced) and size(s.reduced) >= LONG and _along(s) == s.reduced[-1]
    )


def _along(s: Stage) -> Node:
    """The axis whose neighbours lie side by side in most that a stage loads: threads take it."""
    axes = [a for a in (*s.axes, *s.reduced) if extent(a) > 1] or [*s.axes, *s.reduced]
    loads = [n.srcs[0] for n in s.loads()]
    near = {a: sum(abs(stride(x, a)) == 1 for x in loads) for a in axes}
    return max(reversed(axes), key=lambda a: near[a])


# --- rows ----------------------------------------------------------------------------------------


def rows(plan: Plan) -> Plan:
    """A group for each point of the shared axes; in each stage its threads share an axis."""
    kernel = plan.kernel
    for s in kernel.stages:
        if s.lanes > 1:
            axis: Node | None = s.reduced[-1]
        else:
            long = [a for a in s.reduced if extent(a) >= LONG and not kernel.exact]
            own = [*kernel.free_axes(s), *long]
            axis = max(own, key=extent, default=None)
        if axis is None or extent(axis) == 1:
            plan = step(plan, f"bind {s.name}")
            continue
        name = axis.arg.name
        plan = step(plan, f"split {name} {LANES}")
        plan = step(plan, f"bind {s.name} {name}.1")
    return plan


# --- matrix products -----------------------------------------------------------------------------


def tiles(plan: Plan, p: Product) -> Plan | None:
    """Tiles of 64 x 64 results for a group of 16 x 16 threads, by panels 16 deep; or None."""
    kernel, s = plan.kernel, p.stage
    shared = [a for a in kernel.shared if extent(a) > 1]
    left = [a for a in p.rows if a in shared]
    right = [a for a in p.columns if a in shared]
    if not left or not right or any(t.axes != kernel.shared for t in kernel.stages):
        return None
    i, j, k = (max(x, key=extent) for x in (left, right, s.reduced))
    if min(extent(i), extent(j)) < 2 * TILE or extent(k) < STEPS or k is not s.reduced[-1]:
        return None
    if sum(extent(a) > 1 for a in s.reduced) > 1:
        return None  # a panel is deep along one axis
    try:
        return _tiles(plan, s.name, i.arg.name, j.arg.name, k.arg.name)
    except ScheduleError:
        return None


def _tiles(plan: Plan, s: str, i: str, j: str, k: str) -> Plan:
    plan = step(plan, f"copy {s} left c0")
    plan = step(plan, f"copy {s} right c1")
    for axis in (i, j):
        plan = step(plan, f"split {axis} {EACH} {TILE}")
    for axis in (k, f"c0.{k}", f"c1.{k}"):
        plan = step(plan, f"split {axis} {STEPS}")
    others = [a.arg.name for a in plan.kernel.shared if a.arg.name not in (i, j)]
    plan = step(plan, " ".join(["outer", *others, f"{i}.0", f"{j}.0"]))
    plan = step(plan, f"parallel {len(others) + 2}")
    for copy in ("c0", "c1"):
        plan = step(plan, f"at {copy} {k}.0")
    for stage in plan.kernel.stages:
        if stage.name not in ("c0", "c1"):
            plan = step(plan, f"bind {stage.name} {i}.2 {j}.2")
            plan = step(plan, f"unroll {stage.name} {i}.1 {j}.1")
    plan = _panel(plan, "c0", f"{i}.1", f"{i}.2", f"c0.{k}.1")
    return _panel(plan, "c1", f"{j}.1", f"{j}.2", f"c1.{k}.1")


def _panel(plan: Plan, copy: str, turns: str, near: str, deep: str) -> Plan:
    """Neighbouring threads load neighbours; a panel's row is read by all threads at once."""
    loads = accesses(plan.kernel, plan.kernel.stage(copy))
    axis = next(a for a in plan.kernel.stage(copy).axes if a.arg.name == near.split(".")[0])
    along = any(abs(x.stride(axis)) == 1 for x in loads)
    order = f"{deep} {near}" if along else f"{near} {deep}"
    plan = step(plan, f"bind {copy} {order}")
    plan = step(plan, f"unroll {copy} {turns}")
    return step(plan, f"layout {copy} {deep} {turns} {near}")


__all__ = ["schedule"]
