"""Matrix products with their epilogues: a tile of results in registers, operands in panels.

Panels are packed in the order they are read. Rows and columns are both shared axes; chains of
products are in `bands`, long sums over operands that do not lie along the results in `deep`.
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import toposort
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, product, size, work
from muladd.schedule.primitives import step
from muladd.schedule.recipes.bands import bands
from muladd.schedule.recipes.deep import across_depth, deep, terms_of
from muladd.schedule.recipes.operands import (
    CHUNKS,
    MANY_ROWS,
    merge_reduced,
    moves,
    own_names,
    pack,
    reduced_names,
    sides_of,
    tile,
)
from muladd.schedule.recipes.rows import stream

_LIGHT = 48  # operations of an epilogue of which several vectors are computed side by side


def products(plan: Plan, machine: Machine, found: list[Product]) -> Plan | None:
    """A plan for a kernel with matrix products, or None if no recipe here fits."""
    kernel = plan.kernel
    if any(p.stage.lanes > 1 for p in found):
        return None
    main = max(found, key=lambda p: work(p.stage))
    try:
        if all(a in kernel.shared for a in (*main.rows, *main.columns)):
            return block(plan, machine, main) if main.rows and main.columns else None
        return bands(plan, machine, found)
    except ScheduleError:
        return None


def block(plan: Plan, machine: Machine, p: Product) -> Plan | None:
    kernel = plan.kernel
    wide = across_depth(kernel, machine, p)
    if wide is not None:
        plan, packed = pack(plan, p.stage, wide.vector, "c0")
        if packed:
            return deep(plan, machine, p, wide, ["c0"])
    sides = sides_of(kernel, p)
    if sides is None or extent(sides.column) < 4:
        return None
    s, i, j = p.stage, sides.row, sides.column
    depth = size(s.reduced)
    rows, columns = extent(i), extent(j)
    lies_along_rows = moves(kernel, sides.broadcast, i) == 1 and rows >= 4
    along_depth = any(moves(kernel, sides.broadcast, r) == 1 for r in s.reduced)
    pack_rows = lies_along_rows and not along_depth and rows >= 8 and columns >= 32
    t = tile(machine, rows, columns, pack_rows)
    strided = moves(kernel, sides.vector, j) != 1
    pack_columns = rows >= MANY_ROWS or (strided and rows >= 4)
    batch = [a for a in kernel.shared if a is not i and a is not j]
    plan, packed = pack(plan, s, sides.vector, "c0") if pack_columns else (plan, False)
    plan, packed_rows = pack(plan, s, sides.broadcast, "c1") if pack_rows else (plan, False)
    plan = merge_reduced(plan, s.name)
    itemsize = 4
    depths = [a for a in plan.kernel.stage(s.name).reduced if extent(a) > 1]
    if packed and packed_rows and len(depths) == 1:
        square = tile(machine, rows, columns, False)
        if depth >= 2 * terms_of(machine, square):
            return deep(plan, machine, p, sides, ["c0", "c1"])
    fitting = machine.l2 // 2 // max(depth * t.columns * itemsize, 1)
    if pack_rows:  # a copied panel of rows must serve several panels of columns
        fitting = max(fitting, 4)
    panels = max(1, min(-(-columns // t.columns), fitting, 16))
    groups = -(-columns // (t.columns * panels)) * size(batch)
    most = max(machine.cores, rows // 96) if packed else rows  # each part packs anew
    parts = max(1, min(CHUNKS // max(groups, 1), -(-rows // (t.rows * 4)), most))
    tiles = -(-rows // (t.rows * parts))
    I, J = i.arg.name, j.arg.name
    plan = step(plan, f"split {I} {tiles} {t.rows}")
    plan = step(plan, f"split {J} {panels} {t.vectors} {t.lanes}")
    names = [a.arg.name for a in batch]
    plan = step(plan, " ".join(["outer", *names, f"{J}.0", f"{I}.0", f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    depth_loops = reduced_names(plan, s.name)
    plan = step(plan, f"nest {s.name} {J}.1 {depth_loops} {I}.2 {J}.2 {J}.3")
    plan = step(plan, f"unroll {s.name} {I}.2 {J}.2")
    if packed:
        plan = _panel(plan, "c0", len(names) + 2, f"{J}.1", f"{J}.2 {J}.3")
        plan = step(plan, f"unroll c0 {J}.2")
    if packed_rows:
        plan = step(plan, f"layout c1 {own_names(plan, 'c1')} {I}.2")
        plan = step(plan, f"nest c1 {own_names(plan, 'c1')} {I}.2")
        plan = step(plan, f"vector c1 {I}.2")
    for other in plan.kernel.stages:
        if other.name in (s.name, "c0", "c1"):
            continue
        again = product(plan.kernel, other)
        if again is not None and other.reduced:
            loops = reduced_names(plan, other.name)
            plan = step(plan, f"nest {other.name} {J}.1 {loops} {I}.2 {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {I}.2 {J}.2")
        else:
            own = [x.arg.name for x in plan.nests[other.name]
                   if x.arg.name not in (f"{J}.1", f"{J}.2", f"{J}.3", f"{I}.2")]  # fmt: skip
            plan = step(plan, f"nest {other.name} {I}.2 {J}.1 {' '.join(own)} {J}.2 {J}.3")
            if len(toposort((other.value,))) <= _LIGHT:  # several at once would fill the registers
                plan = step(plan, f"unroll {other.name} {J}.2")
    for other in plan.kernel.stages:
        if other.name != "c1":
            plan = step(plan, f"vector {other.name} {J}.3")
    return stream(plan)


def _panel(plan: Plan, name: str, level: int, outermost: str, innermost: str) -> Plan:
    """A copy made once per outer loop, in panels as wide as the tile."""
    plan = step(plan, f"at {name} {level}")
    order = " ".join(x for x in (outermost, own_names(plan, name), innermost) if x)
    plan = step(plan, f"layout {name} {order}")
    return step(plan, f"nest {name} {order}")
