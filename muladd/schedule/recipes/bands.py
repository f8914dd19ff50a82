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

from muladd.device.machine import Machine
from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import (
    CHUNKS,
    MANY_ROWS,
    merge_reduced,
    moves,
    pack,
    reduced_names,
    tile,
)
from muladd.schedule.recipes.rows import along, stream

_LEAST_ROWS = 4  # fewer are no tile
_BAND = 2  # tiles in a band: more share a panel, but must all stay in the cache


def bands(plan: Plan, machine: Machine, found: list[Product]) -> Plan | None:
    """Every stage for a band of rows at a time; products use register tiles of it."""
    kernel = plan.kernel
    row = next((a for a in reversed(kernel.shared)
                if all(a in (*p.rows, *p.columns) for p in found)), None)  # fmt: skip
    if row is None or extent(row) < _LEAST_ROWS:
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
    widest, longest, _, _ = max(chosen, key=lambda x: extent(x[1]))
    t = tile(machine, widest.stage, rows, extent(longest))
    high = max(1, min(_BAND, rows // t.rows))
    others = [a for a in kernel.shared if a is not row]
    bands_in_all = -(-rows // (t.rows * high))
    parts = max(1, min(bands_in_all, -(-CHUNKS // max(size(others), 1))))
    packs, scaled = {}, []
    for k, (p, column, vector, broadcast) in enumerate(chosen):
        strided = moves(kernel, vector, column) != 1
        if (strided or _computed(vector)) and rows >= MANY_ROWS:
            plan, done = pack(plan, p.stage, vector, f"c{k}")
            if done:
                packs[f"c{k}"] = column
        if _computed(broadcast) and row in toposort((broadcast,)):
            plan, done = pack(plan, p.stage, broadcast, f"a{k}")
            if done:
                scaled.append(f"a{k}")
        plan = merge_reduced(plan, p.stage.name)
    R = row.arg.name
    plan = step(plan, f"split {R} {-(-bands_in_all // parts)} {high} {t.rows}")
    names = [a.arg.name for a in others]
    plan = step(plan, " ".join(["outer", *names, f"{R}.0", f"{R}.1"]))
    plan = step(plan, f"parallel {len(names) + 1}")
    done_stages = set()
    for p, column, _, _ in chosen:
        s = plan.kernel.stage(p.stage.name)
        done_stages.add(s.name)
        wide = tile(machine, p.stage, t.rows, extent(column))
        vectors = max(1, min(t.vectors, -(-extent(column) // wide.lanes)))
        C = column.arg.name
        plan = step(plan, f"split {C} {vectors} {wide.lanes}")
        rest = [x.arg.name for x in plan.nests[s.name] if x.arg.name.split(".")[0] not in (R, C)]
        reduced = reduced_names(plan, s.name).split()
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
    plan = step(plan, f"split {name} {machine.lanes(s.accumulator.itemsize)}")
    others = [x.arg.name for x in plan.nests[s.name] if not x.arg.name.startswith(name)]
    plan = step(plan, " ".join(["layout", s.name, *others, f"{name}.0", f"{name}.1"]))
    plan = step(plan, " ".join(["nest", s.name, f"{name}.0", *others, f"{name}.1"]))
    return step(plan, f"vector {s.name} {name}.1")
