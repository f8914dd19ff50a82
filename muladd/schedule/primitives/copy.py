"""copy STAGE ARGUMENT NAME: a stage reads an argument through a copy of the kernel's own.

    copy s0 b1 c0     s0[i, j] += b0[i*n + k] * b1[k*m + j] over k
                  ->  c0[j, f] = b1[f*m + j];  s0[i, j] += b0[i*n + k] * c0[j, k] over k

With `at` and `layout` this is packing: the copy is made once per outer loop, in the order in which
the inner loops read it. Axes that the access does not depend on are no axes of the copy.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import Node, make, ops, sym, toposort
from muladd.loop.kernel import Stage, reaxis
from muladd.loop.plan import Leaf, Plan
from muladd.schedule.primitives import default_nest, stage_named


def apply(plan: Plan, stage: str, argument: str, name: str) -> Plan:
    s = stage_named(plan, stage)
    number = int(argument.removeprefix("b"))
    loads = [n for n in s.loads() if n.arg == number]
    if len(loads) != 1:
        raise ScheduleError(f"copy: {stage} reads {argument} in {len(loads)} places, not one")
    load = loads[0]
    inside = toposort((load,))
    own = [a for a in (*s.axes, *s.reduced) if a in inside]
    shared = [a for a in plan.kernel.shared if a in own]
    fresh = {a: sym.axis(f"{name}.{a.arg.name}", a.arg.extent) for a in own if a not in shared}
    axes = (*shared, *fresh.values())
    value = reaxis(load, dict(fresh), {})
    new = Stage(name, axes, value)
    read = make(ops.READ, (*shared, *fresh), (name, len(axes)), load.dtype)
    old = replace(s, value=_exchange(s.value, load, read))
    stages = []
    for t in plan.kernel.stages:
        stages.extend([new, old] if t is s else [t])
    kernel = replace(plan.kernel, stages=tuple(stages), _memo={})
    leaves = dict(plan.leaves)
    for a in fresh.values():
        leaves[a] = (Leaf(a, 1),)
    plan = replace(plan, kernel=kernel, leaves=leaves,
                   levels={**plan.levels, name: plan.levels[stage]})  # fmt: skip
    return replace(plan, nests={**plan.nests, name: default_nest(plan, new)})


def _exchange(value: Node, old: Node, new: Node) -> Node:
    done = {old: new}
    for n in toposort((value,), into=lambda m: m not in done):
        if n in done:
            continue
        srcs = tuple(done[x] for x in n.srcs)
        needs = n.op in (ops.CAST, ops.BITCAST, ops.LOAD, ops.READ)
        same = all(a is b for a, b in zip(srcs, n.srcs))
        done[n] = n if same else make(n.op, srcs, n.arg, n.dtype if needs else None)
    return done[value]
