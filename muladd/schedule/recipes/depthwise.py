"""Convolutions of each channel by itself: windows that slide over lines, with few terms each.

    grid others line.0                 an image of a channel, or some of its lines
      c0[line, place]                  the image with its padding, each place once
      for line.1 x.0
        for the taps of a line
          the taps of a column, line.2 x.1 x.2      a tile of results in registers

A tile has several lines: what is loaded for a tap of one is another tap's of the line above it.
"""
from __future__ import annotations

from math import prod

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import extent, size, work
from muladd.schedule.primitives import step
from muladd.schedule.recipes.images import TAPS, slid
from muladd.schedule.recipes.rows import stream

_LEAST = 4  # terms from which a copy of the image pays
_SOME = 16  # terms from which it pays for lines of any length
_SMALL = 1 << 15  # terms of all results, of which fewer are done before a copy pays
_VECTORS = 4  # of a line side by side


def depthwise(plan: Plan, machine: Machine) -> Plan | None:
    """The nest above for a kernel of one such sum and what is done with it, or None."""
    kernel = plan.kernel
    sums = [s for s in kernel.stages if s.reduced]
    if len(sums) != 1 or kernel.exact or any(kernel.free_axes(s) for s in kernel.stages):
        return None
    (s,) = sums
    sides = _sides(s)
    if sides is None or work(s) < _SMALL or s.accumulator is not s.dtype:
        return None
    try:
        plan, along = slid(step(plan, f"copy {s.name} {sides} c0"), "c0")
        return _nest(plan, machine, s.name, along)
    except ScheduleError:
        return None


def _sides(s: Stage) -> str | None:
    """Which side of a product is the image: it moves along the last axis, the weights do not."""
    taps = [extent(r) for r in s.reduced]
    if s.reduction is not ops.SUM or s.value.op is not ops.MUL or len(taps) > 2 or s.scatter:
        return None
    if s.lanes > 1 or max(taps) > TAPS or not _LEAST <= prod(taps) or not s.axes:
        return None
    moving = [s.axes[-1] in toposort((x,)) for x in s.value.srcs]
    return None if all(moving) or not any(moving) else "left" if moving[0] else "right"


def _nest(plan: Plan, machine: Machine, name: str, along: list[Node]) -> Plan | None:
    kernel = plan.kernel
    s, c0 = kernel.stage(name), kernel.stage("c0")
    if not along or along[-1] is not kernel.shared[-1] or len(along) > 2:
        return None
    x, line = along[-1], along[0] if len(along) == 2 else None
    others = [a for a in kernel.shared if a not in along]
    images, rest = ([a for a in others if (a in c0.axes) == mine] for mine in (True, False))
    if any(not isinstance(a.arg.extent, int) for a in along):
        return None
    lanes = machine.lanes(s.accumulator.itemsize)
    while lanes >= 2 * extent(x):
        lanes //= 2
    across = -(-extent(x) // lanes)
    if across > _VECTORS and size(s.reduced) < _SOME:
        return None  # a line is enough for a tile, and a copy too much
    vectors = -(-across // -(-across // _VECTORS))
    X, around = x.arg.name, [a.arg.name for a in images]
    plan = step(plan, f"split {X} {vectors} {lanes}")
    inside, tile = [a.arg.name for a in rest], [f"{X}.1"]
    if line is not None:
        Y, high = line.arg.name, _high(machine, s, extent(line), vectors)
        width = prod(extent(a) for a in kernel.free_axes(c0) if a.arg.name != f"c0.{Y}")
        lines = max(1, machine.l2 // 4 // (width * s.accumulator.itemsize))
        blocks = max(-(-extent(line) // lines), -(-machine.chunks // size(images)))
        blocks = min(blocks, -(-extent(line) // (2 * high)) or 1)
        tiles = -(-extent(line) // (blocks * high))
        plan = step(plan, f"split {Y} {tiles} {high}")
        around, inside, tile = [*around, f"{Y}.0"], [*inside, f"{Y}.1"], [f"{Y}.2", *tile]
    plan = step(plan, " ".join(["outer", *around, *inside, f"{X}.0"]))
    plan = step(plan, f"parallel {len(around)}")
    plan = step(plan, f"at c0 {len(around)}")
    for stage in plan.kernel.stages:
        if stage.name != "c0":
            taps = [r.arg.name for r in reversed(stage.reduced)]
            plan = step(plan, " ".join([f"nest {stage.name}", *taps, *tile, f"{X}.2"]))
            plan = step(plan, f"unroll {stage.name} {' '.join(tile)}")
            plan = step(plan, f"vector {stage.name} {X}.2")
            if taps and line is not None:
                plan = step(plan, f"inline {stage.name} {taps[-1]}")
    plan = step(plan, f"split c0.{X} {lanes}")
    own = [a.arg.name for a in plan.kernel.free_axes(plan.kernel.stage("c0"))]
    names = sorted((n for n in own if n != f"c0.{X}"), key=lambda n: line is None or n != f"c0.{Y}")
    order = " ".join([*names, f"c0.{X}.0", f"c0.{X}.1"])
    plan = step(plan, f"layout c0 {order}")
    plan = step(plan, f"nest c0 {order}")
    return stream(step(plan, f"vector c0 c0.{X}.1"), machine)


def _high(machine: Machine, s: Stage, lines: int, vectors: int) -> int:
    """Lines of a tile: as many as leave registers for the lines that they read."""
    most = max(1, machine.vector_registers * 3 // 8 // vectors)
    taps = extent(s.reduced[0])
    cost = lambda n: -(-lines // n) * (n * taps + n + taps)  # noqa: E731
    return min(range(1, most + 1), key=cost)


__all__ = ["depthwise"]
