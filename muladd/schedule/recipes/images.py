"""Products whose rows or columns are the positions of an image: convolutions.

    for p in positions of one image, a panel at a time:
        copy  windows[tap, channel, p]          where a tap leaves the image, lanes are masked
        for a tile of channels:
            results[channel', p] += weights[channel', channel, tap] * windows[tap, channel, p]

Windows of several taps overlap. Where a tile's stay in the first cache, the copy holds each place
once, and they slide over it (`windows`). Elsewhere y and x become one axis p if copies stay cheap
(`merged`), so that vectors are whole whatever the width of the image: with a stride of one,
neighbours in p are neighbours in memory at every tap, and the copy loads vectors.
"""
from __future__ import annotations

from itertools import pairwise
from math import prod

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, product, size
from muladd.schedule.primitives import step
from muladd.schedule.primitives.collapse import collapsed
from muladd.schedule.recipes.operands import Sides, Tile, moves, tiled

_NARROW = 2  # vectors: rows of fewer leave much of a tile empty
TAPS = 8  # of a line of a window, which are written out one after the other
_FEW = 24  # results of each place in an image, for which a copy of all its windows does not pay
AGAIN = 96  # how often a copied element is used, from which on copying lane by lane pays


def merged(plan: Plan, machine: Machine, p: Product) -> tuple[Plan, Product]:
    """The plan with neighbouring axes of one side as one, where copies stay cheap."""
    for a, b in pairwise(plan.kernel.shared):
        known = isinstance(a.arg.extent, int) and isinstance(b.arg.extent, int)
        if known and collapsed(plan.kernel, a, b) is not None:  # to every access they are one
            new = step(plan, f"collapse {a.arg.name} {b.arg.name}")
            again = product(new.kernel, new.kernel.stage(p.stage.name))
            if again is not None:
                return merged(new, machine, again)
        for left, axes, others in ((True, p.rows, p.columns), (False, p.columns, p.rows)):
            if a not in axes or b not in axes:
                continue
            try:
                new = step(plan, f"merge {a.arg.name} {b.arg.name}")
            except ScheduleError:
                continue
            found = product(new.kernel, new.kernel.stage(p.stage.name))
            if found is None or size(others) < _FEW and _slides(plan.kernel, p, left, b):
                continue
            whole = next(x for x in new.kernel.shared if x.arg.name == a.arg.name)
            few = _NARROW * machine.lanes(p.stage.accumulator.itemsize)
            apart = moves(new.kernel, found.left if left else found.right, whole) != 1
            if not apart or extent(b) < few <= extent(whole) and size(others) >= AGAIN:
                return merged(new, machine, found)
    return plan, p


def _slides(kernel: Kernel, p: Product, left: bool, column: Node) -> bool:
    """Whether neighbouring windows overlap, a place apart."""
    operand = p.left if left else p.right
    return moves(kernel, operand, column) == 1 and any(
        moves(kernel, operand, r) == 1 and extent(r) > 1 for r in p.stage.reduced)


def is_masked(operand: Node) -> bool:
    """Whether an operand is loaded under a condition, which each of its uses would compute."""
    return any(n.op is ops.LOAD and len(n.srcs) > 1 for n in toposort((operand,)))


def taps_first(plan: Plan, copy: str) -> str:
    """A copy's own loops with those outermost that its masks depend on: so the masks stay."""
    stage = plan.kernel.stage(copy)
    masks = [n.srcs[1] for n in stage.loads() if len(n.srcs) > 1]
    inside = set(toposort(tuple(masks)))
    axes = sorted(plan.kernel.free_axes(stage), key=lambda a: a not in inside)
    return " ".join(x.loop.arg.name for a in axes for x in plan.leaves[a])


