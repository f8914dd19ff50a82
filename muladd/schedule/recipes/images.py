"""Products whose rows or columns are the positions of an image: convolutions.

    for p in positions of one image, a panel at a time:
        copy  windows[tap, channel, p]          where a tap leaves the image, lanes are masked
        for a tile of channels:
            results[channel', p] += weights[channel', channel, tap] * windows[tap, channel, p]

y and x become one axis p, so that vectors are whole whatever the width of the image. With a stride
of one, neighbours in p are neighbours in memory at every tap: the copy loads vectors.
"""
from __future__ import annotations

from itertools import pairwise

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import Node, ops, toposort
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, product, size
from muladd.schedule.primitives import step
from muladd.schedule.recipes.operands import moves

_NARROW = 2  # vectors: rows of fewer leave much of a tile empty
_AGAIN = 96  # how often a copied element is used, from which on copying lane by lane pays


def merged(plan: Plan, machine: Machine, p: Product) -> tuple[Plan, Product]:
    """The plan with neighbouring axes of one side as one, where copies stay cheap."""
    for a, b in pairwise(plan.kernel.shared):
        for left, axes, others in ((True, p.rows, p.columns), (False, p.columns, p.rows)):
            if a not in axes or b not in axes:
                continue
            try:
                new = step(plan, f"merge {a.arg.name} {b.arg.name}")
            except ScheduleError:
                continue
            found = product(new.kernel, new.kernel.stage(p.stage.name))
            if found is None:
                continue
            whole = next(x for x in new.kernel.shared if x.arg.name == a.arg.name)
            few = _NARROW * machine.lanes(p.stage.accumulator.itemsize)
            apart = moves(new.kernel, found.left if left else found.right, whole) != 1
            if not apart or extent(b) < few <= extent(whole) and size(others) >= _AGAIN:
                return merged(new, machine, found)
    return plan, p


def is_masked(operand: Node) -> bool:
    """Whether an operand is loaded under a condition, which each of its uses would compute."""
    return any(n.op is ops.LOAD and len(n.srcs) > 1 for n in toposort((operand,)))


def taps_first(plan: Plan, copy: str) -> str:
    """A copy's own loops with those outermost that its masks depend on: so the masks stay."""
    stage = plan.kernel.stage(copy)
    masks = [n.srcs[1] for n in stage.loads() if len(n.srcs) > 1]
    inside = set(toposort(tuple(masks)))
    axes = sorted(plan.kernel.free_axes(stage), key=lambda a: a not in inside)
    return " ".join(x.loop.arg.name for a in axes for x in plan.leaves[a])


__all__ = ["is_masked", "merged", "taps_first"]
