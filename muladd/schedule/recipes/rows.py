"""Elementwise work, and reductions along or across rows.

Elementwise kernels and reductions across rows run vectors along a shared axis p. All stages are
done for p.2 vectors (written out) of p.3 lanes at a time; if nothing is reduced, a chunk has p.1
such steps:

    grid others p.0
      for p.1
        for k                s0[p.2, p.3] += ...
          p.2 p.3
        p.2 p.3              s1[p.2, p.3] = ...

Reductions along rows give each point (a row) to one thread. Each stage runs vectors along an axis
of its own, a reduced one (with partial results in f.1 vectors of f.2 lanes) or not, and the rows
in between stay in the cache:

    grid rows
      for f.0                s0 += ...
        f.1 f.2
      for g.0                s1[g.0, g.1, g.2] = ...
        g.1 g.2
"""
from __future__ import annotations

from collections.abc import Sequence

from muladd.device.machine import Machine
from muladd.ir import Node
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import (
    STRIDED,
    accesses,
    cost_of_lanes,
    extent,
    product,
    size,
    work,
)
from muladd.schedule.primitives import step
from muladd.schedule.primitives.nontemporal import WHOLE
from muladd.schedule.recipes.columns import columns
from muladd.schedule.recipes.grain import GRAIN, grid, outer
from muladd.schedule.recipes.operands import MANY_ROWS, moves, pack, pack_lanes, tile
from muladd.schedule.recipes.turned import axes_of, turned

_NO_LANES = 16.0  # the cost of a stage (see cost_of_lanes) that has no axis for lanes
_FEW = 8  # an axis of fewer points is left to the threads, where another one suits lanes as well
# vectors side by side that hide the latency of loads, where a point is not work enough itself
_SIDE_BY_SIDE = 2
_LEAST_ROW = 1024  # bytes of a row from which on the next one is asked for
_MUCH = 64  # iterations for a point from which one vector is work enough


def rows(plan: Plan, machine: Machine) -> Plan:
    kernel = plan.kernel
    across = axes_of(kernel, machine)
    if across is not None:
        plan = turned(plan, machine, *across)
    elif (shared := _lanes_axis(kernel)) is not None:
        plan = columns(plan, machine, shared) or _across(plan, machine, shared)
    else:
        plan, copies = _turned(plan)
        plan = grid(plan, list(kernel.shared))
        for s in plan.kernel.stages:
            if s.name[0] == "c":
                plan = step(plan, f"at {s.name} {len(plan.outer)}")
                plan = pack_lanes(plan, machine, s, copies[s.name])
            else:
                plan = along(plan, machine, s, copies.get(s.name))
        plan = _next_row(plan, machine)
    return stream(plan, machine)


def _turned(plan: Plan) -> tuple[Plan, dict[str, Node]]:
    """Copies for products of which neither side lies along results, with the columns that lie side
    by side in them: sums of a vector's lanes, one for each result, take longer."""
    kernel, copies = plan.kernel, {}
    for k, s in enumerate(kernel.stages):
        p = product(kernel, s)
        if p is None or not {*p.rows, *p.columns} <= {*kernel.free_axes(s)}:
            continue
        sides = [*((a, p.left) for a in p.rows), *((a, p.right) for a in p.columns)]
        if min(size(p.rows), size(p.columns)) < MANY_ROWS or any(
                moves(kernel, operand, a) == 1 for a, operand in sides):
            continue
        (operand,) = (side for a, side in sides if a is s.axes[-1])  # results lie along it
        plan, done = pack(plan, s, operand, f"c{k}")
        copies.update(dict.fromkeys((s.name, f"c{k}"), s.axes[-1]) if done else {})
    return plan, copies


def _next_row(plan: Plan, machine: Machine) -> Plan:
    """The first stage that reads again what one before has read, which is in the cache by now, asks
    memory for the next row meanwhile."""
    kernel, seen = plan.kernel, set()
    for s in kernel.stages:
        for x in accesses(kernel, s):
            along_row = any(x.stride(a) == 1 for a in (*s.axes, *s.reduced))
            if x.store or not along_row or not plan.parallel or not isinstance(x.place, int):
                continue
            row = work(s) // max(size(kernel.shared), 1) * x.itemsize
            rows = any(abs(x.stride(a)) * x.itemsize >= row for a in kernel.shared)
            if x.place in seen and rows and _LEAST_ROW <= row <= machine.l2 // 4:
                if work(s) * x.itemsize <= machine.l2 or kernel.exact and s.lanes > 1:
                    return plan
                return step(plan, f"ahead {s.name} {plan.outer[-1].arg.name} 1")
            seen.add(x.place)
    return plan