def windows(
    plan: Plan, machine: Machine, p: Product, sides: Sides, t: Tile
) -> Plan | None:
    """The nest for windows which slide over a copy of the image; None where they do not overlap
    along the columns. c0 is the copy, not yet placed.

        grid batch lines.0                     blocks of lines, for the threads
          c0[line, channel, phase, place]      what their windows cover
          for a tile of rows, for lines.1
            for channel, taps
              the tile of results in registers
    """
    plan, along = slid(plan, "c0")
    if sides.column not in along or not all(isinstance(a.arg.extent, int) for a in along):
        return None
    I, J = sides.row.arg.name, sides.column.arg.name
    line = next((a for a in reversed(along) if a is not sides.column), None)
    others = [a for a in plan.kernel.shared if a not in (sides.row, sides.column, line)]
    found = _blocks(plan, machine, sides, t, line, size(others))
    if found is None:
        return None
    lines, panels, parts = found
    around, within = [a.arg.name for a in others], [f"{I}.1"]
    if line is not None:
        Y = line.arg.name
        plan = step(plan, f"split {Y} {lines}")
        around, within = [*around, f"{Y}.0"], [*within, f"{Y}.1"]
    plan = step(plan, f"split {I} {-(-extent(sides.row) // (t.rows * parts))} {t.rows}")
    plan = step(plan, f"split {J} {panels} {t.vectors} {t.lanes}")
    around += [f"{J}.0", f"{I}.0"]
    plan = step(plan, f"outer {' '.join([*around, *within])}")
    plan = step(plan, f"parallel {len(around)}")
    plan = tiled(plan, p.stage.name, I, J)
    taps = plan.kernel.stage(p.stage.name).reduced[-1]
    if extent(taps) <= TAPS:
        plan = step(plan, f"inline {p.stage.name} {taps.arg.name}")
    plan = step(plan, f"at c0 {len(around)}")
    return _lines(plan, along, J, t.lanes)


def slid(plan: Plan, copy: str) -> tuple[Plan, list[Node]]:
    """The plan whose copy holds each place once, and the axes along which windows slide over it."""
    found: list[Node] = []
    for a in [x for x in plan.kernel.stage(copy).axes if x in plan.kernel.shared]:
        for own in plan.kernel.free_axes(plan.kernel.stage(copy)):
            try:
                plan = step(plan, f"slide {copy} {a.arg.name} {own.arg.name}")
            except ScheduleError:
                continue
            found.append(a)
            break
    return plan, found


def _lines(plan: Plan, along: list[Node], J: str, lanes: int) -> Plan:
    """The copy's own nest and memory: its lines, of each the channels, and of these the places."""
    plan = step(plan, f"split c0.{J} {lanes}")
    own = [a.arg.name for a in plan.kernel.free_axes(plan.kernel.stage("c0"))]
    outer = tuple(f"c0.{a.arg.name}" for a in along)
    names = sorted((x for x in own if x != f"c0.{J}"), key=lambda x: not x.startswith(outer))
    order = " ".join([*names, f"c0.{J}.0", f"c0.{J}.1"])
    plan = step(plan, f"layout c0 {order}")
    plan = step(plan, f"nest c0 {order}")
    return step(plan, f"vector c0 c0.{J}.1")


def _blocks(
    plan: Plan, machine: Machine, sides: Sides, t: Tile, line: Node | None, batch: int
) -> tuple[int, int, int] | None:
    """Lines of results and panels of columns that share a copy, and how many parts of the rows
    have one each: copies fill half of the second cache at most, and all threads have work. None
    where a tile's windows do not stay in the first cache: better are copies that it walks along."""
    sizes = {a.arg.name: extent(a) for a in plan.kernel.free_axes(plan.kernel.stage("c0"))}
    width = sizes.pop(f"c0.{sides.column.arg.name}")
    columns, count, window = extent(sides.column), 1, 1
    if line is not None:
        count = extent(line)
        window = sizes.pop(f"c0.{line.arg.name}") - count + 1
    place = prod(sizes.values()) * sides.vector.dtype.itemsize  # bytes, of all channels
    if place * window * min(width, t.columns + TAPS) > machine.l1:
        return None
    room = machine.l2 // 2 // place
    panels = -(-columns // t.columns)
    if window * width > room:
        panels = max(1, min(panels, room // (window * t.columns)))
    lines = max(1, min(count, room // min(width, panels * t.columns) - window + 1))
    groups = batch * -(-columns // (panels * t.columns))
    blocks = max(-(-count // lines), min(count, -(-machine.chunks // groups)))
    lines = -(-count // blocks)
    parts = -(-machine.cores // (groups * -(-count // lines)))
    return lines, panels, min(parts, -(-extent(sides.row) // t.rows))


__all__ = ["AGAIN", "TAPS", "is_masked", "merged", "slid", "taps_first", "windows"]
