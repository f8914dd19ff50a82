"""A few rows times a matrix that the caches do not hold.

Memory gives what lies side by side, so a thread reads pieces of the matrix's rows, a block of rows
at a time, and what the results have come to waits in the second cache meanwhile:

    grid others j.0                    columns, for the threads
      for k.0                          blocks of the matrix's rows
        for j.1                        the piece, tile by tile
          for i.1                      tiles downwards, which find the block in the first cache
            for k.1
              i.2 j.2 j.3              s0 += ..., between a load and a store of what there is
      for i.1 i.2 j.1 j.2 j.3          d0 = what is done with the sums
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import Sides, Tile, moves

_TERMS = 32  # of a block: results are loaded and stored once for each
_BLOCKS = 8  # of fewer the results' way to the second cache and back is too large a part
_AHEAD = 4  # terms whose values are on their way from the second cache
_PART = 8  # the part of the second cache that results take at most
_SHORT = 512  # bytes of a row which are too few to be read by themselves


def few_rows(plan: Plan, machine: Machine, p: Product, sides: Sides, t: Tile) -> Plan | None:
    """The nest above, or None if the kernel is another."""
    kernel, s = plan.kernel, p.stage
    if kernel.exact or len(s.reduced) != 1 or set(s.axes) != set(kernel.shared):
        return None
    (r,), item = s.reduced, s.accumulator.itemsize
    apart = moves(kernel, sides.vector, r)
    if moves(kernel, sides.vector, sides.column) != 1 or apart in (0, FAR):
        return None
    if sides.vector.dtype is not s.accumulator or extent(r) < _BLOCKS * _TERMS:
        return None
    columns, down = extent(sides.column), -(-extent(sides.row) // t.rows)
    if columns * extent(r) * item <= int(machine.l2 * machine.cores * 0.25):
        return None
    others = [a for a in kernel.shared if a not in (sides.row, sides.column)]
    chunks = -(-machine.cores // size(others))
    fitting = machine.l2 // _PART // (item * down * t.rows * t.columns)
    piece = min(fitting, -(-columns // (t.columns * chunks)))
    if piece * t.columns * item < _SHORT:
        return None
    try:
        return _nested(plan, sides, p, t, down, piece, [a.arg.name for a in others])
    except ScheduleError:
        return None


def _nested(
    plan: Plan, sides: Sides, p: Product, t: Tile, down: int, piece: int, others: list[str]
) -> Plan:
    I, J, s = sides.row.arg.name, sides.column.arg.name, p.stage.name
    K = p.stage.reduced[0].arg.name
    if p.stage.argument is not None:
        plan = step(plan, f"keep {s} d0")
    plan = step(plan, f"split {I} {down} {t.rows}")
    plan = step(plan, f"split {J} {piece} {t.vectors} {t.lanes}")
    plan = step(plan, f"split {K} {_TERMS}")
    plan = step(plan, " ".join(["outer", *others, f"{J}.0", f"{I}.0"]))
    plan = step(plan, f"parallel {len(others) + 1}")
    near = f"{J}.2 {J}.3"
    plan = step(plan, f"nest {s} {K}.0 {J}.1 {I}.1 {K}.1 {I}.2 {near}")
    plan = step(plan, f"layout {s} {J}.1 {I}.1 {I}.2 {near}")
    plan = step(plan, f"unroll {s} {I}.2 {J}.2")
    plan = step(plan, f"ahead {s} {K}.1 {_AHEAD}")
    for other in plan.kernel.stages:
        if other.name != s:
            plan = step(plan, f"nest {other.name} {I}.1 {I}.2 {J}.1 {near}")
            plan = step(plan, f"unroll {other.name} {J}.2")
        plan = step(plan, f"vector {other.name} {J}.3")
    return plan
