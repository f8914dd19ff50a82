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

What lies between the products is one band high and stays in the cache. Where a band is so long
that it does not, nor do the operands of its products, the stages along it run abreast, a block of
b.1 by b.2 by b.3 at a time, inside the loop of the last sum over it:

    grid others r.0
      for r.1
        for b.0                      blocks
          for b.1 r.2                a block of a product
            for k  r.3 b.2 b.3
          for r.2 r.3                what stands between
          for c.0 r.2                the sum goes on
            for b.1.2.3  r.3 c.1 c.2
        for r.2 r.3                  what is done with the sum
"""
from __future__ import annotations

from dataclasses import dataclass

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.limits import limits
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, same_axes, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import (
    MANY_ROWS,
    Tile,
    merge_reduced,
    moves,
    pack,
    pack_lanes,
    reduced_names,
    tile,
)
from muladd.schedule.recipes.rows import along, stream

_LEAST_ROWS = 4  # fewer are no tile
_LONG_BAND, _BLOCK = 96, 128  # rows of a band, and of what is along it, where that is long
_FROM_L3 = 7  # bytes a cycle that the third cache gives a core for sure
_COPY_PRICE = 0.25  # what copying the operands of a chunk costs, in bands
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
    try:
        return _bands(plan, machine, found, True)
    except ScheduleError:  # something along a long band is wanted as a whole
        return _bands(plan, machine, found, False)


def _bands(plan: Plan, machine: Machine, found: list[Product], blocks: bool) -> Plan | None:
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
    t = tile(machine, widest.product.stage, rows, *(extent(x.column) for x in links))
    high = max(1, min(_BAND, rows // t.rows))
    others = [a for a in kernel.shared if a is not row]
    plan, panels = _copies(plan, links, row)
    leaders = _leaders(plan.kernel, machine, links, high * t.rows) if blocks else []
    if leaders:
        high = max(1, min(_LONG_BAND // t.rows, -(-rows // t.rows)))
    bands_in_all = -(-rows // (t.rows * high))
    together = _together(plan.kernel, machine, bands_in_all, size(others))
    R, names = row.arg.name, [a.arg.name for a in others]
    plan = step(plan, f"split {R} {together} {high} {t.rows}")
    plan = step(plan, " ".join(["outer", *names, f"{R}.0", f"{R}.1"]))
    plan = step(plan, f"parallel {len(names) + 1}")
    done = {*panels}
    for leader in leaders:
        plan, blocked = _abreast(plan, machine, links, leader, R, t)
        done |= blocked
    for link in links:
        if link.name not in done:
            plan = _tiles(plan, machine, link, R, t)
            done.add(link.name)
    for name, column in panels.items():
        plan = step(plan, f"at {name} {len(names) + 1}")
        plan = pack_lanes(plan, machine, plan.kernel.stage(name), column)
    for s in plan.kernel.stages:
        if s.name not in done:
            plan = along(plan, machine, s)
    return stream(plan, machine)


def _together(kernel: Kernel, machine: Machine, bands: int, others: int) -> int:
    """Bands of a chunk. Where some have more to do than others (under a causal mask, the later
    ones) and where sizes are known only when it runs, chunks are several for each thread; else the
    threads have as equal shares as can be."""
    others = max(others, 1)
    most = max(1, min(bands, -(-machine.chunks // others)))
    known = all(isinstance(a.arg.extent, int) for a in kernel.shared)
    if limits(kernel) or not known:
        return -(-bands // most)

    def busiest(together: int) -> float:
        chunks = -(-bands // together) * others
        return -(-chunks // machine.cores) * (together + _COPY_PRICE)

    return min((-(-bands // n) for n in range(1, most + 1)), key=busiest)


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
    plan, C = _columns(plan, machine, link, t)
    reduced = reduced_names(plan, link.name).split()
    rest = [x.arg.name for x in plan.nests[link.name]
            if x.arg.name.split(".")[0] not in (R, C) and x.arg.name not in reduced]  # fmt: skip
    order = [*rest, f"{C}.0", f"{R}.2", *reduced, f"{R}.3", f"{C}.1", f"{C}.2"]
    return _nested(plan, link.name, order, f"{R}.3 {C}.1", f"{C}.2")


def _columns(plan: Plan, machine: Machine, link: _Link, t: Tile) -> tuple[Plan, str]:
    """A product's columns in vectors, as many side by side as the tile has; and their name."""
    C, wide = link.column.arg.name, tile(machine, link.product.stage, t.rows, extent(link.column))
    vectors = max(1, min(t.vectors, -(-extent(link.column) // wide.lanes)))
    return step(plan, f"split {C} {vectors} {wide.lanes}"), C


def _nested(plan: Plan, stage: str, order: list[str], unroll: str, vector: str) -> Plan:
    """A stage's loops in order, some of them written out, one of them lanes."""
    plan = step(plan, f"nest {stage} {' '.join(order)}")
    plan = step(plan, f"unroll {stage} {unroll}")
    return step(plan, f"vector {stage} {vector}")


def _leaders(kernel: Kernel, machine: Machine, links: list[_Link], band: int) -> list[_Link]:
    """The last sums over axes so long that a band of them takes much of the second cache, or that
    the products' operands do not stay there and each band wants them too fast from the third."""
    names = [s.name for s in kernel.stages]
    found: list[_Link] = []
    covered: set[Node] = set()
    held = sum(extent(x.column) * size(x.product.stage.reduced) * x.vector.dtype.itemsize
               for x in links)  # fmt: skip
    # a vector of an operand serves all rows of the band, two of them in a cycle
    starved = held > machine.l2 * 3 // 4 and machine.vector_bits // 4 > _FROM_L3 * band
    for link in sorted(links, key=lambda x: -names.index(x.name)):
        reduced = [a for a in link.product.stage.reduced if extent(a) > 1]
        if kernel.exact or len(reduced) != 1 or reduced[0] in covered:
            continue
        same = same_axes(kernel, reduced[0])
        item = link.product.stage.accumulator.itemsize
        long = band * extent(reduced[0]) * item > machine.l2 // 4
        if (long or starved) and any(x.column in same for x in links):
            found.append(link)
            covered |= same
    return found


def _abreast(
    plan: Plan, machine: Machine, links: list[_Link], leader: _Link, R: str, t: Tile
) -> tuple[Plan, set[str]]:
    """The stages along the leader's sum, in blocks; gives those that are done."""
    (axis,) = (a for a in leader.product.stage.reduced if extent(a) > 1)
    same = same_axes(plan.kernel, axis)
    columns = {x.name: x for x in links}
    kept = [x for x in links if same.intersection(x.product.stage.reduced)]
    for x in kept:
        stage = x.product.stage
        if stage.argument is not None or stage.accumulator is not stage.dtype:
            plan = step(plan, f"keep {x.name} {x.name}.out")
    group = [s for s in plan.kernel.stages if s.name != leader.name
             and same.intersection((*s.axes, *s.reduced)) and not _is_copy(s, links)]  # fmt: skip
    lanes, vectors = machine.lanes(leader.product.stage.accumulator.itemsize), t.vectors
    block = max(1, _BLOCK // (vectors * lanes)) * vectors * lanes
    loops = {}
    for s in (*group, plan.kernel.stage(leader.name)):
        (own,) = (a for a in (*s.axes, *s.reduced) if a in same)
        name, summed = own.arg.name, s.name in columns and own in s.reduced
        inner = f"{block}" if summed else f"{block // (vectors * lanes)} {vectors} {lanes}"
        plan = step(plan, f"split {name} {inner}")
        loops[s.name] = name
    head = f"{loops[leader.name]}.0"
    plan = step(plan, f"abreast {leader.name} {head} {' '.join(s.name for s in group)}")
    for s in (*group, plan.kernel.stage(leader.name)):
        b, link = loops[s.name], columns.get(s.name)
        if link is None:
            order = [f"{R}.2", f"{R}.3", f"{b}.1", f"{b}.2", f"{b}.3"]
            unroll, vector = f"{b}.2", f"{b}.3"
        elif link.column in same:
            reduced = reduced_names(plan, s.name).split()
            order = [f"{b}.1", f"{R}.2", *reduced, f"{R}.3", f"{b}.2", f"{b}.3"]
            unroll, vector = f"{R}.3 {b}.2", f"{b}.3"
        else:
            plan, C = _columns(plan, machine, link, t)
            first = [head] if s.name == leader.name else []
            order = [*first, f"{C}.0", f"{R}.2", f"{b}.1", f"{R}.3", f"{C}.1", f"{C}.2"]
            unroll, vector = f"{R}.3 {C}.1", f"{C}.2"
        plan = _nested(plan, s.name, order, unroll, vector)
    outs = {s.name for s in plan.kernel.stages} & {f"{x.name}.out" for x in kept}
    for name in sorted(outs):
        C = columns[name.removesuffix(".out")].column.arg.name
        order = [f"{R}.2", f"{R}.3", f"{C}.0", f"{C}.1", f"{C}.2"]
        plan = _nested(plan, name, order, f"{C}.1", f"{C}.2")
    return plan, {*loops, *outs}


def _is_copy(s: Stage, links: list[_Link]) -> bool:
    """Whether a stage is an operand laid out anew, which is not made a block at a time."""
    return s.name[0] in "ca" and all(s.name != x.name for x in links)


def _computed(operand: Node) -> bool:
    """Whether an operand is more than a load: work that a copy of it does once."""
    return operand.op not in (ops.LOAD, ops.READ)
