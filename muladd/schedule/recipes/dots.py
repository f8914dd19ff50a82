"""Products of bytes, as quantised weights have them: by instructions that add neighbours too.

    s0[i, j, b] += int32(x[i, b, k]) * int32(w[j, b, k]) over k      a block of bytes
    s1[i, j] += float32(s0[i, j, b]) * scale[j, b] * ...  over b     the blocks, scaled

The nest, with i.1 and j.2 written out, j.3 in vectors, and k.1 the bytes of a lane:

    grid j.0
      for j.1 i.0
        for b.0                  where the sums of all blocks of a tile would fill the cache
          for b.1                s0 += dot: all terms of a block by one chain of instructions
            i.1 j.2 j.3
          for b.1                s1 += ...
            i.1 j.2 j.3

The bytes of neighbouring columns must lie side by side, k.1 for each: then nothing is shuffled, and
nothing is added across lanes. Whoever lays weights out sees to that (see `llm/weights.py`).
"""
from __future__ import annotations

from math import prod

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.dots import factors, side_by_side
from muladd.loop.kernel import Kernel, Stage, reaxis
from muladd.loop.plan import Plan
from muladd.schedule.analysis import extent, same_axes, size
from muladd.schedule.primitives import loop_named, step
from muladd.schedule.primitives.dot import TURNS
from muladd.schedule.recipes.rows import stream

_ROWS = 8  # of a tile, at most: sums, operands and scales of one vector fill 16 registers
_AHEAD = 4096  # bytes of a panel that are on their way before they are wanted
_FEW = 32  # rows up to which a product waits for its weights rather than for multipliers
_MOST_TERMS = 16  # instructions of a chain


def dots(plan: Plan, machine: Machine) -> Plan | None:
    """A plan for a kernel with products of bytes, or None if they do not lie as wanted."""
    kernel = plan.kernel
    found = [s for s in kernel.stages if _suits(kernel, s)]
    if not found or any(s.lanes > 1 for s in kernel.stages):
        return None
    for column in reversed(kernel.shared):
        try:
            return _tiles(plan, machine, found, column)
        except ScheduleError:
            continue
    return None


def _suits(kernel: Kernel, s: Stage) -> bool:
    if factors(s) is None or extent(s.reduced[-1]) not in TURNS:
        return False
    return all(isinstance(a.arg.extent, int) for a in s.reduced)


