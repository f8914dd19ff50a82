"""Products of bytes by the instructions for them, whose columns are packed as these want them.

The nest of out[i, j] += int32(a[i, k]) * int32(b[k, j]), four terms k.1 to a lane of j.3:

    grid batch j.0 i.0
      c0[j.1, k.0, j.2, j.3, k.1] = b      panels of columns, neighbouring terms side by side
      for i.1
        c1[i.2, k] = a                     rows that have to be made bytes first
        z0[i.2] += a                       where b's bytes must lose their sign (see `unsigned`)
        for j.1
          for k.0
            i.2 j.2                        four bytes of a row, and a vector of the panel
              j.3 k.1                      one instruction
        d0                                 what is done with the sums
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.loop.dots import factors
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, product, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import moves, sides_of, tile
from muladd.schedule.recipes.rows import along, stream

_TERMS = 4  # of a lane
_LEAST_ROWS = 16  # rows from which packing pays
_PANELS = 8  # panels that are packed together, at most


def packed_bytes(plan: Plan, machine: Machine, p: Product) -> Plan | None:
    """The nest above, or None if the kernel, or the machine, is another."""
    s, (r, *more) = p.stage, p.stage.reduced
    known = machine.dot == "vnni" or machine.dot == "sdot" and machine.vector_bits == 128
    if not known or not _of_int8(s) or more or extent(r) % _TERMS:
        return None
    sides = sides_of(plan.kernel, p)
    if sides is None or sides.vector is not p.right or extent(sides.row) < _LEAST_ROWS:
        return None
    if moves(plan.kernel, p.left, r) != 1:
        return None
    rows, columns = extent(sides.row), extent(sides.column)
    t = tile(machine, s, rows, columns, even=True)
    panels, odd = divmod(columns, t.columns)
    if odd:
        return None
    wanted = max(1, min(_PANELS, panels // machine.cores))
    together = next(n for n in range(wanted, 0, -1) if panels % n == 0)
    made = p.left.srcs[0].op is not ops.LOAD
    try:
        if made:
            plan = step(plan, f"copy {s.name} left c1 narrow")
        if machine.dot == "vnni":
            plan = step(plan, f"unsigned {s.name} z0 d0")
        plan = step(plan, f"copy {s.name} right c0 narrow")
    except ScheduleError:
        return None
    I, J, K = sides.row.arg.name, sides.column.arg.name, r.arg.name
    batch = [a.arg.name for a in plan.kernel.shared if a is not sides.row and a is not sides.column]
    groups = size(plan.kernel.shared) // (rows * columns) * (panels // together)
    parts = max(1, -(-machine.cores // groups))
    plan = step(plan, f"split {I} {-(-rows // (t.rows * parts))} {t.rows}")
    plan = step(plan, f"split {J} {together} {t.vectors} {t.lanes}")
    for loop in (K, f"c0.{K}"):
        plan = step(plan, f"split {loop} {_TERMS}")
    plan = step(plan, " ".join(["outer", *batch, f"{J}.0", f"{I}.0", f"{I}.1"]))
    plan = step(plan, f"parallel {len(batch) + 2}")
    k, near = f"c0.{K}", f"{J}.2 {J}.3"
    plan = step(plan, f"at c0 {len(batch) + 2}")
    plan = step(plan, f"layout c0 {J}.1 {k}.0 {near} {k}.1")
    plan = step(plan, f"nest c0 {J}.1 {k}.0 {J}.2 {k}.1 {J}.3")
    plan = step(plan, f"unroll c0 {J}.2 {k}.1")
    plan = step(plan, f"nest {s.name} {J}.1 {K}.0 {I}.2 {J}.2 {K}.1 {J}.3")
    plan = step(plan, f"unroll {s.name} {I}.2 {J}.2")
    plan = step(plan, f"dot {s.name} {K}.1")
    for x in plan.kernel.stages:
        if x.name in ("c1", "z0"):
            plan = along(plan, machine, x)
            continue
        if x.name not in (s.name, "c0"):
            if product(plan.kernel, x) is not None or x.reduced:
                return None
            plan = step(plan, f"nest {x.name} {I}.2 {J}.1 {near}")
            plan = step(plan, f"unroll {x.name} {J}.2")
        plan = step(plan, f"vector {x.name} {J}.3")
    return stream(plan, machine)


def _of_int8(s: Stage) -> bool:
    found = factors(s)
    return (found is not None and len(found) == 1 and s.value.op is ops.MUL
            and all(x.dtype is dt.int8 for x in found[0]))  # fmt: skip
