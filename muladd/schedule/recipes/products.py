"""Matrix products: a tile of results in registers, panels packed in the order they are read.

`block` is the product with its epilogue: rows and columns are both shared axes. `bands` is a chain
of stages per band of rows, as in attention: the columns are a stage's own axis, and what lies
between the products stays in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, Product, accesses, extent, product, size, stride, work
from muladd.schedule.primitives import step
from muladd.schedule.recipes.rows import along, stream

_CHUNKS = 8  # chunks of the grid that keep all threads busy to the end
_MANY_ROWS = 24  # rows from which packing the other operand pays


@dataclass(frozen=True)
class Tile:
    """Results in registers: rows x (vectors * lanes)."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def tile(machine: Machine, rows: int, columns: int, whole_vectors: bool) -> Tile:
    """The tile that wastes least at the edges, of those that keep the multipliers busy.

    whole_vectors: the row count must be a power of two, so that panels of rows are copied by
    vectors.
    """
    lanes = machine.float_lanes
    while lanes > 4 and lanes >= 2 * columns:
        lanes //= 2
    budget = machine.vector_registers * 3 // 4
    best: tuple[float, Tile] | None = None
    for vectors in (1, 2, 3, 4, 6, 8):
        for r in range(1, 17):
            if r * vectors > budget or r * vectors + vectors + 1 > machine.vector_registers:
                continue
            if whole_vectors and r & (r - 1):
                continue
            waste = _ratio(rows, r) * _ratio(columns, vectors * lanes)
            loads = (r + vectors) / (r * vectors)
            starved = max(0.0, 8 / (r * vectors) - 1) if r * vectors < 8 else 0.0
            score = waste * (1 + 0.25 * max(0.0, loads - 0.66) + starved)
            if best is None or score < best[0] - 1e-9:
                best = (score, Tile(r, vectors, lanes))
    assert best is not None
    return best[1]