def _tiles(plan: Plan, machine: Machine, found: list[Stage], column: Node) -> Plan:
    kernel, J, lanes = plan.kernel, column.arg.name, machine.float_lanes
    panels, odd = divmod(extent(column), lanes)
    if odd or not isinstance(column.arg.extent, int):
        raise ScheduleError(f"dots: {J} is no whole number of vectors")
    others = [a for a in kernel.shared if a is not column]
    row = next((a for a in reversed(others) if _is_row(found[0], a, column)), None)
    down = 1 if row is None else min(_ROWS, extent(row))
    # with as many registers again, what is the same for all lanes is loaded for two panels
    across = 2 if row is not None and machine.vector_registers >= 32 and panels % 2 == 0 else 1
    wanted = max(1, machine.chunks // size([a for a in others if a is not row]))
    groups = panels // across
    chunks = next(n for n in range(min(wanted, groups), groups + 1) if groups % n == 0)
    plan = step(plan, f"split {J} {groups // chunks} {across} {lanes}")
    for s in found:
        for pair in factors(s) or ():
            for x in pair:
                value = reaxis(x, {column: plan.value(column)}, {})
                side_by_side(value, loop_named(plan, f"{J}.3"), s.reduced[-1])
    names = [a.arg.name for a in others if a is not row]
    tile = [f"{J}.2"]
    inner = [f"{J}.1"]
    if row is not None:
        I = row.arg.name
        plan = step(plan, f"split {I} {down}")
        tile.insert(0, f"{I}.1")
        inner.append(f"{I}.0")
    plan = step(plan, " ".join(["outer", *names, f"{J}.0", *inner]))
    plan = step(plan, f"parallel {len(names) + 1}")
    inside: dict[str, list[str]] = {}
    for s in found:
        plan = _blocked(plan, machine, s, down * across * lanes, inside)
    for s in plan.kernel.stages:
        few = row is None or extent(row) <= _FEW
        plan = _nest(plan, s, s in found, tile, f"{J}.3", few, inside.get(s.name, []))
    for s in plan.kernel.stages:
        plan = step(plan, f"vector {s.name} {J}.3")
    return stream(plan, machine)


def _blocked(
    plan: Plan, machine: Machine, s: Stage, tile: int, inside: dict[str, list[str]]
) -> Plan:
    """Blocks' sums are scaled a few blocks at a time, while they lie near, if all of a tile's are
    too many. Adds the loops of blocks that stages have then."""
    own = [a for a in s.axes if a not in plan.kernel.shared]
    if len(own) != 1 or not isinstance(own[0].arg.extent, int):
        return plan
    (blocks,) = own
    near = machine.l1 // (4 * tile * s.dtype.itemsize)
    count = next((n for n in range(min(near, extent(blocks)), 1, -1)
                  if extent(blocks) % n == 0), 1)  # fmt: skip
    readers = [t for t in plan.kernel.stages for r in t.reads() if r.arg[0] == s.name]
    same = same_axes(plan.kernel, blocks)
    if len(readers) != 1 or count in (1, extent(blocks)) or s.argument is not None:
        return plan
    (sum_,) = readers
    if len(sum_.reduced) != 1 or sum_.reduced[0] not in same or sum_.reduction is not ops.SUM:
        return plan
    if sum_.argument is not None:
        plan = step(plan, f"keep {sum_.name} {sum_.name}.out")
    names = {s.name: blocks.arg.name, sum_.name: sum_.reduced[0].arg.name}
    for name in names.values():
        plan = step(plan, f"split {name} {count}")
    plan = step(plan, f"abreast {sum_.name} {names[sum_.name]}.0 {s.name}")
    inside[s.name] = [f"{names[s.name]}.1"]
    inside[sum_.name] = [f"{names[sum_.name]}.0", f"{names[sum_.name]}.1"]
    return plan


def _nest(
    plan: Plan, s: Stage, dotted: bool, tile: list[str], vector: str, ahead: bool,
    blocks: list[str],
) -> Plan:  # fmt: skip
    reduced = [a.arg.name for a in s.reduced]
    if blocks and not dotted:
        plan = step(plan, " ".join(["nest", s.name, *blocks, *tile, vector]))
        return step(plan, " ".join(["unroll", s.name, *tile]))
    own = blocks or [x.arg.name for x in plan.nests[s.name]
                     if x.arg.name not in (*tile, vector, *reduced)]  # fmt: skip
    if own and s.name in plan.kernel.kept():
        plan = step(plan, " ".join(["layout", s.name, *own, *tile, vector]))
    if not dotted:
        plan = step(plan, " ".join(["nest", s.name, *own, *reduced, *tile, vector]))
        return step(plan, " ".join(["unroll", s.name, *tile]))
    out = reduced[:-1] if size(s.reduced[:-1]) * len(factors(s) or ()) <= _MOST_TERMS else []
    turns = [x for x in reduced[:-1] if x not in out]
    plan = step(plan, " ".join(["nest", s.name, *own, *turns, *tile, *out, reduced[-1], vector]))
    plan = step(plan, " ".join(["unroll", s.name, *tile, *out]))
    if ahead and own:
        line = prod(x.arg.extent for x in (*s.reduced, loop_named(plan, vector)))
        plan = step(plan, f"ahead {s.name} {own[-1]} {max(1, _AHEAD // line)}")
    return step(plan, f"dot {s.name} {reduced[-1]}")


def _is_row(s: Stage, axis: Node, column: Node) -> bool:
    """Whether only what is not along the columns moves along an axis."""
    sides = [toposort((x,)) for pair in factors(s) or () for x in pair]
    return all((axis in side) != (column in side) for side in sides)
