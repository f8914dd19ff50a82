"""Sums at places that are looked up: rows added to rows of a matrix, by their numbers.

A row goes to its place by whole vectors, and each thread has columns of its own, so that terms of a
result are added in their order however many threads there are:

    grid others p.0                  pieces of the rows, for the threads
      for r                          rows
        for p.1                      s0[index[r]] += ..., by the vectors p.2 of lanes p.3
"""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.loop.plan import Plan
from muladd.schedule.analysis import accesses, extent, size, work
from muladd.schedule.primitives import step

_SIDE_BY_SIDE = 4  # vectors at most
_SMALL = 1 << 14  # additions that one thread is done with before another has begun


def scattered(plan: Plan, machine: Machine) -> Plan:
    """The nest above for a kernel of one such stage; the plan as it is for others, and where no
    results lie side by side."""
    kernel = plan.kernel
    (s,) = kernel.stages
    place = next(x for x in accesses(kernel, s) if x.store)
    p = next((a for a in s.axes if place.stride(a) == 1 and extent(a) > 1), None)
    if p is None or kernel.free_axes(s):
        return plan
    others = [a for a in kernel.shared if a is not p]
    lanes = machine.float_lanes
    while lanes >= 2 * extent(p):
        lanes //= 2
    vectors = -(-extent(p) // lanes)
    threads = 1 if work(s) <= _SMALL else -(-machine.cores // size(others))
    piece = -(-vectors // min(threads, vectors))
    beside = next(n for n in range(min(piece, _SIDE_BY_SIDE), 0, -1) if piece % n == 0)
    name, nest = p.arg.name, [r.arg.name for r in s.reduced]
    plan = step(plan, f"split {name} {piece // beside} {beside} {lanes}")
    plan = step(plan, " ".join(["outer", *(a.arg.name for a in others), f"{name}.0"]))
    plan = step(plan, f"parallel {len(others) + 1}")
    plan = step(plan, f"nest {s.name} {' '.join([*nest, f'{name}.1', f'{name}.2', f'{name}.3'])}")
    plan = step(plan, f"unroll {s.name} {name}.2")
    return step(plan, f"vector {name}.3")


__all__ = ["scattered"]
