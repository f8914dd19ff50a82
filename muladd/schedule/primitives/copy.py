"""copy STAGE SIDE NAME: a stage reads one side of its product through a copy of the kernel's own.

    copy s0 right c0     s0[i, j] += b0[i*n + k] * b1[k*m + j] over k
                     ->  c0[j, f] = b1[f*m + j];  s0[i, j] += b0[i*n + k] * c0[j, k] over k

With `at` and `layout` this is packing: the copy is made once per outer loop, in the order in which
the inner loops read it. SIDE is left or right. Whatever that side computes (a cast, a sum) is done
once, in the copy; but with the word `narrow` a last cast is left to the stage, whose bytes are
copied as bytes. Axes that the side does not depend on are no axes of the copy.
"""
from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import make, ops, sym, toposort
from muladd.loop.kernel import Stage, reaxis
from muladd.loop.plan import Leaf, Plan
from muladd.schedule.primitives import check_new, default_nest, stage_named


def apply(plan: Plan, stage: str, side: str, name: str, *narrow: str) -> Plan:
    s = stage_named(plan, stage)
    check_new(plan, name, "copy")
    if side not in ("left", "right") or s.value.op is not ops.MUL:
        raise ScheduleError(f"copy: {stage} has no side {side!r} of a product")
    whole = load = s.value.srcs[side == "right"]
    if narrow == ("narrow",) and whole.op is ops.CAST:
        load = whole.srcs[0]
    elif narrow:
        raise ScheduleError(f"copy: given {' '.join(narrow)!r}, expected nothing or 'narrow' for a "
                            f"cast")  # fmt: skip
    if any(n.op is ops.READ for n in toposort((load,))):
        raise ScheduleError(f"copy: the {side} side of {stage} is already the kernel's own")
    inside = toposort((load,))
    own = [a for a in (*s.axes, *s.reduced) if a in inside]
    shared = [a for a in plan.kernel.shared if a in own]
    fresh = {a: sym.axis(f"{name}.{a.arg.name}", a.arg.extent) for a in own if a not in shared}
    axes = (*shared, *fresh.values())
    value = reaxis(load, dict(fresh), {})
    new = Stage(name, axes, value)
    read = make(ops.READ, (*shared, *fresh), (name, len(axes)), load.dtype)
    if load is not whole:
        read = make(ops.CAST, (read,), None, whole.dtype)
    sides = (read, s.value.srcs[1]) if side == "left" else (s.value.srcs[0], read)
    old = replace(s, value=make(ops.MUL, sides))
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
