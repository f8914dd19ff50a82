"""What a plan from elsewhere must obey: one that a search made up, or that came in a file.

Primitives refuse what they can see; this sees the finished plan. Together with the checks of the
loops it becomes (loop/validate.py, loop/bounds.py) it leaves a plan nothing but speed to change.
"""

from __future__ import annotations

from math import prod
from typing import NoReturn

from muladd.errors import ScheduleError
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan

MOST_TURNS = 1024  # turns of a stage that are written out: more are code that nobody waits for
MOST_LANES = 64


def check(plan: Plan, kernel: Kernel, groups: bool = False) -> None:
    """Raises ScheduleError where a plan of this kernel could compute something else, or endlessly.

    groups: whether the device runs threads in groups (see `bind`).
    """
    stages = plan.kernel.stages
    if len({s.name for s in stages}) < len(stages):
        _refuse("two stages have one name")
    loops = [x.loop for leaves in plan.leaves.values() for x in leaves]
    if len(set(loops)) < len(loops):
        _refuse("two loops are one")
    if plan.group and not groups:
        _refuse("threads are bound, and the device has no groups of them")
    for s in stages:
        _order(plan, s)
        _written_out(plan, s)
        if kernel.exact and s.reduction is not None:
            _same_bits(plan, s, kernel)
        looks = [(plan.ahead or {})[s.name][0]] if s.name in (plan.ahead or {}) else []
        for loop in (*looks, *(x for _, x in (plan.meanwhile or {}).get(s.name, ()))):
            if loop not in (*plan.enclosing(s), *plan.nests[s.name]):
                _refuse(f"{s.name} looks ahead in {loop.arg.name}, a loop that it is not in")
    for copy in plan.inside or {}:
        _inside(plan, copy)


def _refuse(why: str) -> NoReturn:
    raise ScheduleError(f"schedule: {why}")


def _order(plan: Plan, s: Stage) -> None:
    """What a stage reads is computed before it, for the same points, by the same thread."""
    if plan.levels[s.name] < plan.parallel:
        _refuse(f"{s.name} is computed for points that other threads have")
    for read in s.reads():
        if plan.levels[read.arg[0]] > plan.levels[s.name]:
            _refuse(f"{s.name} is computed before {read.arg[0]}, which it reads")


def _written_out(plan: Plan, s: Stage) -> None:
    loops = plan.nests[s.name]
    if any(plan.spreads(s, x) and plan.unrolls(s, x) for x in loops):
        _refuse(f"{s.name} has a loop both in lanes and written out")
    lanes = [x.arg.extent for x in loops if plan.spreads(s, x)]
    if any(n > MOST_LANES for n in lanes):
        _refuse(f"{s.name} has vectors of {lanes} lanes, at most {MOST_LANES} make sense")
    turns = prod(x.arg.extent for x in loops if plan.unrolls(s, x))
    if turns > MOST_TURNS:
        _refuse(f"{s.name} writes {turns} turns out, at most {MOST_TURNS} make sense")


def _inside(plan: Plan, copy: str) -> None:
    """A copy in a loop of its reader: made in each turn of a reduced loop that has turns."""
    outside, _ = (plan.inside or {})[copy]
    readers = [s for s in plan.kernel.stages if any(r.arg[0] == copy for r in s.reads())]
    if len(readers) != 1:
        _refuse(f"{copy} is made inside of one stage and read by {len(readers)}")
    (s,) = readers
    axis = plan.owner(outside)
    beside = plan.spreads(s, outside) or plan.unrolls(s, outside) or outside in plan.bound(s)
    if axis not in s.reduced or outside not in plan.nests[s.name] or beside:
        _refuse(f"{copy} is made in turns of {outside.arg.name}, which {s.name} has not")
    if outside is not plan.leaves[axis][0].loop:
        _refuse(f"{copy} is made in turns of {outside.arg.name}, a loop inside of its axis")


def _same_bits(plan: Plan, s: Stage, kernel: Kernel) -> None:
    """The exact profile's order of a reduction: row-major, partial results in lanes as it says."""
    leaves = [x.loop for a in s.reduced for x in plan.leaves[a]]
    nest = [x for x in plan.nests[s.name] if plan.owner(x) in s.reduced]
    beside = [x for x in leaves if plan.spreads(s, x) or plan.unrolls(s, x) or x in plan.bound(s)]
    if nest != leaves:
        _refuse(f"{s.name} reduces in another order than the exact profile's")
    own = next(t for t in kernel.stages if t.name == s.name)
    if s.lanes > 1 and [a.arg.extent for a in s.reduced] != [a.arg.extent for a in own.reduced]:
        _refuse(f"{s.name} has lanes along an axis that is not its own")
    if not beside:
        return  # lowering makes the lanes (plan.in_lanes)
    last = [x.loop for x in plan.leaves[s.reduced[-1]]][-len(beside) :]
    if prod(x.arg.extent for x in beside) != s.lanes or beside != last:
        _refuse(f"{s.name} has other partial results than the exact profile's {s.lanes}")
