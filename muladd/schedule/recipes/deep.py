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
in the second.
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import (
    AHEAD,
    Sides,
    Tile,
    is_turned,
    merge_reduced,
    own_names,
    reduced_names,
    tile,
    turned_copy,
)
from muladd.schedule.recipes.rows import stream

_MORE_DOWN, _MOST_ACROSS = 8, 16  # how many areas are tried beyond the least downwards, and across
_MANY_REGISTERS = 32
_WAIT_PRICE = 16.0  # what keeping a result between two blocks costs, in multiply-adds
_COPY_PRICE = 12.0  # what copying an element costs, in multiply-adds of a vector


def terms_of(machine: Machine, t: Tile, p: Product) -> int:
    """Terms of a sum for which the panels of one tile take three quarters of the first cache."""
    return machine.l1 * 3 // 4 // ((t.columns + t.rows) * p.left.dtype.itemsize)


def deep(plan: Plan, machine: Machine, p: Product, sides: Sides, copies: list[str]) -> Plan:
    """The nest above, with those of the copies c0 and c1 that the plan has."""
    i, j, name = sides.row, sides.column, p.stage.name
    t = _tile(machine, p, sides, copies)
    plan = merge_reduced(step(plan, f"keep {name} d0"), name)
    I, J = i.arg.name, j.arg.name
    (k,) = (a for a in plan.kernel.stage(name).reduced if extent(a) > 1)
    K, blocks = k.arg.name, max(1, -(-extent(k) // terms_of(machine, t, p)))
    terms = max(1, -(-extent(k) // blocks))
    turned = is_turned(machine, plan.kernel, p, sides, t)
    if turned:
        terms = -(-terms // t.lanes) * t.lanes
    beside = p.rows if j in p.columns else p.columns
    more = [a for a in beside if a is not i and "c1" not in copies]  # results of a block too
    batch = [a for a in plan.kernel.shared if a not in (i, j, *more)]
    row = t.rows * terms * p.left.dtype.itemsize  # bytes of a panel of rows
    rows, columns = -(-extent(i) // t.rows), -(-extent(j) // t.columns)
    high, wide = area(machine, rows, columns, t, row, size(batch), size(more))
    plan = step(plan, f"split {I} {high} {t.rows}")
    plan = step(plan, f"split {J} {wide} {t.vectors} {t.lanes}")
    plan = step(plan, f"split {K} {terms}")
    for copy in copies:
        parts = f"{terms // t.lanes} {t.lanes}" if turned and copy == "c0" else terms
        plan = step(plan, f"split {copy}.{K} {parts}")
    names, others = ([a.arg.name for a in axes] for axes in (batch, more))
    plan = step(plan, " ".join(["outer", *names, f"{J}.0 {I}.0", *others, f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    for stage in (name, *copies):
        plan = step(plan, f"at {stage} {len(names) + 2}")
    areas, inner = [*others, f"{J}.1", f"{I}.1"], f"{I}.2 {J}.2 {J}.3"
    within = [x for x in reduced_names(plan, name).split() if x != f"{K}.0"]
    plan = step(plan, " ".join([f"nest {name} {K}.0", *areas, *within, inner]))
    plan = step(plan, " ".join([f"layout {name}", *areas, inner]))
    plan = step(plan, f"unroll {name} {I}.2 {J}.2")
    for copy, panel, near in (("c0", f"{J}.1", f"{J}.2 {J}.3"), ("c1", f"{I}.1", f"{I}.2")):
        if copy not in copies:
            continue
        plan = step(plan, f"at {copy} {K}.0")
        if turned and copy == "c0":
            plan = turned_copy(plan, J, f"c0.{K}.1", f"c0.{K}.2")
            continue
        order = " ".join(x for x in own_names(plan, copy).split() if x != f"{copy}.{K}.0")
        plan = step(plan, f"layout {copy} {panel} {order} {near}")
        plan = step(plan, f"nest {copy} {order} {panel} {near}")  # as the source lies in memory
        # short pieces of rows, which the machine does not foresee
        plan = step(plan, f"ahead {copy} {copy}.{K}.1 {AHEAD}")
        if copy == "c1" and t.rows & (t.rows - 1) == 0:
            plan = step(plan, f"vector c1 {I}.2")
        else:
            plan = step(plan, f"unroll {copy} {near.split()[0]}")
    plan = after(plan, name, sides, copies)
    for stage in (name, "c0"):
        if not any(s == stage for s, _ in plan.vector):
            plan = step(plan, f"vector {stage} {J}.3")
    return stream(plan, machine)


def after(plan: Plan, name: str, sides: Sides, copies: list[str]) -> Plan:
    """The stages after the sums: row by row of an area, by vectors of its columns."""
    I, J = sides.row.arg.name, sides.column.arg.name
    for other in plan.kernel.stages:
        if other.name not in (name, *copies):
            loops = f"{own_names(plan, other.name)} {reduced_names(plan, other.name)}".split()
            own = " ".join(x for x in loops if x != f"{J}.1")
            plan = step(plan, f"nest {other.name} {I}.2 {J}.1 {own} {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {J}.2")
            plan = step(plan, f"vector {other.name} {J}.3")
    return plan


def _tile(machine: Machine, p: Product, sides: Sides, copies: list[str]) -> Tile:
    """The tile of results. Where rows are copied too and registers are many, it has so many rows
    that vectors copy them."""
    whole = "c1" in copies and machine.vector_registers >= _MANY_REGISTERS
    waits = lambda t: _WAIT_PRICE / terms_of(machine, t, p)  # noqa: E731
    return tile(machine, p.stage, extent(sides.row), extent(sides.column),
                whole_vectors=whole, more=waits if whole else None)  # fmt: skip


def area(
    machine: Machine, rows: int, columns: int, t: Tile, panel: int, batch: int, more: int
) -> tuple[int, int]:
    """Tiles down and across of the results that one thread sums at a time, of so many in all.

    As few copies as can be, with the panels of rows in half of the second cache, and work for all
    cores: two chunks for each, and the last ones at the same time.
    """
    least = max(1, -(-rows * panel // (machine.l2 // 2)))
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
