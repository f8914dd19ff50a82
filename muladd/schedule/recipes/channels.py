"""Convolutions of many narrow images: vectors along the channels, place after place of an image.

Lines of 20 places fill vectors of 16 badly, and images of 20 x 20 are too small for a copy of all
windows to pay. The channels of the results are a whole number of vectors, and the weights of all
of them serve many images:

    grid images.0
      c0[taps, channel] = weights          once for some images
      for images.1
        c1[channel', place] = image        if it has to be padded: each place once
        for lines, for a tile of places
          for channels', taps
            places channels                a tile of results in registers
          places channels                  bias, activation
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.ir import Node
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.images import AGAIN, TAPS, is_masked, slid
from muladd.schedule.recipes.operands import Sides, Tile, own_names, pack, tile, tiled

_LEAST_IMAGES = 16
_LEAST_TERMS = 128  # of a sum: its results are stored number by number
_WRITTEN = 512  # multiply-adds of a line's tiles, written out one after the other
_LEAST_WASTE = 1.1  # of vectors along a line, by what is asked for


def channels(plan: Plan, machine: Machine, p: Product) -> tuple[Plan, Sides, list[str]] | None:
    """The nest above but for what follows the sums, with the copies that it has; None for other
    products, and where vectors along lines are full enough."""
    found = _sides(plan, p)
    if found is None or plan.kernel.exact:
        return None
    n, y, sides = found
    x, c = sides.row, sides.column
    lanes, itemsize = machine.lanes(p.stage.accumulator.itemsize), p.stage.accumulator.itemsize
    line = -(-extent(x) // lanes) * lanes / max(extent(x), 1)
    if extent(c) % lanes or extent(c) >= AGAIN or line < _LEAST_WASTE:
        return None
    terms = size(p.stage.reduced)
    if extent(n) < _LEAST_IMAGES or terms < _LEAST_TERMS:
        return None
    if terms * extent(c) * itemsize > machine.l2 // 2:
        return None
    plan, packed = pack(plan, p.stage, sides.vector, "c0")
    if not packed:
        return None
    copies = ["c0"]
    if is_masked(sides.broadcast):
        plan, packed = pack(plan, p.stage, sides.broadcast, "c1")
        plan, along = slid(plan, "c1") if packed else (plan, [])
        image = plan.kernel.stage("c1").axes if packed else ()
        if x not in along or size([a for a in image if a is not n]) * itemsize > machine.l2 // 4:
            return None
        copies.append("c1")
    taps = extent(p.stage.reduced[-1])
    taps = taps if taps <= TAPS else 1  # else a loop
    t = tile(machine, p.stage, extent(x), extent(c), even=True, taps=taps)
    return _nest(plan, machine, p.stage.name, (n, y), sides, t, copies, taps), sides, copies


def _nest(
    plan: Plan, machine: Machine, s: str, around: tuple[Node, Node], sides: Sides, t: Tile,
    copies: list[str], taps: int,
) -> Plan:  # fmt: skip
    (n, y), x, c = around, sides.row, sides.column
    N, Y, X, C = (a.arg.name for a in (n, y, x, c))
    plan = step(plan, f"split {N} {max(1, -(-extent(n) // machine.chunks))}")
    plan = step(plan, f"split {X} 1 {t.rows}")
    plan = step(plan, f"split {C} {-(-extent(c) // t.columns)} {t.vectors} {t.lanes}")
    plan = step(plan, f"outer {N}.0 {C}.0 {N}.1 {Y} {X}.0 {X}.1")
    plan = step(plan, "parallel 2")
    plan = step(plan, "at c0 2")
    plan = tiled(plan, s, X, C)
    if taps > 1:
        plan = step(plan, f"inline {s} {plan.kernel.stage(s).reduced[-1].arg.name}")
    parts = (f"{C}.1", f"{C}.2", f"{C}.3")
    own = " ".join(x for x in own_names(plan, "c0").split() if x not in parts)
    plan = step(plan, f"layout c0 {C}.1 {own} {C}.2 {C}.3")
    plan = step(plan, f"nest c0 {C}.1 {own} {C}.2 {C}.3")
    if "c1" in copies:
        plan = step(plan, "at c1 3")
        plan = step(plan, f"split c1.{X} {t.lanes}")
        names = [loop.arg.name for loop in plan.nests["c1"]]
        line = [f"c1.{X}.0", f"c1.{X}.1"]
        order = " ".join([*(name for name in names if name not in line), *line])
        plan = step(plan, f"layout c1 {order}")
        plan = step(plan, f"nest c1 {order}")
        plan = step(plan, f"vector c1 {line[1]}")
        if extent(x) * taps * t.vectors <= _WRITTEN:  # each knows its places in the padding
            plan = step(plan, f"inline {X}.0 {X}.1")
    return plan


def placed(plan: Plan, done: list[str], sides: Sides) -> Plan:
    """The stages after the sums: vectors of channels for place after place, written out, so that
    they are turned in registers and stored by places (see `codegen/transpose`)."""
    X, C = sides.row.arg.name, sides.column.arg.name
    for s in plan.kernel.stages:
        if s.name not in done:
            own = [x.arg.name for x in plan.nests[s.name]
                   if x.arg.name not in (f"{X}.2", f"{C}.1", f"{C}.2", f"{C}.3")]  # fmt: skip
            plan = step(plan, f"nest {s.name} {' '.join([f'{C}.1', *own, f'{C}.2 {X}.2 {C}.3'])}")
            plan = step(plan, f"unroll {s.name} {X}.2")
    return plan


def _sides(plan: Plan, p: Product) -> tuple[Node, Node, Sides] | None:
    """Images, lines, and the sides of a product of places with channels."""
    for places, others, image, weights in (
        (p.rows, p.columns, p.left, p.right), (p.columns, p.rows, p.right, p.left)
    ):  # fmt: skip
        shared = [a for a in plan.kernel.shared if a in places]
        if len(others) == 1 and len(places) == len(shared) == 3:
            n, y, x = shared
            if len(plan.kernel.shared) == 4 and plan.kernel.shared[0] is n:
                return n, y, Sides(x, others[0], image, weights)
    return None