def _ratio(n: int, by: int) -> float:
    return -(-n // by) * by / max(n, 1)


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


# --- operands ------------------------------------------------------------------------------------


def moves(kernel: Kernel, value: Node, axis: Node) -> int:
    """The stride of an operand (its one load, or read) along an axis."""
    for n in toposort((value,)):
        if n.op is ops.LOAD:
            return stride(_dim(n.srcs[0]), axis)
    for n in toposort((value,)):
        if n.op is ops.READ:
            last = n.srcs[-1] if n.srcs else None
            return 0 if axis not in toposort((n,)) else 1 if last is axis else FAR
    return 0


def _dim(n: Node) -> Node | int:
    return n.arg if n.op is ops.CONST else n


@dataclass(frozen=True)
class _Sides:
    """Which operand is broadcast (down the rows) and which is read by vectors (along columns)."""

    row: Node
    column: Node
    broadcast: Node
    vector: Node


def _sides(kernel: Kernel, p: Product) -> _Sides | None:
    """Columns are the axis that results are stored along, else the one an operand lies along."""
    best: tuple[float, _Sides] | None = None
    for rows, columns, left, right in (
        (p.rows, p.columns, p.left, p.right), (p.columns, p.rows, p.right, p.left)
    ):  # fmt: skip
        for c in columns:
            for r in rows:
                score = 2.0 * _stored_along(kernel, p.stage, c) + (moves(kernel, right, c) == 1)
                score += min(extent(r), 64) / 1000 + (extent(c) >= 4)
                if best is None or score > best[0]:
                    best = (score, _Sides(r, c, left, right))
    return best[1] if best is not None else None


def _stored_along(kernel: Kernel, stage: Stage, axis: Node) -> bool:
    stores = [x for s in kernel.stages for x in accesses(kernel, s) if x.store]
    if axis not in kernel.shared:
        return True  # a buffer of the kernel's own takes the order we like
    return all(x.stride(axis) == 1 for x in stores)


# --- the product with its epilogue ---------------------------------------------------------------


def block(plan: Plan, machine: Machine, p: Product) -> Plan | None:
    kernel = plan.kernel
    sides = _sides(kernel, p)
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
    pack_columns = rows >= _MANY_ROWS or (strided and rows >= 4)
    batch = [a for a in kernel.shared if a is not i and a is not j]
    plan, packed = _pack(plan, s, sides.vector, "c0") if pack_columns else (plan, False)
    plan, packed_rows = _pack(plan, s, sides.broadcast, "c1") if pack_rows else (plan, False)
    plan = _merge_reduced(plan, s.name)
    itemsize = 4
    depths = [a for a in plan.kernel.stage(s.name).reduced if extent(a) > 1]
    if packed and packed_rows and len(depths) == 1:
        square = tile(machine, rows, columns, False)
        if depth >= 2 * _deep(machine, square):
            return deep(plan, machine, s.name, sides, batch, square)
    fitting = machine.l2 // 2 // max(depth * t.columns * itemsize, 1)
    if pack_rows:  # a copied panel of rows must serve several panels of columns
        fitting = max(fitting, 4)
    panels = max(1, min(-(-columns // t.columns), fitting, 16))
    groups = -(-columns // (t.columns * panels)) * size(batch)
    parts = max(1, min(_CHUNKS // max(groups, 1), -(-rows // (t.rows * 4))))
    tiles = -(-rows // (t.rows * parts))
    I, J = i.arg.name, j.arg.name
    plan = step(plan, f"split {I} {tiles} {t.rows}")
    plan = step(plan, f"split {J} {panels} {t.vectors} {t.lanes}")
    names = [a.arg.name for a in batch]
    plan = step(plan, " ".join(["outer", *names, f"{J}.0", f"{I}.0", f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    depth_loops = _reduced_names(plan, s.name)
    plan = step(plan, f"nest {s.name} {J}.1 {depth_loops} {I}.2 {J}.2 {J}.3")
    plan = step(plan, f"unroll {s.name} {I}.2 {J}.2")
    if packed:
        plan = _panel(plan, "c0", len(names) + 2, f"{J}.1", f"{J}.2 {J}.3")
        plan = step(plan, f"unroll c0 {J}.2")
    if packed_rows:
        plan = step(plan, f"layout c1 {_own(plan, 'c1')} {I}.2")
        plan = step(plan, f"nest c1 {_own(plan, 'c1')} {I}.2")
        plan = step(plan, f"vector c1 {I}.2")
    for other in plan.kernel.stages:
        if other.name in (s.name, "c0", "c1"):
            continue
        again = product(plan.kernel, other)
        if again is not None and other.reduced:
            loops = _reduced_names(plan, other.name)
            plan = step(plan, f"nest {other.name} {J}.1 {loops} {I}.2 {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {I}.2 {J}.2")
        else:
            own = [x.arg.name for x in plan.nests[other.name]
                   if x.arg.name not in (f"{J}.1", f"{J}.2", f"{J}.3", f"{I}.2")]  # fmt: skip
            plan = step(plan, f"nest {other.name} {I}.2 {J}.1 {' '.join(own)} {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {J}.2")
    for other in plan.kernel.stages:
        if other.name != "c1":
            plan = step(plan, f"vector {other.name} {J}.3")
    return stream(plan)


def _deep(machine: Machine, t: Tile) -> int:
    """Terms of a sum for which the panels of one tile stay in the nearest cache."""
    return machine.l1 * 3 // 4 // ((t.columns + t.rows) * 4)


def deep(
    plan: Plan, machine: Machine, name: str, sides: _Sides, batch: list[Node], t: Tile
) -> Plan:
    """A long sum, a block of it at a time for a whole area of results, which wait meanwhile.

    Panels of both sides (c0, c1) are copied for each block: a panel of columns stays in the first
    cache while all rows of the area pass by, the rows in the second.
    """
    I, J = sides.row.arg.name, sides.column.arg.name
    plan = step(plan, f"keep {name} d0")
    k = max(plan.kernel.stage(name).reduced, key=extent)
    K, blocks = k.arg.name, -(-extent(k) // _deep(machine, t))
    terms = -(-extent(k) // blocks)
    rows, columns = -(-extent(sides.row) // t.rows), -(-extent(sides.column) // t.columns)
    high, wide = _area(machine, rows, columns, t, terms, size(batch))
    plan = step(plan, f"split {I} {high} {t.rows}")
    plan = step(plan, f"split {J} {wide} {t.vectors} {t.lanes}")
    for loop in (K, f"c0.{K}", f"c1.{K}"):
        plan = step(plan, f"split {loop} {terms}")
    names = [a.arg.name for a in batch]
    plan = step(plan, " ".join(["outer", *names, f"{J}.0", f"{I}.0"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    others = [x for x in _reduced_names(plan, name).split() if x not in (f"{K}.0", f"{K}.1")]
    inner = f"{I}.2 {J}.2 {J}.3"
    plan = step(plan, f"nest {name} {K}.0 {J}.1 {I}.1 {' '.join(others)} {K}.1 {inner}")
    plan = step(plan, f"layout {name} {J}.1 {I}.1 {inner}")
    plan = step(plan, f"unroll {name} {I}.2 {J}.2")
    for copy, panel, near in (("c0", f"{J}.1", f"{J}.2 {J}.3"), ("c1", f"{I}.1", f"{I}.2")):
        plan = step(plan, f"at {copy} {K}.0")
        own = " ".join(x for x in _own(plan, copy).split() if x != f"{copy}.{K}.0")
        plan = step(plan, f"layout {copy} {panel} {own} {near}")
        plan = step(plan, f"nest {copy} {own} {panel} {near}")  # as the source lies in memory
    plan = step(plan, f"unroll c0 {J}.2")
    plan = step(plan, f"unroll c1 {I}.2")
    for other in plan.kernel.stages:
        if other.name not in (name, "c0", "c1"):
            own = f"{_own(plan, other.name)} {_reduced_names(plan, other.name)}"
            plan = step(plan, f"nest {other.name} {J}.1 {I}.1 {I}.2 {own} {J}.2 {J}.3")
            plan = step(plan, f"unroll {other.name} {J}.2")
        if other.name != "c1":
            plan = step(plan, f"vector {other.name} {J}.3")
    return stream(plan)


def _area(
    machine: Machine, rows: int, columns: int, t: Tile, depth: int, others: int
) -> tuple[int, int]:
    """Tiles down and across of the results that one thread sums at a time."""
    least = -(-rows * t.rows * depth * 4 // (machine.l2 // 2))
    best: tuple[float, int, int] | None = None
    for down in range(min(least, rows), min(least + 8, rows) + 1):
        for across in range(1, min(columns, 16) + 1):
            chunks = down * across * others
            uneven = -(-chunks // machine.cores) * machine.cores / chunks
            few = max(1.0, 2 * machine.cores / chunks)
            high, wide = -(-rows // down), -(-columns // across)
            copied = 12.0 / (high * t.rows) + 12.0 / (wide * t.columns)  # beside the products
            score = (1 + copied) * uneven * few
            if best is None or score < best[0]:
                best = (score, high, wide)
    assert best is not None
    _, high, wide = best
    return high, wide


def _pack(plan: Plan, stage: Stage, operand: Node, name: str) -> tuple[Plan, bool]:
    side = "left" if operand is stage.value.srcs[0] else "right"
    try:
        return step(plan, f"copy {stage.name} {side} {name}"), True
    except ScheduleError:
        return plan, False


def _merge_reduced(plan: Plan, stage: str) -> Plan:
    """Reduced axes that the remaining accesses do not tell apart become one loop."""
    from muladd.schedule.primitives.collapse import collapsed

    again = True
    while again:
        again = False
        reduced = plan.kernel.stage(stage).reduced
        for a, b in zip(reduced, reduced[1:]):
            new = collapsed(plan.kernel, a, b)
            if new is not None:
                plan, again = step(plan, f"collapse {a.arg.name} {b.arg.name}"), True
                break
    return plan


def _reduced_names(plan: Plan, stage: str) -> str:
    s = plan.kernel.stage(stage)
    return " ".join(x.loop.arg.name for a in s.reduced for x in plan.leaves[a])


def _own(plan: Plan, stage: str) -> str:
    s = plan.kernel.stage(stage)
    return " ".join(x.loop.arg.name for a in plan.kernel.free_axes(s) for x in plan.leaves[a])


def _panel(plan: Plan, name: str, level: int, outermost: str, innermost: str) -> Plan:
    """A copy made once per outer loop, in panels as wide as the tile."""
    plan = step(plan, f"at {name} {level}")
    order = " ".join(x for x in (outermost, _own(plan, name), innermost) if x)
    plan = step(plan, f"layout {name} {order}")
    return step(plan, f"nest {name} {order}")


# --- bands of rows -------------------------------------------------------------------------------


def bands(plan: Plan, machine: Machine, found: list[Product]) -> Plan | None:
    """Every stage for a band of rows at a time; products use register tiles of it."""
    kernel = plan.kernel
    row = next((a for a in reversed(kernel.shared)
                if all(a in (*p.rows, *p.columns) for p in found)), None)  # fmt: skip
    if row is None or extent(row) < 4:
        return None
    rows = extent(row)
    chosen: list[tuple[Product, Node, Node, Node]] = []
    for p in found:
        vector, broadcast = (p.right, p.left) if row in p.rows else (p.left, p.right)
        free = [a for a in (p.columns if row in p.rows else p.rows) if a not in kernel.shared]
        if not free:
            return None
        column = max(free, key=lambda a: (moves(kernel, vector, a) == 1, extent(a)))
        chosen.append((p, column, vector, broadcast))
    t = tile(machine, rows, max(extent(c) for _, c, _, _ in chosen), False)
    high = max(1, min(2, rows // t.rows))
    others = [a for a in kernel.shared if a is not row]
    bands_in_all = -(-rows // (t.rows * high))
    parts = max(1, min(bands_in_all, -(-_CHUNKS // max(size(others), 1))))
    packs, scaled = {}, []
    for k, (p, column, vector, broadcast) in enumerate(chosen):
        strided = moves(kernel, vector, column) != 1
        if (strided or _computed(vector)) and rows >= _MANY_ROWS:
            plan, done = _pack(plan, p.stage, vector, f"c{k}")
            if done:
                packs[f"c{k}"] = column
        if _computed(broadcast) and row in toposort((broadcast,)):
            plan, done = _pack(plan, p.stage, broadcast, f"a{k}")
            if done:
                scaled.append(f"a{k}")
        plan = _merge_reduced(plan, p.stage.name)
    R = row.arg.name
    plan = step(plan, f"split {R} {-(-bands_in_all // parts)} {high} {t.rows}")
    names = [a.arg.name for a in others]
    plan = step(plan, " ".join(["outer", *names, f"{R}.0", f"{R}.1"]))
    plan = step(plan, f"parallel {len(names) + 1}")
    done_stages = set()
    for p, column, _, _ in chosen:
        s = plan.kernel.stage(p.stage.name)
        done_stages.add(s.name)
        wide = tile(machine, t.rows, extent(column), False)
        vectors = max(1, min(t.vectors, -(-extent(column) // wide.lanes)))
        C = column.arg.name
        plan = step(plan, f"split {C} {vectors} {wide.lanes}")
        rest = [x.arg.name for x in plan.nests[s.name] if x.arg.name.split(".")[0] not in (R, C)]
        reduced = _reduced_names(plan, s.name).split()
        rest = [x for x in rest if x not in reduced]
        plan = step(plan, " ".join(["nest", s.name, *rest, f"{C}.0", f"{R}.2", *reduced,
                                    f"{R}.3", f"{C}.1", f"{C}.2"]))  # fmt: skip
        plan = step(plan, f"unroll {s.name} {R}.3 {C}.1")
        plan = step(plan, f"vector {s.name} {C}.2")
    for name in packs:
        done_stages.add(name)
        plan = step(plan, f"at {name} {len(names) + 1}")
        s = plan.kernel.stage(name)
        plan = _pack_lanes(plan, machine, s, packs[name])
    for s in plan.kernel.stages:
        if s.name not in done_stages:
            plan = along(plan, machine, s)
    return stream(plan)


def _computed(operand: Node) -> bool:
    """Whether an operand is more than a load: work that a copy of it does once."""
    return operand.op not in (ops.LOAD, ops.READ)


def _pack_lanes(plan: Plan, machine: Machine, s: Stage, column: Node) -> Plan:
    """A transposing copy: the columns lie side by side in it."""
    name = f"{s.name}.{column.arg.name}"
    plan = step(plan, f"split {name} {machine.float_lanes}")
    others = [x.arg.name for x in plan.nests[s.name] if not x.arg.name.startswith(name)]
    plan = step(plan, " ".join(["layout", s.name, *others, f"{name}.0", f"{name}.1"]))
    plan = step(plan, " ".join(["nest", s.name, f"{name}.0", *others, f"{name}.1"]))
    return step(plan, f"vector {s.name} {name}.1")
