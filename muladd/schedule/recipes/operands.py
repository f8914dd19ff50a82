"""What the recipes of products share: tiles of results, the sides of a product, copies of them.

A tile is the results that are in registers while their sum runs. For each term of it, a tile of
`rows` rows and `vectors` vectors loads

                  vector vector        vectors of the right side
    one number    result result
    one number    result result        and one number, broadcast, for each row
    one number    result result

and does rows * vectors multiply-adds with rows + vectors loads.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, sqrt

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, sym, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import FAR, Product, accesses, extent, stride
from muladd.schedule.primitives import loop_named, step
from muladd.schedule.primitives.collapse import collapsed

AHEAD = 8  # terms whose values are on their way from memory while one is copied
MANY_ROWS = 24  # rows from which packing the other operand pays

_VECTORS = (1, 2, 3, 4, 6, 8)  # widths of tiles that are tried
MOST_TILE_ROWS = 16
_PAGE = 4096  # bytes: what the first cache's sets of a way hold
_SHORT_VECTOR = 16  # bytes: vectors are halved for narrow results, but not below this
# loads that cost nothing, by those of a square tile that fills the registers (so 6 x 2 is free of
# 16 registers, and 8 x 3 of 32); more cost a quarter of a multiply-add
_FREE_LOADS, _LOAD_PRICE = 1.15, 0.25
_TURN_PRICE = 1.0  # what a turn of the loop over the terms costs besides, in multiply-adds


@dataclass(frozen=True)
class Tile:
    """Results in registers: rows x (vectors * lanes)."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def tile(
    machine: Machine, stage: Stage, rows: int, *columns: int, whole_vectors: bool = False,
    most_rows: int = MOST_TILE_ROWS, panel: int = 0, even: bool = False, turn: float = _TURN_PRICE,
    taps: int = 1, beside: int = 1, more: Callable[[Tile], float] | None = None,
) -> Tile:  # fmt: skip
    """The tile that wastes least at the edges, of those that keep the multipliers busy.

    columns: of the product, or of each of several with the same rows that are as much work.
    whole_vectors: the row count must be a power of two, so that panels of rows are copied by
    vectors. most_rows: of `rows_at_once`. panel: bytes of a column of the copied operand, whose
    tile's columns should leave the second cache some room. even: tiles of one vector, or such as
    leave no columns over. turn: what a turn of the loop over the terms costs, in multiply-adds.
    taps: terms one after another in which the rows move on by one, so that most of their numbers
    are in registers already. beside: results of each row and column, which are written out, too.
    more: what else a tile costs a result and term, in multiply-adds.
    """
    itemsize = stage.accumulator.itemsize
    lanes = machine.lanes(itemsize)
    while lanes * itemsize > _SHORT_VECTOR and lanes >= 2 * max(columns):
        lanes //= 2
    budget = machine.vector_registers * 3 // 4  # the others hold operands
    free = _FREE_LOADS * 2 / sqrt(budget)
    best: tuple[float, Tile] | None = None
    for vectors in _VECTORS:
        for r in range(1, most_rows + 1):
            results = r * beside * vectors
            operands = vectors + (r if taps > 1 else 1)
            if results > budget or results + operands > machine.vector_registers:
                continue
            if whole_vectors and r & (r - 1):
                continue
            if even and vectors > 1 and any(c % (vectors * lanes) for c in columns):
                continue
            if vectors > 2 and vectors * lanes * panel > machine.l2 * 3 // 4:
                continue
            across = sum(_ratio(c, vectors * lanes) for c in columns) / len(columns)
            waste = _ratio(rows, r) * across
            loads = (beside * (r + taps - 1) / taps + vectors) / results
            starved = max(0.0, machine.chains / results - 1)
            price = _LOAD_PRICE * max(0.0, loads - free) + turn / results
            if more is not None:
                price += more(Tile(r, vectors, lanes))
            score = waste * (1 + price + starved)
            if best is None or score < best[0] - 1e-9:
                best = (score, Tile(r, vectors, lanes))
    assert best is not None
    return best[1]


