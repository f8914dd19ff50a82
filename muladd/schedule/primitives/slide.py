"""slide COPY AXIS OWN [whole]: places in a copy that hold the same are one place.

    slide c0 p1 c0.r0     c0[p1, r0] = b0[p1 + r0];  s0[p1] += c0[p1, r0] * b1[r0] over r0
                      ->  c0[p1'] = b0[p1'];  s0[p1] += c0[p1 + r0] * b1[r0] over r0

The windows of a convolution overlap: what one tap reads for a result, the next reads for its
neighbour. The copy then holds each number once, as c0.p1, and the windows slide over it. It has the
axis of its reader no longer, and may be made outside its loops (`at`): it is as long as the reader
needs inside of the loops around the copy. Where windows are n places apart, every n-th place lies
together: c0[p1 + r0 / n, r0 % n], so that neighbouring windows read neighbours.
"""

from __future__ import annotations

from dataclasses import replace

from muladd.errors import ScheduleError
from muladd.ir import Dim, Node, make, ops, rebuild, sym, toposort
from muladd.loop.kernel import Stage, reaxis
from muladd.loop.plan import Leaf, Plan
from muladd.schedule.analysis import stride
from muladd.schedule.primitives import default_nest, stage_named


def apply(plan: Plan, copy: str, axis: str, own: str, *whole: str) -> Plan:
    c = stage_named(plan, copy)
    named = {a.arg.name: a for a in c.axes}
    if axis not in named or own not in named or own == axis:
        raise ScheduleError(f"slide: {axis} and {own} are not two axes of {copy}")
    across, along = named[axis], named[own]
    if not {across, along} & {*plan.kernel.shared}:
        raise ScheduleError(f"slide: {axis} and {own} are both {copy}'s own")
    apart, taps = _apart(c, across, along), along.arg.extent
    if not 0 < apart < sym.bounds(taps)[1]:
        raise ScheduleError(f"slide: windows of {copy} along {axis} do not overlap along {own}")
    if whole not in ((), ("whole",)):
        raise ScheduleError(f"slide: given {' '.join(whole)!r}, expected nothing or 'whole'")
    step = apart if whole else 1
    turns = sym.div(sym.add(taps, apart - 1), apart) if not whole else taps
    steps = sym.mul(sym.sub(across.arg.extent, 1), step)
    name = next(a.arg.name for a in (across, along) if a in plan.kernel.shared)
    places = sym.axis(f"{copy}.{name}", sym.add(steps, turns))
    fresh = [places]
    place: Dim = places
    if apart > step:
        phase = sym.axis(f"{places.arg.name}.phase", apart)
        fresh.insert(0, phase)
        place = sym.add(sym.mul(places, apart), phase)
    value = reaxis(c.value, {along: sym.sub(place, sym.mul(across, apart))}, {})
    left = toposort((value,))
    if across in left or along in left:
        raise ScheduleError(f"slide: {copy} does not hold the same along {axis} and {own}")
    if apart > step:  # the last places of some phases are in no window
        end = sym.add(sym.mul(sym.sub(across.arg.extent, 1), apart), taps)
        value = _guarded(value, places, sym.less(place, end))
    new = replace(c, axes=(*(a for a in c.axes if a not in (across, along)), *fresh), value=value)
    stages = tuple(new if s is c else replace(s, value=_slid(s, c, across, along, apart, step))
                   for s in plan.kernel.stages)  # fmt: skip
    gone = [a for a in (across, along) if a not in plan.kernel.shared]
    leaves = {a: x for a, x in plan.leaves.items() if a not in gone}
    leaves |= {a: (Leaf(a, 1),) for a in fresh}
    plan = replace(plan, kernel=replace(plan.kernel, stages=stages, _memo={}), leaves=leaves)
    return replace(plan, nests={**plan.nests, copy: default_nest(plan, new)})


def _apart(c: Stage, across: Node, along: Node) -> int:
    """How many places a window moves from one result to the next; 0 if that is no one number."""
    found = set()
    for n in c.loads():
        far, near = (stride(sym.as_dim(n.srcs[0]), a) for a in (across, along))
        if far or near:
            found.add(far // near if near and far % near == 0 else 0)
    return found.pop() if len(found) == 1 else 0


def _guarded(value: Node, places: Node, inside: sym.Condition) -> Node:
    """The value with one more condition for the loads that have none which ends these places."""
    if inside is True:
        return value
    guard = sym.as_condition(inside)
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple(done[x] for x in n.srcs)
        if n.op is ops.LOAD and not any(
            c.op is ops.LT and places in toposort(c.srcs[:1]) for c in toposort(srcs[1:])
        ):
            both = (srcs[0], make(ops.MUL, (guard, srcs[1])) if len(srcs) > 1 else guard)
            done[n] = make(ops.LOAD, both, n.arg, n.dtype)
        else:
            done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return done[value]


def _slid(s: Stage, c: Stage, across: Node, along: Node, apart: int, step: int) -> Node:
    """A reader's value that reads the copy at the place which window and tap have together."""
    done: dict[Node, Node] = {}
    for n in toposort((s.value,)):
        srcs = tuple(done[x] for x in n.srcs)
        if n.op is ops.READ and n.arg[0] == c.name:
            at = dict(zip(c.axes, map(sym.as_dim, srcs)))
            window, tap = at.pop(across), at.pop(along)
            phase = apart // step
            indices = [*at.values(), *([sym.mod(tap, phase)] if phase > 1 else []),
                       sym.add(sym.mul(window, step), sym.div(tap, phase))]  # fmt: skip
            done[n] = make(ops.READ, tuple(map(sym.as_node, indices)),
                           (c.name, len(indices)), n.dtype)  # fmt: skip
        else:
            done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return done[s.value]
