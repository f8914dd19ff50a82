"""Derivatives of convolutions by their weights: sums over all places of all images.

For each pair of channels (i of the images, j of the results) and each tap, the nest is

    grid batch j.0 i.0                     an area of channels
      for n.0                              an image, or some small ones
        c0[j.1, line, x, j.2, j.3]         what the results are told, channels side by side
        c1[i, line, x]                     the image with its padding, each place once
        for line.0                         as many lines as stay in the first cache
          for j.1 i.1 tap
            for line.1 x
              tap i.2 j.2 j.3              a tile: its sums are loaded, summed on, and kept
      for tap i.1
        d0                                 stores the sums, with what is done to them

Where few channels are no work for the multipliers, a tile has several taps. Strided windows read
the image as it lies.
"""
from __future__ import annotations

from math import prod

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.deep import after, area, terms_of
from muladd.schedule.recipes.images import AGAIN
from muladd.schedule.recipes.operands import (
    AHEAD,
    Sides,
    Tile,
    merge_reduced,
    moves,
    own_names,
    pack,
    reduced_names,
    tile,
)
from muladd.schedule.recipes.rows import stream

_LONG = 4  # a sum is long if it takes so many times the lines of the first cache
_SOME = 24  # terms that are enough if they are more than taps: places of an image
_LEAST_ROWS = 8  # results that share a vector of the other side's copy, at least
_MOST_TAPS = 16  # of a tile
_SHORT = 8  # lines for which copies of all windows are better, where these are used often