def rows_at_once(machine: Machine, kernel: Kernel, sides: Sides) -> int:
    """How many rows of the broadcast side may be read together. Rows a page apart lie in the same
    set of the first cache, and push each other out where it has no ways left for what else passes.

    Measured on Zen 3, with 8 ways: of 12 rows a page apart a product was four times as slow as of
    6, and of 12 half a page apart twice as slow as of 8.
    """
    apart = moves(kernel, sides.broadcast, sides.row)
    if apart in (0, FAR):
        return MOST_TILE_ROWS
    ways = machine.l1 // _PAGE
    return min(MOST_TILE_ROWS, max(ways * 3 // 4, 1) + 2 * (_sets(apart, sides.broadcast) - 1))


def is_crowded(kernel: Kernel, sides: Sides) -> bool:
    """Whether rows of the broadcast side lie in the same set of the first cache: what is asked for
    early then pushes out what is in use (measured on Cascade Lake: 4 % of a product of 1024)."""
    apart = moves(kernel, sides.broadcast, sides.row)
    return apart not in (0, FAR) and _sets(apart, sides.broadcast) == 1


def is_turned(machine: Machine, kernel: Kernel, p: Product, sides: Sides, t: Tile) -> bool:
    """Whether columns lie along the terms, so that a copy of them takes a vector of terms of each.

    Then blocks are turned in registers; and where they are not whole, a copy that walked the tile's
    columns abreast would read one element of each in turn, whose lines must stay until the next.
    """
    terms = [a for a in p.stage.reduced if moves(kernel, sides.vector, a)]
    apart = moves(kernel, sides.vector, sides.column)
    if len(terms) != 1 or moves(kernel, sides.vector, terms[0]) != 1 or apart in (0, FAR):
        return False
    whole = all(extent(x) % t.lanes == 0 for x in (terms[0], sides.column))
    return whole or machine.l1 // _PAGE * _sets(apart, sides.vector) < t.columns


def _sets(apart: int, operand: Node) -> int:
    """Into how many groups of the first cache's sets lines fall that are so many elements apart."""
    return _PAGE // gcd(apart * operand.dtype.itemsize, _PAGE)


def _ratio(n: int, by: int) -> float:
    """Work with the last tile filled up, by the work that is asked for."""
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


def pack_lanes(plan: Plan, machine: Machine, s: Stage, column: Node) -> Plan:
    """A transposing copy: the columns lie side by side in it."""
    name = f"{s.name}.{column.arg.name}"
    plan = step(plan, f"split {name} {machine.lanes(s.accumulator.itemsize)}")
    others = [x.arg.name for x in plan.nests[s.name] if not x.arg.name.startswith(name)]
    plan = step(plan, " ".join(["layout", s.name, *others, f"{name}.0", f"{name}.1"]))
    plan = step(plan, " ".join(["nest", s.name, f"{name}.0", *others, f"{name}.1"]))
    return step(plan, f"vector {s.name} {name}.1")


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


def tiled(plan: Plan, stage: str, I: str, J: str) -> Plan:
    """A product's own loops: for each panel of columns its sum, and the tile inside."""
    plan = step(plan, f"nest {stage} {J}.1 {reduced_names(plan, stage)} {I}.2 {J}.2 {J}.3")
    return step(plan, f"unroll {stage} {I}.2 {J}.2")


def turned_copy(plan: Plan, J: str, steps: str, terms: str) -> Plan:
    """Panels of columns that lie along the terms: in each step a vector of terms of each column."""
    plan = step(plan, f"layout c0 {J}.1 {steps} {terms} {J}.2 {J}.3")
    plan = step(plan, f"nest c0 {J}.1 {steps} {J}.2 {J}.3 {terms}")
    loop, column = loop_named(plan, terms), loop_named(plan, f"{J}.3")
    lanes = extent(loop)
    if all(extent(plan.owner(x)) % lanes == 0 for x in (loop, column)):  # turned in registers
        plan = step(plan, f"unroll c0 {J}.3")
    return step(plan, f"vector c0 {terms}")
