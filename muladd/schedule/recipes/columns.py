"""Sums down the columns of a matrix that comes from memory, as in a row times a matrix.

Memory gives what lies side by side, so a thread reads pieces of rows as long as the sums of their
columns fit into a part of the first cache, a few rows at a time:

    grid others p.0                  columns, for the threads
      for r.0                        blocks of rows
        for p.1                      the piece, by the vectors p.2 of lanes p.3
          for r.1
            p.2 p.3                  s0 += ..., between a load and a store of what there is
      for p.1  p.2 p.3               d0 = what is done with the sums
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, accesses, extent, size, work
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import merge_reduced

_ROWS = 8  # of a block
_SHORT = 2048  # bytes of a row which are too few to be read by themselves
_LEAST = 512  # bytes of rows that are worth the trouble
_STREAMS = 3  # matrices that are read side by side
_PART = 2  # the part of the first cache that sums take at most


def columns(plan: Plan, machine: Machine, axis: Node) -> Plan | None:
    """The nest above for vectors along a shared axis, or None if the kernel is another."""
    found = [s.name for s in plan.kernel.stages if s.reduced]
    if plan.kernel.exact or len(found) != 1:
        return None
    plan = merge_reduced(plan, found[0])
    kernel, s = plan.kernel, plan.kernel.stage(found[0])
    if not _comes_row_by_row(kernel, machine, s, axis):
        return None
    (r,) = s.reduced
    item, lanes = s.accumulator.itemsize, machine.lanes(s.accumulator.itemsize)
    others = [a for a in kernel.shared if a is not axis]
    chunks = max(1, 2 * machine.cores // size(others))
    vectors = machine.chains  # of a tile: sums in registers, to each of which a row adds
    least = min(max(_SHORT // item, lanes * vectors), extent(axis))  # or rows as they are
    piece = max(extent(axis) // chunks, min(least * 4, extent(axis) // machine.cores))
    piece = min(piece, machine.l1 // _PART // item) // (lanes * vectors)
    if piece * lanes * vectors < least:
        return None
    try:
        return _nested(plan, s.name, axis.arg.name, r.arg.name,
                       f"{piece} {vectors} {lanes}", [a.arg.name for a in others])  # fmt: skip
    except ScheduleError:
        return None


def _comes_row_by_row(kernel: Kernel, machine: Machine, s: Stage, axis: Node) -> bool:
    """Whether a stage sums what lies far apart, in rows along an axis, and is no longer cached."""
    if len(s.reduced) != 1 or s.scatter or s.lanes > 1 or s.accumulator is not s.dtype:
        return False
    if any(a not in kernel.shared for a in s.axes):
        return False
    (r,) = s.reduced
    rows = [x for x in accesses(kernel, s) if not x.store and x.stride(r)]
    down = [x for x in rows if x.stride(axis) == 1 and x.stride(r) != FAR
            and abs(x.stride(r)) * x.itemsize >= _LEAST]  # fmt: skip
    along = [x for x in rows if x not in down]
    large = work(s) * s.accumulator.itemsize > machine.l2
    return 0 < len(down) <= _STREAMS and large and all(x.stride(axis) == 0 for x in along)


def _nested(
    plan: Plan, s: str, p: str, r: str, piece: str, others: list[str]
) -> Plan:
    if plan.kernel.stage(s).argument is not None:
        plan = step(plan, f"keep {s} d0")
    plan = step(plan, f"split {p} {piece}")
    plan = step(plan, f"split {r} {_ROWS}")
    plan = step(plan, " ".join(["outer", *others, f"{p}.0"]))
    plan = step(plan, f"parallel {len(others) + 1}")
    tile = f"{p}.2 {p}.3"
    plan = step(plan, f"nest {s} {r}.0 {p}.1 {r}.1 {tile}")
    plan = step(plan, f"layout {s} {p}.1 {tile}")
    for other in plan.kernel.stages:
        if other.name != s:
            plan = step(plan, f"nest {other.name} {p}.1 {tile}")
        plan = step(plan, f"unroll {other.name} {p}.2")
        plan = step(plan, f"vector {other.name} {p}.3")
    return plan
