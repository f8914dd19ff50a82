"""Results that lie along another axis than what they are made of, as in a transposed matrix.

    out[i, j] = a[j * m + i]

    grid others i.0 j.0
      for i.1 j.1               reads as many rows of the source as a vector has lanes, abreast
        i.2 j.2                 loads a vector of each,
          i.3                   turned in registers, and stored (see `codegen/transpose`)

Whole lines of the cache are read, one after another of each row, and whole ones are written.
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.ir import Node
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.schedule.analysis import accesses, extent, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.grain import GRAIN, outer

_WIDE = 2  # vectors side by side: lines come from memory in pairs
_BESIDE = 4  # blocks side by side, so that pieces of lines are whole ones soon
_STEPS = 64  # of a row in a chunk, at most


def axes_of(kernel: Kernel, machine: Machine) -> tuple[Node, Node] | None:
    """The axis that everything is stored along, and another that everything is loaded along."""
    for s in kernel.stages:
        if s.reduced or s.scatter or s.lanes > 1 or s.dtype.bits != 32:
            return None
        if s.argument is None or s.reads() or set(s.axes) != set(kernel.shared):
            return None
    found = [x for s in kernel.stages for x in accesses(kernel, s)]
    if any(x.guarded for x in found):
        return None
    large = [a for a in kernel.shared if isinstance(a.arg.extent, int)
             and extent(a) >= machine.float_lanes]  # fmt: skip
    for j in large:
        for i in large:
            if i is not j and all(
                x.stride(j) == 1 if x.store else x.stride(i) in (0, 1)
                for x in found
            ) and any(not x.store and x.stride(i) == 1 and x.stride(j) not in (0, 1)
                      for x in found):  # fmt: skip
                return j, i
    return None


def turned(plan: Plan, machine: Machine, along: Node, across: Node) -> Plan:
    """The nest above for results along one axis, made of what lies along another."""
    J, I, lanes = along.arg.name, across.arg.name, machine.float_lanes
    others = [a for a in plan.kernel.shared if a not in (along, across)]
    rows, steps = -(-extent(along) // lanes), -(-extent(across) // (_WIDE * lanes))
    beside = min(_BESIDE, rows)
    least = max(steps * rows * size(others) // machine.chunks, GRAIN // (_WIDE * lanes * lanes))
    each = min(-(-least // beside), _STEPS)
    plan = step(plan, f"split {J} {beside} {lanes}")
    if each < steps:
        plan = step(plan, f"split {I} {each} {_WIDE} {lanes}")
        names = [*(a.arg.name for a in others), f"{I}.0", f"{J}.0"]
        plan = step(plan, f"outer {' '.join(names)}")
        plan, turn = step(plan, f"parallel {len(names)}"), 1
    else:
        plan, turn = step(plan, f"split {I} {_WIDE} {lanes}"), 0
        plan = outer(plan, others, J, extent(across) * lanes * beside)
    each_step, wide, lane = (f"{I}.{turn + n}" for n in range(3))
    for s in plan.kernel.stages:
        plan = step(plan, f"nest {s.name} {each_step} {J}.1 {wide} {J}.2 {lane}")
        plan = step(plan, f"unroll {s.name} {wide} {J}.2")
    return step(plan, f"vector {lane}")
