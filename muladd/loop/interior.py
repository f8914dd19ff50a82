"""Where a stage's loads need no guard: in chunks that lie inside, told before their loops run.

A load under `i + k < n` asks that for each element. Where the loops around a stage fix most of i,
one question serves all of its turns: if even the last of them is inside, so are they all. Then the
stage is computed without these guards, by whole vectors, and with them otherwise. Where they fix
all of i, so does a choice between arrays, as in one that is put together from others.
"""
from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from muladd.ir import Dim, Node, dtype, make, ops, rebuild, sym, toposort
from muladd.ir.polynomial import Poly, is_size
from muladd.loop.kernel import Stage
from muladd.loop.plan import Plan

_MOST_NODES = 400  # of a value that is written twice
_MOST_CHOSEN = 100  # of one that is written for each case of its choices


def apart(plan: Plan, loop: Node) -> Node | None:
    """The axis of an outer loop whose last turn overhangs and is done by itself, if there is one:
    where parts of one array are computed side by side, a condition in each would part them."""
    if not plan.kernel.side_by_side() or plan.group:
        return None
    axis = plan.owner(loop)
    first, *rest = plan.leaves[axis]
    n = axis.arg.extent
    if first.loop is not loop or not isinstance(n, int) or any(x.loop in plan.outer for x in rest):
        return None
    return axis if n > first.stride and n % first.stride else None


def interior(
    plan: Plan, stage: Stage, full: set[Node]
) -> tuple[Node, Stage, set[Node]] | None:
    """(what must hold of the loops around, the stage as it is there, its axes of which no turn
    overhangs there), if there is such. full: axes of which none does anywhere."""
    guards = [n.srcs[1] for n in stage.loads() if len(n.srcs) > 1]
    if not guards or len(toposort((stage.value,))) > _MOST_NODES:
        return None
    axes, fixed = {*stage.axes, *stage.reduced}, set(plan.enclosing(stage))
    outside = [a for a in stage.axes
               if a not in full and all(x.loop in fixed for x in plan.leaves[a])]  # fmt: skip
    at = {a: plan.value(a) for a in (*full, *outside)}
    condition: sym.Condition = True
    for a in outside:
        condition = sym.both(condition, sym.less(at[a], a.arg.extent))
    always: dict[Node, Node] = {}  # guards, and what is not negative where they hold in all turns
    for c in filter(_compares, toposort(tuple(guards))):
        if not axes & {*toposort(c.srcs)} <= at.keys():
            continue
        least = _least(sym.poly(sym.replace(_rest(c), at)), fixed)
        if isinstance(least, Node):
            condition = sym.both(condition, sym.less(-1, least))
            always[c] = least
    if not always or not isinstance(condition, Node):
        return None
    if any(sym.bounds(sym.add(a, b))[1] < 0 for a, b in combinations(set(always.values()), 2)):
        return None  # windows that see both borders from everywhere: there is no such chunk
    value = _where(stage.value, dict.fromkeys(always, True))
    return condition, replace(stage, value=value), {*full, *outside}


def choice(plan: Plan, stage: Stage) -> tuple[Node, Stage, Stage] | None:
    """(a condition of the loops around, the stage where it holds, and where it does not), if the
    stage chooses by it."""
    order = toposort((stage.value,))
    if stage.reduction is not None or len(order) > _MOST_CHOSEN:
        return None
    fixed = set(plan.enclosing(stage))
    at = {a: plan.value(a) for a in stage.axes if all(x.loop in fixed for x in plan.leaves[a])}
    for c in (n.srcs[0] for n in order if n.op is ops.WHERE):
        if not _compares(c) or not {x for x in toposort(c.srcs) if x.op is ops.RANGE} <= at.keys():
            continue
        condition = sym.less(-1, sym.replace(_rest(c), at))
        if isinstance(condition, Node):
            cases = (_decided(order, c, holds) for holds in (True, False))
            yes, no = (replace(stage, value=_where(stage.value, case)) for case in cases)
            return condition, yes, no
    return None


def _decided(order: list[Node], c: Node, holds: bool) -> dict[Node, bool]:
    """The comparisons that are decided where c holds, or does not."""
    known = _rest(c) if holds else sym.sub(-1, _rest(c))  # not negative
    found: dict[Node, bool] = {}
    for d in filter(_compares, order):
        more, less = sym.sub(_rest(d), known), sym.add(_rest(d), known)
        if isinstance(more, int) and more >= 0:
            found[d] = True
        elif isinstance(less, int) and less < 0:
            found[d] = False
    return found


def _compares(c: Node) -> bool:
    """Whether a condition compares plain indices."""
    plain = c.op is ops.LT and c.srcs[0].dtype is dtype.INDEX
    return plain and all(map(_is_plain, toposort(c.srcs)))


def _rest(c: Node) -> Dim:
    """What is not negative where a comparison holds."""
    return sym.sub(sym.as_dim(c.srcs[1]), sym.add(sym.as_dim(c.srcs[0]), 1))


def _is_plain(n: Node) -> bool:
    """Whether an index, or a part of it, is arithmetic of loops and sizes, and shows it."""
    if n.op is ops.RANGE or n.op is ops.CONST or is_size(n):
        return True
    return n.op in sym.FUNCTIONS and sym.trusted(n)


def _least(p: Poly, fixed: set[Node]) -> Dim | None:
    """The least value that a number takes in all turns of the loops that are not fixed, in terms
    of those that are; None if it is none that can be told term by term."""
    terms: list[Dim] = []
    for mono, c in p.items():
        loops = [n for n in toposort(mono) if n.op is ops.RANGE or is_size(n)]
        if all(n in fixed or is_size(n) for n in loops):
            terms.append(sym.build({mono: c}))
        elif any(n in fixed or is_size(n) for n in loops):
            return None
        else:
            terms.append(sym.bounds(sym.build({mono: c}))[0])
    return sym.sum_of(terms)


def _where(value: Node, known: dict[Node, bool]) -> Node:
    """The value where these conditions hold, and those do not."""
    true, false = (make(ops.CONST, (), x, dtype.bool_) for x in (True, False))
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple([done[s] for s in n.srcs])
        if n in known:
            done[n] = true if known[n] else false
        elif n.op is ops.MUL and n.dtype is dtype.bool_ and (true in srcs or false in srcs):
            done[n] = false if false in srcs else srcs[1] if srcs[0] is true else srcs[0]
        elif n.op is ops.WHERE and srcs[0] in (true, false):
            done[n] = srcs[1] if srcs[0] is true else srcs[2]
        elif n.op is ops.LOAD and len(srcs) > 1 and srcs[1] is true:
            done[n] = make(ops.LOAD, srcs[:1], n.arg, n.dtype)
        elif n.op is ops.LOAD and len(srcs) > 1 and srcs[1] is false:
            done[n] = make(ops.CONST, (), 0, n.dtype)
        else:
            done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return done[value]


__all__ = ["apart", "choice", "interior"]