def weights(plan: Plan, machine: Machine, p: Product) -> Plan | None:
    """The nest above, or None if the product is another."""
    sides = _sides(plan.kernel, machine, p)
    if sides is None:
        return None
    plan, packed = pack(plan, p.stage, sides.vector, "c0")
    if not packed:
        return None
    i, j, s = sides.row, sides.column, p.stage.name
    taps = [a for a in (p.rows if j in p.columns else p.columns) if a is not i]
    plan = merge_reduced(_with_image(plan, p, sides, taps), s)
    copies = [x.name for x in plan.kernel.stages if x.name in ("c0", "c1")]
    t, written = _tile(machine, p, sides, taps)
    plan = step(plan, f"keep {s} d0")
    I, J = i.arg.name, j.arg.name
    k, *rest = (a for a in plan.kernel.stage(s).reduced if extent(a) > 1)
    K, blocks = k.arg.name, max(1, -(-size((k, *rest)) // terms_of(machine, t, p)))
    terms = max(1, -(-extent(k) // blocks))
    batch = [a for a in plan.kernel.shared if a not in (i, j, *taps)]
    row = t.rows * terms * size(rest) * p.left.dtype.itemsize  # bytes of a panel of rows, if copied
    row = row if "c1" in copies else 0
    rows, columns = -(-extent(i) // t.rows), -(-extent(j) // t.columns)
    high, wide = area(machine, rows, columns, t, row, size(batch), size(taps))
    plan = step(plan, f"split {I} {high} {t.rows}")
    plan = step(plan, f"split {J} {wide} {t.vectors} {t.lanes}")
    plan = step(plan, f"split {K} {terms}")
    lines = _lines(machine, t, p, rest)
    if lines:
        plan = step(plan, f"split {rest[0].arg.name} {lines}")
        plan = step(plan, f"split c0.{rest[0].arg.name} {lines}")
    plan = step(plan, f"split c0.{K} {terms}")
    names = [a.arg.name for a in batch]
    around, inner = ([a.arg.name for a in taps if (a in written) == w] for w in (False, True))
    plan = step(plan, " ".join(["outer", *names, f"{J}.0 {I}.0", *around, *inner, f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    for stage in (s, *copies):
        plan = step(plan, f"at {stage} {len(names) + 2}")
    far = sorted(rest, key=lambda a: -moves(plan.kernel, sides.broadcast, a))
    under = [f"{K}.1", *(plan.leaves[a][-1].loop.arg.name for a in far)]
    steps = [f"{K}.0", *([f"{rest[0].arg.name}.0"] if lines else [])]
    empty = [x for x in reduced_names(plan, s).split() if x not in (*steps, *under)]
    areas, tiles = [f"{J}.1", f"{I}.1", *around], [*inner, f"{I}.2", f"{J}.2"]
    order = [*steps, *areas, *empty, *under, *tiles, f"{J}.3"]
    plan = step(plan, f"nest {s} {' '.join(order)}")
    plan = step(plan, f"layout {s} {' '.join([*areas, *tiles])} {J}.3")
    plan = step(plan, f"unroll {s} {' '.join(tiles)}")
    plan = step(plan, f"at c0 {K}.0")
    plan = _told(plan, sides, t, rest, [f"c0.{x}" for x in (*steps[1:], *empty, *under)])
    if "c1" in copies:
        plan = _image(plan, machine, i, K, terms)
    plan = after(plan, s, sides, copies)
    plan = step(plan, f"vector {s} {J}.3")
    return stream(plan, machine)


def _sides(kernel: Kernel, machine: Machine, p: Product) -> Sides | None:
    """The sides of a long sum whose operands lie along it and not along the results. Columns are
    the channels that stand alone on their side."""
    lanes = machine.lanes(p.stage.accumulator.itemsize)
    if kernel.exact or len([r for r in p.stage.reduced if extent(r) > 1]) < 2:
        return None
    best: tuple[int, Sides] | None = None
    for rows, columns, left, right in (
        (p.rows, p.columns, p.left, p.right), (p.columns, p.rows, p.right, p.left)
    ):  # fmt: skip
        if any(moves(kernel, x, a) == 1 and extent(a) >= 2 * lanes
               for x, axes in ((left, rows), (right, columns)) for a in axes):  # fmt: skip
            return None
        (j, *others), i = sorted(columns, key=extent, reverse=True), _channels(kernel, left, rows)
        if not others and 2 * extent(j) >= lanes and size(rows) >= _LEAST_ROWS:
            if best is None or size(rows) > best[0]:
                best = (size(rows), Sides(i, j, left, right))
    if best is None:
        return None
    taps = max((extent(a) for a in (*p.rows, *p.columns) if a not in (best[1].row, best[1].column)),
               default=1)  # fmt: skip
    terms, places = size(p.stage.reduced), min(map(extent, p.stage.reduced[-2:]))
    long = terms >= _LONG * machine.l1 // machine.line
    if taps > 1 and places < _SHORT and min(size(p.rows), size(p.columns)) >= AGAIN:
        return None
    return best[1] if long or terms >= _SOME and places > taps else None


def _channels(kernel: Kernel, image: Node, rows: tuple[Node, ...]) -> Node:
    """Of channels and taps, the channels: what lies furthest apart, by one number."""
    apart = {a: moves(kernel, image, a) for a in rows}
    return max(rows, key=lambda a: (apart[a] != FAR, abs(apart[a]), extent(a)))


def _with_image(plan: Plan, p: Product, sides: Sides, taps: list[Node]) -> Plan:
    """The plan with a copy c1 of the image, if that holds each place once for all taps."""
    made, packed = pack(plan, p.stage, sides.broadcast, "c1")
    if not packed or not taps:
        return plan
    for a in taps:
        made = _slid(made, a.arg.name)
    return plan if any(a in made.kernel.stage("c1").axes for a in taps) else made


def _slid(plan: Plan, tap: str) -> Plan:
    """The plan whose copy c1 holds what a tap reads for one place, and another for the next, once;
    or as it was, if it does not."""
    c1 = plan.kernel.stage("c1")
    for own in [a.arg.name for a in plan.kernel.free_axes(c1)]:
        try:
            return step(plan, f"slide c1 {own} {tap} whole")
        except ScheduleError:
            continue
    return plan


def _tile(
    machine: Machine, p: Product, sides: Sides, taps: list[Node]
) -> tuple[Tile, list[Node]]:
    """The tile of results, and the taps that it has besides: as many as keep multipliers busy."""
    written: list[Node] = []
    for a in (*reversed(taps), None):
        beside = prod(map(extent, written))
        t = tile(machine, p.stage, extent(sides.row), extent(sides.column), beside=beside)
        if a is None or t.rows * t.vectors * beside >= machine.chains:
            break
        if beside * extent(a) > _MOST_TAPS:
            break
        written.insert(0, a)
    return t, written


def _lines(machine: Machine, t: Tile, p: Product, rest: list[Node]) -> int:
    """Turns of the outermost of the inner reduced axes at a time, whose panels stay in the first
    cache while all taps pass by; 0 where those of all turns do, or of one do not."""
    if len(rest) < 2 or size(rest) <= terms_of(machine, t, p):
        return 0
    most = terms_of(machine, t, p) // size(rest[1:])
    return -(-extent(rest[0]) // -(-extent(rest[0]) // most)) if most else 0


def _told(plan: Plan, sides: Sides, t: Tile, rest: list[Node], loops: list[str]) -> Plan:
    """The copy of columns: by vectors of terms, each turned with as many columns in registers,
    where columns lie along them; else as it lies in memory."""
    J = sides.column.arg.name
    mine = own_names(plan, "c0").split()
    order = [x for x in loops if x in mine]
    lanes = 0
    if rest and moves(plan.kernel, sides.vector, rest[-1]) == 1:
        if extent(sides.column) % t.lanes == 0:
            whole = (n for n in (16, 8, 4) if n <= t.lanes and extent(rest[-1]) % n == 0)
            lanes = next(whole, 0)
    if lanes:
        last = f"c0.{plan.leaves[rest[-1]][-1].loop.arg.name}"
        plan = step(plan, f"split {last} {lanes}")
        names = " ".join(f"{x}.0" if x == last else x for x in order)
        parts = " ".join(f"{x}.0 {x}.1" if x == last else x for x in order)
        plan = step(plan, f"layout c0 {J}.1 {parts} {J}.2 {J}.3")
        plan = step(plan, f"nest c0 {names} {J}.1 {J}.2 {J}.3 {last}.1")
        plan = step(plan, f"unroll c0 {J}.3")
        return step(plan, f"vector c0 {last}.1")
    plan = step(plan, f"layout c0 {J}.1 {' '.join(order)} {J}.2 {J}.3")
    plan = step(plan, f"nest c0 {' '.join(order)} {J}.1 {J}.2 {J}.3")
    if order:  # short pieces of rows, which the machine does not foresee
        plan = step(plan, f"ahead c0 {order[0]} {AHEAD}")
    plan = step(plan, f"unroll c0 {J}.2")
    return step(plan, f"vector c0 {J}.3")


def _image(plan: Plan, machine: Machine, i: Node, K: str, terms: int) -> Plan:
    """The copy of the image: line after line, by vectors of places."""
    if f"c1.{K}" in own_names(plan, "c1").split():
        plan = step(plan, f"split c1.{K} {terms}")
        plan = step(plan, f"at c1 {K}.0")
    last = own_names(plan, "c1").split()[-1]
    plan = step(plan, f"split {last} {machine.float_lanes}")
    mine = [x.arg.name for x in plan.nests["c1"]]
    rows = [x for x in mine if x.startswith(f"{i.arg.name}.")]
    names = " ".join([*rows, *(x for x in mine if x not in rows)])
    plan = step(plan, f"layout c1 {names}")
    plan = step(plan, f"nest c1 {names}")
    return step(plan, f"vector c1 {last}.1")


__all__ = ["weights"]
