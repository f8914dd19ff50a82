"""What the recipes of products share: tiles of results, the sides of a product, copies of them."""
from __future__ import annotations

from dataclasses import dataclass

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, sym, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, Product, accesses, extent, stride
from muladd.schedule.primitives import step
from muladd.schedule.primitives.collapse import collapsed

MANY_ROWS = 24  # rows from which packing the other operand pays
CHUNKS = 8  # chunks of the grid that keep all threads busy to the end


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


def moves(kernel: Kernel, value: Node, axis: Node) -> int:
    """The stride of an operand (its one load, or read) along an axis."""
    for n in toposort((value,)):
        if n.op is ops.LOAD:
            return stride(sym.as_dim(n.srcs[0]), axis)
    for n in toposort((value,)):
        if n.op is ops.READ:
            last = n.srcs[-1] if n.srcs else None
            return 0 if axis not in toposort((n,)) else 1 if last is axis else FAR
    return 0


@dataclass(frozen=True)
class Sides:
    """Which operand is broadcast (down the rows) and which is read by vectors (along columns)."""

    row: Node
    column: Node
    broadcast: Node
    vector: Node


def sides_of(kernel: Kernel, p: Product) -> Sides | None:
    """Columns are the axis that results are stored along, else the one an operand lies along."""
    best: tuple[float, Sides] | None = None
    for rows, columns, left, right in (
        (p.rows, p.columns, p.left, p.right), (p.columns, p.rows, p.right, p.left)
    ):  # fmt: skip
        for c in columns:
            for r in rows:
                score = 2.0 * _stored_along(kernel, p.stage, c) + (moves(kernel, right, c) == 1)
                score += min(extent(r), 64) / 1000 + (extent(c) >= 4)
                if best is None or score > best[0]:
                    best = (score, Sides(r, c, left, right))
    return best[1] if best is not None else None


def _stored_along(kernel: Kernel, stage: Stage, axis: Node) -> bool:
    stores = [x for s in kernel.stages for x in accesses(kernel, s) if x.store]
    if axis not in kernel.shared:
        return True  # a buffer of the kernel's own takes the order we like
    return all(x.stride(axis) == 1 for x in stores)


def pack(plan: Plan, stage: Stage, operand: Node, name: str) -> tuple[Plan, bool]:
    side = "left" if operand is stage.value.srcs[0] else "right"
    try:
        return step(plan, f"copy {stage.name} {side} {name}"), True
    except ScheduleError:
        return plan, False


def merge_reduced(plan: Plan, stage: str) -> Plan:
    """Reduced axes that the remaining accesses do not tell apart become one loop."""
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


def reduced_names(plan: Plan, stage: str) -> str:
    s = plan.kernel.stage(stage)
    return " ".join(x.loop.arg.name for a in s.reduced for x in plan.leaves[a])


def own_names(plan: Plan, stage: str) -> str:
    s = plan.kernel.stage(stage)
    return " ".join(x.loop.arg.name for a in plan.kernel.free_axes(s) for x in plan.leaves[a])
