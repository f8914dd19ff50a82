"""What is asked of memory before it is wanted: the directives `ahead`, `prefetch` and `claim`.

With `ahead` a stage asks for what it loads itself some turns of a loop later. With `prefetch` a sum
asks for what its copy will read, or itself in the next tile. It has many terms, and these are fewer
lines of the cache: each term asks for a line, and several terms in a row for the same one, so that
the requests are spread over the whole sum. With `claim` the lines that results go to are asked for
before the sum.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from muladd.ir import Dim, Node, ops, sym, toposort
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan
from muladd.loop.statements import Prefetch
from muladd.loop.vector import base_of

_LINE = 64  # bytes that one request brings, at least
Values = dict[Node, Dim]
ValueOf = Callable[[Stage, Values], Node]  # of a stage, at turns of its loops


def ahead(
    plan: Plan, s: Stage, values: Values, value: Callable[[Values], Node], vectors: bool = False
) -> list[Prefetch]:
    """What a stage asks for before a turn of its own; value: what it computes there.

    vectors: only where lanes are loaded, not one number for all of them.
    """
    found = (plan.ahead or {}).get(s.name)
    if found is None:
        return []
    loop, turns = found
    out: list[Prefetch] = []
    now, first, second = (
        [n for n in toposort((value({**values, **at}),)) if n.op is ops.LOAD]
        for at in ({}, {loop: 0}, {loop: 1})
    )  # fmt: skip
    for n, a, b in zip(now, first, second):
        if not isinstance(n.arg, int | str) or not n.arg == a.arg == b.arg:
            continue  # an accumulator, or loads that become one where turns are fixed
        if _place(a).shape or _place(b).shape or (vectors and not n.srcs[0].shape):
            continue  # lanes that lie anywhere, or no lanes
        apart = sym.sub(sym.as_dim(_place(b)), sym.as_dim(_place(a)))
        if isinstance(apart, int):
            later = sym.add(sym.as_dim(_place(n)), apart * turns)
            out.append(Prefetch(n.arg, sym.as_node(later)))
    return out


def _place(load: Node) -> Node:
    """What a load's first lane reads."""
    return base_of(load.srcs[0]) if load.srcs[0].shape else load.srcs[0]


def meanwhile(plan: Plan, s: Stage, values: Values, value_of: ValueOf) -> list[Prefetch]:
    """What a term of a sum asks for; nothing where sizes or distances are not numbers."""
    out: list[Prefetch] = []
    for name, loop in (plan.meanwhile or {}).get(s.name, ()):
        if name == s.name:
            out += _for_itself(plan, s, loop, values, value_of)
        else:
            out += _for_copy(plan, s, plan.kernel.stage(name), loop, values, value_of)
    return out


def _for_copy(
    plan: Plan, s: Stage, copy: Stage, loop: Node, values: Values, value_of: ValueOf
) -> list[Prefetch]:
    outside, own = (plan.inside or {}).get(copy.name, (loop, loop))
    turning = own if outside is loop else loop
    nest = plan.nests[copy.name]
    shared = plan.outer[plan.levels[copy.name] : plan.levels[s.name]]
    within = [x for x in (*shared, *_serial(plan, s)) if x not in nest and x is not outside]
    free = [x for x in nest if x not in _serial(plan, s)]
    at = {**values, turning: sym.add(values.get(loop, loop), 1)}
    return _asked(within, free, values, lambda more: _load(value_of(copy, {**at, **more})))


def _for_itself(
    plan: Plan, s: Stage, loop: Node, values: Values, value_of: ValueOf
) -> list[Prefetch]:
    outer = plan.outer[: plan.levels[s.name]]
    under = list(outer[outer.index(loop) + 1 :]) if loop in outer else []
    at = {**values, loop: sym.add(values.get(loop, loop), 1)}
    return _asked([*under, *_serial(plan, s)], [*under, *plan.nests[s.name]], values,
                  lambda more: _load(value_of(s, {**at, **more}), loop))  # fmt: skip


def _serial(plan: Plan, s: Stage) -> list[Node]:
    """The loops of a stage's own that are neither written out nor lanes."""
    return [x for x in plan.nests[s.name] if not (plan.unrolls(s, x) or plan.spreads(s, x))]


def _asked(
    within: list[Node], free: list[Node], values: Values, load_at: Callable[[Values], Node | None]
) -> list[Prefetch]:
    """A request for what is loaded in all turns of the free loops, if that lies side by side, by
    the turns of the loops within: as many of them as there is something to ask for."""
    if not all(isinstance(x.arg.extent, int) for x in (*within, *free)):
        return []
    nowhere: Values = dict.fromkeys(free, 0)
    first = load_at(nowhere)
    if first is None:
        return []
    steps: list[tuple[int, int]] = []  # distance in elements, and turns
    for x in free:
        second = load_at({**nowhere, x: 1})
        apart = sym.sub(sym.as_dim(second.srcs[0]), sym.as_dim(first.srcs[0])) if second else None
        if not isinstance(apart, int):
            return []
        if apart:
            steps.append((abs(apart), x.arg.extent))
    together = _together(sorted(steps))
    number: Dim = 0
    terms = 1
    for x in within:
        terms *= x.arg.extent
        number = sym.add(sym.mul(number, x.arg.extent), values.get(x, x))
    each = -(-together // terms)  # elements for each term: one line serves several terms
    several = 1  # terms for each element, where there are so many
    while 2 * several * together <= terms and together:
        several *= 2
    place = sym.add(sym.as_dim(first.srcs[0]), sym.div(sym.mul(number, each), several))
    assert isinstance(first.arg, int)
    return [Prefetch(first.arg, sym.as_node(place), near=False)] if together else []


def claims(
    plan: Plan, s: Stage, places: dict[Node, Dim], turns: Sequence[Values]
) -> list[Prefetch]:
    """What is asked for before a tile of sums, to be written after it: a line once.

    places: the axes in terms of loops. turns: of the loops that are written out.
    """
    out: list[Prefetch] = []
    for writer in (plan.claims or {}).get(s.name, ()):
        w = plan.kernel.stage(writer)
        before: Dim | None = None
        for turn in turns:
            index = sym.replace(w.position, {a: sym.replace(places[a], turn) for a in w.axes})
            apart = sym.sub(index, before) if before is not None else None
            if not isinstance(apart, int) or abs(apart) * w.dtype.itemsize >= _LINE:
                assert isinstance(w.argument, int)
                out.append(Prefetch(w.argument, sym.as_node(index), write=True))
                before = index
    return out


def _load(value: Node, moved: Node | None = None) -> Node | None:
    """The load from an array of the kernel's arguments that a value consists of, or the one that a
    loop moves."""
    loads = [n for n in toposort((value,)) if n.op is ops.LOAD]
    if moved is not None:
        loads = [n for n in loads if isinstance(n.arg, int) and moved in toposort(n.srcs)]
    return loads[0] if len(loads) == 1 and isinstance(loads[0].arg, int) else None


def _together(steps: list[tuple[int, int]]) -> int:
    """How many elements loops touch that lie side by side; 0 if they do not. steps: of each loop
    the distance from turn to turn, and the turns; the nearest first."""
    count = 1
    for apart, turns in steps:
        if turns > 1 and apart != count:
            return 0
        count *= turns
    return count
