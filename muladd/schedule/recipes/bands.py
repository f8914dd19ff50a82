"""Chains of products, as in attention: a band of rows at a time goes through all stages.

The nest for rows r, of which each product has columns c and terms k of its own, r.3 and c.1 written
out and c.2 in vectors:

    grid others r.0                  chunks, for the threads
      c0[k, c] = operand             an operand of a product that does not lie along its columns
      for r.1                        bands: r.2 tiles of r.3 rows
        for c.0 r.2                  a product, tile by tile
          for k
            r.3 c.1 c.2              the tile of results in registers
        for r.2 r.3                  what stands between: vectors along its own axis (see `rows`)
        for c.0 r.2                  the next product
          ...

What lies between the products is one band high and stays in the cache.
"""
from __future__ import annotations

from dataclasses import dataclass

from muladd.device.machine import Machine
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import (
    MANY_ROWS,
    Tile,
    merge_reduced,
    moves,
    pack,
    reduced_names,
    tile,
)
from muladd.schedule.recipes.rows import along, stream

_LEAST_ROWS = 4  # fewer are no tile
_BAND = 2  # tiles in a band: more share a panel, but must all stay in the cache


@dataclass(frozen=True)
class _Link:
    """A product of the chain: its own columns, and the operand that is read by vectors of them."""

    product: Product
    column: Node
    vector: Node
    broadcast: Node

    @property
    def name(self) -> str:
        return self.product.stage.name


def bands(plan: Plan, machine: Machine, found: list[Product]) -> Plan | None:
    """Every stage for a band of rows at a time; products use register tiles of it."""
    kernel = plan.kernel
    row = next((a for a in reversed(kernel.shared)
                if all(a in (*p.rows, *p.columns) for p in found)), None)  # fmt: skip
    if row is None or extent(row) < _LEAST_ROWS:
        return None
    chain = [_link(kernel, p, row) for p in found]
    links = [x for x in chain if x is not None]
    if len(links) < len(chain):
        return None
    rows, widest = extent(row), max(links, key=lambda x: extent(x.column))
    t = tile(machine, widest.product.stage, rows, extent(widest.column))
    high = max(1, min(_BAND, rows // t.rows))
    others = [a for a in kernel.shared if a is not row]
    bands_in_all = -(-rows // (t.rows * high))
    parts = max(1, min(bands_in_all, -(-machine.chunks // max(size(others), 1))))
    plan, panels = _copies(plan, links, row)
    R, names = row.arg.name, [a.arg.name for a in others]
    plan = step(plan, f"split {R} {-(-bands_in_all // parts)} {high} {t.rows}")
    plan = step(plan, " ".join(["outer", *names, f"{R}.0", f"{R}.1"]))
    plan = step(plan, f"parallel {len(names) + 1}")
    for link in links:
        plan = _tiles(plan, machine, link, R, t)
    for name, column in panels.items():
        plan = step(plan, f"at {name} {len(names) + 1}")
        plan = _pack_lanes(plan, machine, plan.kernel.stage(name), column)
    done = {*panels, *(link.name for link in links)}
    for s in plan.kernel.stages:
        if s.name not in done:
            plan = along(plan, machine, s)
    return stream(plan, machine)


def _link(kernel: Kernel, p: Product, row: Node) -> _Link | None:
    """The product's columns are the axis of its own that an operand lies along, or the longest."""
    turned = row not in p.rows
    vector, broadcast = (p.left, p.right) if turned else (p.right, p.left)
    free = [a for a in (p.rows if turned else p.columns) if a not in kernel.shared]
    if not free:
        return None
    column = max(free, key=lambda a: (moves(kernel, vector, a) == 1, extent(a)))
    return _Link(p, column, vector, broadcast)


def _copies(plan: Plan, links: list[_Link], row: Node) -> tuple[Plan, dict[str, Node]]:
    """Copies of operands that do not lie along columns, or are more than a load.

    Gives those that all bands of a chunk share, with their columns.
    """
    kernel, panels = plan.kernel, {}
    for k, link in enumerate(links):
        stage = link.product.stage
        strided = moves(kernel, link.vector, link.column) != 1
        if (strided or _computed(link.vector)) and extent(row) >= MANY_ROWS:
            plan, done = pack(plan, stage, link.vector, f"c{k}")
            if done:
                panels[f"c{k}"] = link.column
        if _computed(link.broadcast) and row in toposort((link.broadcast,)):
            plan, _ = pack(plan, stage, link.broadcast, f"a{k}")
        plan = merge_reduced(plan, link.name)
    return plan, panels


def _tiles(plan: Plan, machine: Machine, link: _Link, R: str, t: Tile) -> Plan:
    """A product's own loops: columns, tiles of the band, the sum, and a tile inside."""
    C, name = link.column.arg.name, link.name
    wide = tile(machine, link.product.stage, t.rows, extent(link.column))
    vectors = max(1, min(t.vectors, -(-extent(link.column) // wide.lanes)))
    plan = step(plan, f"split {C} {vectors} {wide.lanes}")
    reduced = reduced_names(plan, name).split()
    rest = [x.arg.name for x in plan.nests[name]
            if x.arg.name.split(".")[0] not in (R, C) and x.arg.name not in reduced]  # fmt: skip
    plan = step(plan, " ".join(["nest", name, *rest, f"{C}.0", f"{R}.2", *reduced,
                                f"{R}.3", f"{C}.1", f"{C}.2"]))  # fmt: skip
    plan = step(plan, f"unroll {name} {R}.3 {C}.1")
    return step(plan, f"vector {name} {C}.2")


def _computed(operand: Node) -> bool:
    """Whether an operand is more than a load: work that a copy of it does once."""
    return operand.op not in (ops.LOAD, ops.READ)


def _pack_lanes(plan: Plan, machine: Machine, s: Stage, column: Node) -> Plan:
    """A transposing copy: the columns lie side by side in it."""
    name = f"{s.name}.{column.arg.name}"
    plan = step(plan, f"split {name} {machine.lanes(s.accumulator.itemsize)}")
    others = [x.arg.name for x in plan.nests[s.name] if not x.arg.name.startswith(name)]
    plan = step(plan, " ".join(["layout", s.name, *others, f"{name}.0", f"{name}.1"]))
    plan = step(plan, " ".join(["nest", s.name, f"{name}.0", *others, f"{name}.1"]))
    return step(plan, f"vector {s.name} {name}.1")
