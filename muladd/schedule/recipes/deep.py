"""Long sums: a block of the sum at a time for an area of results, which wait meanwhile.

The nest of out[i, j] += left[i, k] * right[k, j], i.2 and j.2 written out and j.3 in vectors:

    grid batch j.0 i.0                     an area of results, tiles j.1 by i.1
      for k.0                              blocks of the sum
        c0[j.1, k.1, j.2, j.3] = right     the block's panels of columns
        c1[i.1, k.1, i.2] = left           and, where terms do not lie side by side, of rows
        for j.1 i.1
          for k.1
            i.2 j.2 j.3                    a tile: its results are loaded, summed on, and kept
      for i.1
        d0                                 stores the results, with what is done to them

A panel of columns stays in the first cache while all rows of the area pass by, the panels of rows
in the second. More axes of the results (the taps of a convolution) stand inside k.0, more reduced
ones inside k.1; where these are too many for the first cache (the pixels of an image), so many
lines at a time as are not.
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.ir import Node
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import (
    AHEAD,
    Sides,
    Tile,
    is_turned,
    merge_reduced,
    moves,
    own_names,
    reduced_names,
    tile,
    turned_copy,
)
from muladd.schedule.recipes.rows import stream

_LONG = 4  # a sum is long if it takes so many times the lines of the first cache
_SOME = 24  # terms that are enough if they are more than taps: places of an image
_LEAST_ROWS = 16  # results that share a vector of the other side's copy, at least
_MORE_DOWN, _MOST_ACROSS = 8, 16  # how many areas are tried beyond the least downwards, and across
_MANY_REGISTERS = 32
_WAIT_PRICE = 16.0  # what keeping a result between two blocks costs, in multiply-adds
_COPY_PRICE = 12.0  # what copying an element costs, in multiply-adds of a vector


def terms_of(machine: Machine, t: Tile, p: Product) -> int:
    """Terms of a sum for which the panels of one tile take three quarters of the first cache."""
    return machine.l1 * 3 // 4 // ((t.columns + t.rows) * p.left.dtype.itemsize)


def across_depth(kernel: Kernel, machine: Machine, p: Product) -> Sides | None:
    """The sides of a long sum whose operands lie along it and not along the results.

    Such is the derivative of a convolution for its weights: a sum over all pixels of all images,
    for each pair of channels and each tap. Columns are the channels that stand alone on their side.
    """
    lanes = machine.lanes(p.stage.accumulator.itemsize)
    if kernel.exact or len(p.rows) + len(p.columns) < 3 or len(p.stage.reduced) < 2:
        return None
    best: tuple[int, Sides] | None = None
    for rows, columns, left, right in (
        (p.rows, p.columns, p.left, p.right), (p.columns, p.rows, p.right, p.left)
    ):  # fmt: skip
        if any(moves(kernel, x, a) == 1 and extent(a) >= 2 * lanes
               for x, axes in ((left, rows), (right, columns)) for a in axes):  # fmt: skip
            return None
        (j, *others), i = sorted(columns, key=extent, reverse=True), max(rows, key=extent)
        if not others and extent(j) >= lanes and size(rows) >= _LEAST_ROWS:
            sides = Sides(i, j, left, right)
            if best is None or size(rows) > best[0]:
                best = (size(rows), sides)
    if best is None:
        return None
    taps = max((extent(a) for a in (*p.rows, *p.columns) if a not in (best[1].row, best[1].column)),
               default=1)  # fmt: skip
    terms, places = size(p.stage.reduced), min(map(extent, p.stage.reduced[-2:]))
    long = terms >= _LONG * machine.l1 // machine.line
    return best[1] if long or terms >= _SOME and places > taps else None


def deep(plan: Plan, machine: Machine, p: Product, sides: Sides, copies: list[str]) -> Plan:
    """The nest above, with those of the copies c0 and c1 that the plan has."""
    i, j, name = sides.row, sides.column, p.stage.name
    t = _tile(machine, p, sides, copies)
    plan = merge_reduced(step(plan, f"keep {name} d0"), name)
    I, J = i.arg.name, j.arg.name
    k, *rest = (a for a in plan.kernel.stage(name).reduced if extent(a) > 1)
    K, blocks = k.arg.name, max(1, -(-size((k, *rest)) // terms_of(machine, t, p)))
    terms = max(1, -(-extent(k) // blocks))
    turned = not rest and is_turned(machine, plan.kernel, p, sides, t)
    if turned:
        terms = -(-terms // t.lanes) * t.lanes
    beside = p.rows if j in p.columns else p.columns
    more = [a for a in beside if a is not i and "c1" not in copies]  # results of a block too
    batch = [a for a in plan.kernel.shared if a not in (i, j, *more)]
    row = t.rows * terms * size(rest) * p.left.dtype.itemsize  # bytes of a panel of rows
    rows, columns = -(-extent(i) // t.rows), -(-extent(j) // t.columns)
    high, wide = area(machine, rows, columns, t, row, size(batch), size(more))
    plan = step(plan, f"split {I} {high} {t.rows}")
    plan = step(plan, f"split {J} {wide} {t.vectors} {t.lanes}")
    plan = step(plan, f"split {K} {terms}")
    lines = _lines(machine, t, p, rest)
    if lines:
        for whose in ("", *(f"{copy}." for copy in copies)):
            plan = step(plan, f"split {whose}{rest[0].arg.name} {lines}")
    for copy in copies:
        parts = f"{terms // t.lanes} {t.lanes}" if turned and copy == "c0" else terms
        plan = step(plan, f"split {copy}.{K} {parts}")
    names = [a.arg.name for a in batch]
    taps = " ".join(a.arg.name for a in more)
    plan = step(plan, " ".join(["outer", *names, f"{J}.0 {I}.0", taps, f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    for stage in (name, *copies):
        plan = step(plan, f"at {stage} {len(names) + 2}")
    far = sorted(rest, key=lambda a: -moves(plan.kernel, sides.broadcast, a))
    inner = f"{I}.2 {J}.2 {J}.3"
    under = [f"{K}.1", *(plan.leaves[a][-1].loop.arg.name for a in far)]
    steps = [f"{K}.0", *([f"{rest[0].arg.name}.0"] if lines else [])]
    empty = [x for x in reduced_names(plan, name).split() if x not in (*steps, *under)]
    within = " ".join([*empty, *under])
    plan = step(plan, f"nest {name} {' '.join(steps)} {taps} {J}.1 {I}.1 {within} {inner}")
    plan = step(plan, f"layout {name} {taps} {J}.1 {I}.1 {inner}")
    plan = step(plan, f"unroll {name} {I}.2 {J}.2")
    for copy, panel, near in (("c0", f"{J}.1", f"{J}.2 {J}.3"), ("c1", f"{I}.1", f"{I}.2")):
        if copy not in copies:
            continue
        plan = step(plan, f"at {copy} {K}.0")
        if turned and copy == "c0":
            plan = turned_copy(plan, J, f"c0.{K}.1", f"c0.{K}.2")
            continue
        mine = own_names(plan, copy).split()
        inside = (f"{copy}.{n}" for n in (*steps[1:], *empty, *under))
        order = " ".join(x for x in inside if x in mine)
        lanes = _beside(plan, sides, t, rest) if copy == "c0" else 0
        if lanes:
            last = plan.leaves[rest[-1]][-1].loop.arg.name
            plan = _turned(plan, J, order.split(), f"c0.{last}", lanes)
            continue
        plan = step(plan, f"layout {copy} {panel} {order} {near}")
        plan = step(plan, f"nest {copy} {order} {panel} {near}")  # as the source lies in memory
        if f"{copy}.{K}.1" in mine:  # short pieces of rows, which the machine does not foresee
            plan = step(plan, f"ahead {copy} {copy}.{K}.1 {AHEAD}")
        if copy == "c1" and t.rows & (t.rows - 1) == 0:
            plan = step(plan, f"vector c1 {I}.2")
        else:
            plan = step(plan, f"unroll {copy} {near.split()[0]}")
    for other in plan.kernel.stages:
        if other.name not in (name, *copies):
            loops = f"{own_names(plan, other.name)} {reduced_names(plan, other.name)}".split()
            own = " ".join(x for x in loops if x != f"{J}.1")
            plan = step(plan, f"nest {other.name} {I}.2 {J}.1 {own} {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {J}.2")
        if other.name != "c1" and not any(s == other.name for s, _ in plan.vector):
            plan = step(plan, f"vector {other.name} {J}.3")
    return stream(plan, machine)


def _beside(plan: Plan, sides: Sides, t: Tile, rest: list[Node]) -> int:
    """How many terms of the innermost reduced axis are read as a vector of a column, to be turned
    in registers; 0 where columns do not lie along it."""
    if not rest or moves(plan.kernel, sides.vector, rest[-1]) != 1:
        return 0
    if extent(sides.column) % t.lanes:
        return 0
    return next((n for n in (16, 8, 4) if n <= t.lanes and extent(rest[-1]) % n == 0), 0)


def _turned(plan: Plan, J: str, order: list[str], last: str, lanes: int) -> Plan:
    """The copy of columns by vectors of terms, each turned with as many columns in registers."""
    plan = step(plan, f"split {last} {lanes}")
    names = " ".join(f"{x}.0" if x == last else x for x in order)
    wide = " ".join(f"{x}.0 {x}.1" if x == last else x for x in order)
    plan = step(plan, f"layout c0 {J}.1 {wide} {J}.2 {J}.3")
    plan = step(plan, f"nest c0 {names} {J}.1 {J}.2 {J}.3 {last}.1")
    plan = step(plan, f"unroll c0 {J}.3")
    return step(plan, f"vector c0 {last}.1")


def _tile(machine: Machine, p: Product, sides: Sides, copies: list[str]) -> Tile:
    """The tile of results. Where rows are copied too and registers are many, it has so many rows
    that vectors copy them."""
    whole = "c1" in copies and machine.vector_registers >= _MANY_REGISTERS
    waits = lambda t: _WAIT_PRICE / terms_of(machine, t, p)  # noqa: E731
    return tile(machine, p.stage, extent(sides.row), extent(sides.column),
                whole_vectors=whole, more=waits if whole else None)  # fmt: skip


def _lines(machine: Machine, t: Tile, p: Product, rest: list[Node]) -> int:
    """Turns of the outermost of the inner reduced axes at a time, whose panels stay in the first
    cache while all taps pass by; 0 where those of all turns do, or of one do not."""
    if len(rest) < 2 or size(rest) <= terms_of(machine, t, p):
        return 0
    most = terms_of(machine, t, p) // size(rest[1:])
    return -(-extent(rest[0]) // -(-extent(rest[0]) // most)) if most else 0


def area(
    machine: Machine, rows: int, columns: int, t: Tile, panel: int, batch: int, more: int
) -> tuple[int, int]:
    """Tiles down and across of the results that one thread sums at a time, of so many in all.

    As few copies as can be, with the panels of rows in half of the second cache, and work for all
    cores: two chunks for each, and the last ones at the same time.
    """
    least = -(-rows * panel // (machine.l2 // 2))
    best: tuple[float, int, int] | None = None
    for down in range(min(least, rows), min(least + _MORE_DOWN, rows) + 1):
        for across in range(1, min(columns, _MOST_ACROSS) + 1):
            chunks = down * across * batch
            uneven = -(-chunks // machine.cores) * machine.cores / chunks
            few = max(1.0, 2 * machine.cores / chunks)
            high, wide = -(-rows // down), -(-columns // across)
            copied = _COPY_PRICE / (high * t.rows * more) + _COPY_PRICE / (wide * t.columns * more)
            score = (1 + copied) * uneven * few
            if best is None or score < best[0]:
                best = (score, high, wide)
    assert best is not None
    return best[1:]
