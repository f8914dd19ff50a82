"""Two rewrites of reductions over a comparison with an axis: indexed loads, and scatter.

    sum over v of where(e == v, f(v), 0)      is  f(e), or 0 outside the axis     (gather)
    out[v] = sum over i of where(e(i) == v, g(i), 0)   is  out[e(i)] += g(i)      (scatter-add)

The first turns O(N*V) of an embedding into O(N), the second does so for its gradient. Both keep the
order of additions, so they are exact.
"""

from __future__ import annotations

from dataclasses import replace

from muladd.ir import Dim, Node, dtype, is_const, make, ops, sym, toposort
from muladd.loop.kernel import Stage, reaxis
from muladd.loop.values import whole_numbers


def gather(stage: Stage, exact: bool = False) -> Stage:
    """The stage with every reduced axis removed that a comparison selects one element of."""
    again = True
    while again and stage.reduction is ops.SUM and stage.reduced:
        again = False
        for v in stage.reduced:
            if stage.lanes > 1 and v is stage.reduced[-1] and len(stage.reduced) > 1:
                continue  # the position along v says which lane an element belongs to
            new = _gather_one(stage, v)
            if new is not None:
                stage, again = new, True
                break
        if again and exact and not stage.reduced and stage.dtype.is_float:
            zero = make(ops.CONST, (), 0.0, stage.dtype)  # sums begin at +0: no -0 comes out
            stage = replace(stage, value=make(ops.ADD, (stage.value, zero)), lanes=1)
    return stage


def _gather_one(stage: Stage, v: Node) -> Stage | None:
    found = _selected(stage.value)
    if found is None:
        return None
    terms, body = found
    for i, (left, right) in enumerate(terms):
        index = _other_side(left, right, v)
        if index is None:
            continue
        at = _as_index(index)
        if _lies_inside(index, v.arg.extent):
            at = sym.mod(at, v.arg.extent)  # which is at; so whoever reads it sees it, too
        inside = sym.inside(at, v.arg.extent)
        rest = [t for k, t in enumerate(terms) if k != i]
        value = reaxis(_guarded(body, v, inside), {v: at}, {})
        for left, right in rest:
            a, b = (reaxis(_guarded(x, v, inside), {v: at}, {}) for x in (left, right))
            equal = make(ops.NE, (make(ops.NE, (a, b)), _true()))
            value = make(ops.WHERE, (equal, value, make(ops.CONST, (), 0, value.dtype)))
        if inside is not True:
            cond = sym.as_condition(inside)
            value = make(ops.WHERE, (cond, value, make(ops.CONST, (), 0, value.dtype)))
        reduced = tuple(a for a in stage.reduced if a is not v)
        reduction = stage.reduction if reduced else None
        return replace(stage, value=value, reduced=reduced, reduction=reduction, contracted=False)
    return None


def _guarded(body: Node, v: Node, inside: object) -> Node:
    """The body with every read that depends on v guarded, so that a wild index loads nothing."""
    if inside is True:
        return body
    done: dict[Node, Node] = {}
    for n in toposort((body,)):
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.READ and depends(n, v):
            assert isinstance(n.arg, tuple)
            label, rank = n.arg
            guard = inside if len(srcs) == rank else sym.both(srcs[rank], inside)  # type: ignore
            done[n] = make(ops.READ, (*srcs[:rank], guard), n.arg, n.dtype)  # type: ignore
        elif any(a is not b for a, b in zip(srcs, n.srcs)):
            needs = n.op in (ops.CAST, ops.BITCAST, ops.READ)
            done[n] = make(n.op, srcs, n.arg, n.dtype if needs else None)
        else:
            done[n] = n
    return done[body]


def scatter(stage: Stage) -> tuple[Stage, Node, Dim] | None:
    """(stage without the compared axis, that axis, the index instead), if it is a scatter."""
    if stage.reduction is not ops.SUM or not stage.reduced or stage.lanes > 1:
        return None
    found = _selected(stage.value)
    if found is None:
        return None
    terms, body = found
    if len(terms) != 1:
        return None
    left, right = terms[0]
    for v in stage.axes:
        index = _other_side(left, right, v)
        if index is None or depends(body, v):
            continue
        if not any(depends(index, r) for r in stage.reduced):
            continue
        if any(depends(index, a) for a in stage.axes):
            continue
        at = _as_index(index)
        inside = sym.inside(at, v.arg.extent)
        if inside is not True:  # the guard of the addition; an index outside adds nothing
            nothing = make(ops.CONST, (), 0, body.dtype)
            body = make(ops.WHERE, (sym.as_condition(inside), body, nothing))
        return replace(stage, value=body, contracted=False), v, at
    return None


def _true() -> Node:
    return make(ops.CONST, (), True, dtype.bool_)


def _selected(value: Node) -> tuple[list[tuple[Node, Node]], Node] | None:
    """([(a, b), ...], body) of where(a == b and ..., body, 0), nested or joined by MUL."""
    terms: list[tuple[Node, Node]] = []
    while value.op is ops.WHERE and is_const(value.srcs[2], 0):
        todo = [value.srcs[0]]
        here: list[tuple[Node, Node]] = []
        while todo:
            c = todo.pop()
            if c.op is ops.MUL:
                todo.extend(c.srcs)
            elif c.op is ops.NE and c.srcs[0].op is ops.NE and is_const(c.srcs[1], True):
                here.append((c.srcs[0].srcs[0], c.srcs[0].srcs[1]))
            else:
                return (terms, value) if terms else None
        terms.extend(here)
        value = value.srcs[1]
    return (terms, value) if terms else None


def depends(value: Node, axis: Node) -> bool:
    return axis in toposort((value,))


def _other_side(left: Node, right: Node, v: Node) -> Node | None:
    """If one side is the axis v itself and the other does not depend on v, the other side."""
    for a, b in ((left, right), (right, left)):
        bare = a.srcs[0] if a.op is ops.CAST and a.dtype.is_int else a
        if bare is v and not depends(b, v) and b.dtype.is_int:
            if a is v or _holds(a.dtype, v):
                return b
    return None


def _holds(d: dtype.DType, v: Node) -> bool:
    return sym.bounds(v.arg.extent)[1] - 1 <= int(d.max)


def _lies_inside(index: Node, extent: Dim) -> bool:
    known = whole_numbers(index)
    return isinstance(extent, int) and known is not None and 0 <= known[0] and known[1] < extent


def _as_index(index: Node) -> Dim:
    while index.op is ops.CAST and index.srcs[0].dtype is dtype.INDEX and index.dtype.bits == 64:
        index = index.srcs[0]
    if index.op is ops.CONST:
        return int(index.arg)
    if index.dtype is not dtype.INDEX:
        index = make(ops.CAST, (index,), None, dtype.INDEX)
    return sym.opaque(index)