def _lanes_axis(kernel: Kernel) -> Node | None:
    """The shared axis that suits all stages as lanes better than axes of their own, if any."""
    if kernel.exact and any(s.lanes > 1 for s in kernel.stages):
        return None
    best: tuple[float, Node] | None = None
    for a in kernel.shared:
        known: set = set()  # what a stage before has loaded
        cost = sum(work(s) * cost_of_lanes(kernel, s, a, known) for s in kernel.stages)
        if best is None or cost <= best[0]:
            best = (cost, a)
    if best is None:
        return None
    own = 0.0
    for s in kernel.stages:
        axes = [*kernel.free_axes(s), *s.reduced]
        own += work(s) * min((cost_of_lanes(kernel, s, a) for a in axes), default=_NO_LANES)
    few = extent(best[1]) < _FEW
    return None if own < best[0] or (few and own <= best[0]) else best[1]


def _across(plan: Plan, machine: Machine, axis: Node) -> Plan:
    """Vectors along a shared axis, in all stages."""
    kernel = plan.kernel
    lanes = _width(machine, extent(axis))
    reduces = any(s.reduced for s in kernel.stages)
    per_point = sum(work(s) for s in kernel.stages) // max(size(kernel.shared), 1)
    # partial results that do not wait for each other, and are whole lines of the cache
    most = machine.chains if reduces else _SIDE_BY_SIDE if per_point < _MUCH else 1
    together = kernel.side_by_side()  # all stages for a step, then for the next
    turns = 1 if together else min(most, max(1, extent(axis) // lanes))
    others = [a for a in kernel.shared if a is not axis]
    if reduces and not together:
        cores = 1 if others else machine.cores
        turns = _alike(max(1, -(-extent(axis) // lanes)), most, cores)
    name = axis.arg.name
    inner = turns * lanes
    steps = extent(axis) // inner
    block = max(1, GRAIN // max(per_point * inner, 1))
    if not reduces and steps >= 2 and not (together and extent(axis) % inner):
        block = min(block, steps)
        while together and steps % block:  # a condition in each stage would part them
            block -= 1
        plan = step(plan, f"split {name} {block} {turns} {lanes}")
        within = [f"{name}.1"] if together else []
        plan = outer(plan, others, name, per_point * block * inner, within)
        vector, unroll = f"{name}.3", f"{name}.2"
    else:
        plan = step(plan, f"split {name} {turns} {lanes}")
        plan = outer(plan, others, name, per_point * inner)
        vector, unroll = f"{name}.2", f"{name}.1"
    for s in plan.kernel.stages:
        nest = [x.arg.name for x in plan.nests[s.name]]
        pairs = _pairs(plan.kernel, s)
        order = [x for x in nest if x not in (vector, unroll, *pairs)] + [*pairs, unroll, vector]
        plan = step(plan, f"nest {s.name} {' '.join(order)}")
        if pairs:
            plan = step(plan, f"unroll {s.name} {' '.join(pairs)}")
        if kernel.free_axes(s) and s.name in plan.kernel.kept():
            reduced = {x.loop.arg.name for a in s.reduced for x in plan.leaves[a]}
            first = [x for x in nest if x not in (vector, unroll) and x not in reduced]
            plan = step(plan, f"layout {s.name} {' '.join([*first, unroll, vector])}")
    plan = step(plan, f"unroll {unroll}")
    return step(plan, f"vector {vector}")


def _alike(vectors: int, most: int, cores: int) -> int:
    """How many vectors a step has: as few steps as can be, these alike, and as many for each thread
    (24 vectors are four steps of 6 and not three of 8)."""
    most = -(-vectors // -(-vectors // most))
    if vectors == most:
        return most
    busiest = lambda n: -(-vectors // n // cores) * n  # noqa: E731
    return min(range(most, most // 2, -1), key=busiest)


def _pairs(kernel: Kernel, stage: Stage) -> list[str]:
    """A stage's own axes of two that it also reads in reverse: both turns need the same pair."""
    turned = {a for a in kernel.free_axes(stage) if extent(a) == 2
              for x in accesses(kernel, stage) if x.stride(a) < 0}  # fmt: skip
    return [a.arg.name for a in stage.axes if a in turned]


def _width(machine: Machine, n: int) -> int:
    """Lanes for an axis: a whole vector, or the power of two that a short axis fits."""
    lanes = machine.float_lanes
    while lanes > 1 and lanes >= 2 * n:
        lanes //= 2
    return lanes


def along(plan: Plan, machine: Machine, stage: Stage, axis: Node | None = None) -> Plan:
    """Vectors along an axis of a stage's own: the one that suits it best, if none is given."""
    kernel = plan.kernel
    if stage.scatter:
        return plan
    if kernel.exact and stage.lanes > 1:
        return _exact_lanes(plan, machine, stage)
    if axis is None:
        axis = _lanes_of_own(kernel, stage)
    if axis is None:
        return plan
    row = _row(kernel, stage, axis)
    if row is not None and len(plan.leaves[row]) == len(plan.leaves[axis]) == 1:
        t = tile(machine, stage, extent(row), extent(axis))
        plan = step(plan, f"split {row.arg.name} {t.rows}")
        return _lanes(plan, stage, axis, t.vectors, t.lanes, [f"{row.arg.name}.1"])
    lanes = _width(machine, extent(axis))
    most = machine.chains // 2 if axis in stage.reduced else _SIDE_BY_SIDE
    turns = max(1, min(most, extent(axis) // lanes))
    return _lanes(plan, stage, axis, turns, lanes)


def _lanes_of_own(kernel: Kernel, stage: Stage) -> Node | None:
    candidates = [a for a in (*kernel.free_axes(stage), *stage.reduced)
                  if extent(a) > 1 and not (kernel.exact and a in stage.reduced)]  # fmt: skip
    cost, _, axis = min(((cost_of_lanes(kernel, stage, a), -extent(a), a) for a in candidates),
                        key=lambda x: x[:2], default=(0.0, 0, None))  # fmt: skip
    return None if cost >= STRIDED * max(len(accesses(kernel, stage)), 1) else axis


def _row(kernel: Kernel, stage: Stage, column: Node) -> Node | None:
    """Of a product with vectors along a column, the longest axis of the stage's own that only the
    other operand moves along: vectors that were loaded serve several of it."""
    p = product(kernel, stage)
    if p is None or column in stage.reduced:
        return None
    others = p.rows if column in p.columns else p.columns if column in p.rows else ()
    own = [a for a in others if a not in kernel.shared and extent(a) > 1]
    return max(own, key=extent, default=None)


def _exact_lanes(plan: Plan, machine: Machine, stage: Stage) -> Plan:
    """The 64 partial results that the exact profile prescribes, along the innermost axis."""
    lanes = machine.float_lanes
    return _lanes(plan, stage, stage.reduced[-1], stage.lanes // lanes, lanes)


def _lanes(
    plan: Plan, stage: Stage, axis: Node, turns: int, lanes: int, rows: Sequence[str] = ()
) -> Plan:
    """An axis as `turns` vectors side by side; rows are loops that are written out beside them."""
    name = axis.arg.name
    if len(plan.leaves[axis]) == 1:  # else a stage beside this one has the same axis
        plan = step(plan, f"split {name} {turns} {lanes}")
    nest = [x.arg.name for x in plan.nests[stage.name]]
    beside, vector = [*rows, f"{name}.1"], f"{name}.2"
    rest = [x for x in nest if x not in (*beside, vector)]
    reduced = {x.loop.arg.name for a in stage.reduced for x in plan.leaves[a]}
    rest.sort(key=lambda x: x in reduced)
    plan = step(plan, f"nest {stage.name} {' '.join([*rest, *beside, vector])}")
    plan = step(plan, f"unroll {stage.name} {' '.join(beside)}")
    return step(plan, f"vector {vector}")


def stream(plan: Plan, machine: Machine) -> Plan:
    """Large results go past the caches; where this kernel needs them again it has a copy."""
    kernel = plan.kernel
    for s in kernel.stages:
        if s.argument is None or s.scatter:
            continue
        large = size(s.axes) * s.dtype.itemsize >= machine.stream
        claimed = any(s.name in names for names in (plan.claims or {}).values())
        count = kernel.arguments[s.argument].size
        whole = isinstance(count, int) and count % WHOLE == 0
        if large and whole and not claimed and s.dtype.bits >= 32:
            plan = step(plan, f"nontemporal {s.name}")
    return plan
