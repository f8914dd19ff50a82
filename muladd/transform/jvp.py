"""Forward-mode derivatives: tangents pushed from inputs to outputs, by one table.

A row of `JVP` has one cell per source: given the node and that source's tangent t, the cell is
what the source adds to the node's tangent (None: nothing). Elementwise operations share their
cells with reverse mode; movement and SUM are linear, so they apply themselves to the tangent.
"""
from __future__ import annotations

from collections.abc import Sequence

from muladd.ir import ops
from muladd.ir.node import Body, Node, ScanArg, substitute, toposort
from muladd.ir.ops import Op
from muladd.transform import build as b
from muladd.transform.grad import (
    PARTIAL,
    Row,
    carries_derivative,
    check_pairs,
    gradient,
    greatest,
    refuse_hidden,
)
from muladd.transform.grad_call import check_custom, wrapped
from muladd.transform.grad_scan import active_carries
from muladd.transform.residuals import body_over


def _same(n: Node, t: Node) -> Node:
    return b.rebuild(n, (t,))


def _jvp_amax(n: Node, t: Node) -> Node:
    """The mean of the tangents of the greatest elements."""
    mask, count = greatest(n)
    return b.div(b.sum_axes(b.where(mask, t, b.zeros(t)), n.arg), count)


# fmt: off
JVP: dict[Op, Row] = {
    **PARTIAL,
    ops.CONST: (),
    ops.INPUT: (),
    ops.IOTA: (),
    ops.CAST: (_same,),
    ops.SUM: (_same,),
    ops.AMAX: (_jvp_amax,),
    ops.RESHAPE: (_same,),
    ops.PERMUTE: (_same,),
    ops.EXPAND: (_same,),
    ops.PAD: (lambda n, t: b.pad(t, n.arg[0]),),
    ops.SLICE: (_same,),
}
# fmt: on


def jvp(
    outputs: Sequence[Node], inputs: Sequence[Node], tangents: Sequence[Node | None]
) -> list[Node | None]:
    """The outputs' tangents, given the inputs': a Jacobian-vector product, as nodes.

    Inputs may be any nodes, each taken to be independent of the others. None stands for zero, on
    both sides. Integers and bools have no tangent. Raises GradientError where a tangent does not
    fit its input, or where an input is hidden inside a body.
    """
    check_pairs("jvp", "tangent", inputs, tangents)
    stops = set(inputs)
    order = toposort(outputs, into=lambda n: n not in stops)
    refuse_hidden("jvp", order, stops)
    tangent: dict[Node, Node] = {x: t for x, t in zip(inputs, tangents) if t is not None}
    for n in order:
        if n in stops or not carries_derivative(n):
            continue
        moved = [tangent.get(s) for s in n.srcs]
        if not any(moved):
            continue
        if n.op in STRUCTURE:
            t = STRUCTURE[n.op](n, moved)
        else:
            terms = [
                cell(n, t)
                for cell, t in zip(JVP[n.op], moved)
                if cell is not None and t is not None
            ]
            t = b.total(terms) if terms else None
        if t is not None:
            tangent[n] = t
    return [tangent.get(out) for out in outputs]


# --- CALL ----------------------------------------------------------------------------------------


def _jvp_call(n: Node, moved: list[Node | None]) -> Node | None:
    body: Body = n.arg.body
    active = tuple(i for i, t in enumerate(moved) if t is not None)
    key = ("jvp", active)
    if key not in body.memo:
        body.memo[key] = _call_body(body, active)
    pushed, place = body.memo[key]
    if n.arg.out not in place:
        return None
    return b.call(pushed, [*n.srcs, *(t for t in moved if t is not None)], place[n.arg.out])


def _call_body(body: Body, active: tuple[int, ...]) -> tuple[Body, dict[int, int]]:
    """A body from parameters and tangents to tangents, and where each result's tangent is."""
    tangents = b.params([body.params[i] for i in active], start=len(body.params))
    if body.gradient is not None:
        found = _custom(body, body.gradient, active, tangents)
    else:
        found = jvp(body.outs, [body.params[i] for i in active], tangents)
    place = [i for i, t in enumerate(found) if t is not None]
    outs = tuple(t for t in found if t is not None)
    pushed = Body(outs, (*body.params, *tangents), f"{body.name}.jvp", recompute=body.recompute)
    return pushed, {out: k for k, out in enumerate(place)}


def _custom(
    body: Body, custom: Body, active: tuple[int, ...], tangents: tuple[Node, ...]
) -> list[Node | None]:
    """Tangents by a custom gradient: it is linear in its cotangents, so transpose it.

    If c -> J'c is the custom gradient, then the derivative of <J'c, t> by c is Jt.
    """
    check_custom(body, custom)
    results = b.calls(body, body.params)
    here = len(body.params) + len(results)
    cotangents = custom.params[here:]
    floats = [i for i, r in enumerate(results) if r.dtype.is_float]
    pulled = [custom.outs[i] for i in active]
    stand_ins = b.params(pulled, start=len(custom.params))
    found = gradient(pulled, [cotangents[i] for i in floats], stand_ins)
    over = dict(zip(custom.params, (*body.params, *results, *map(b.zeros, cotangents))))
    over |= dict(zip(stand_ins, tangents))
    out: list[Node | None] = [None] * len(results)
    for i, t in zip(floats, found):
        if t is not None:
            out[i] = substitute((t,), over)[0]
    return out


# --- SCAN ----------------------------------------------------------------------------------------


def _jvp_scan(n: Node, moved: list[Node | None]) -> Node | None:
    """A scan that carries the values and their tangents side by side."""
    arg: ScanArg = n.arg
    body = arg.body if arg.body.gradient is None else wrapped(arg.body)
    mask = active_carries(body, arg.carries, sum(1 << i for i, t in enumerate(moved) if t))
    active = tuple(i for i in range(len(moved)) if mask >> i & 1)
    key = ("scan jvp", arg.carries, arg.stacked, active)
    if key not in body.memo:
        body.memo[key] = _scan_body(body, arg.carries, arg.stacked, active)
    pushed, place = body.memo[key]
    if arg.out not in place:
        return None
    values = list(n.srcs)
    tangents = {i: moved[i] or b.zeros(values[i]) for i in active}
    srcs = _side_by_side(arg.carries, arg.stacked, values, tangents)
    more = sum(i < arg.carries for i in active)
    stacked = arg.stacked + sum(arg.carries <= i < arg.carries + arg.stacked for i in active)
    return b.scan(
        ScanArg(pushed, arg.length, arg.carries + more, stacked, arg.reverse),
        srcs,
        place[arg.out],
    )


def _side_by_side(
    carries: int, stacked: int, values: list[Node], tangents: dict[int, Node]
) -> list[Node]:
    """Per kind of source (carried, stacked, alike): the values, then those tangents there are."""
    out: list[Node] = []
    ends = (0, carries, carries + stacked, len(values))
    for low, high in zip(ends, ends[1:]):
        out += values[low:high]
        out += [tangents[i] for i in range(low, high) if i in tangents]
    return out


def _scan_body(
    body: Body, carries: int, stacked: int, active: tuple[int, ...]
) -> tuple[Body, dict[int, int]]:
    actives = [body.params[i] for i in active]
    tangents = b.params(actives, start=len(body.params))
    found = jvp(body.outs, actives, tangents)
    outs = list(body.outs[:carries])
    place: dict[int, int] = {}
    for i in active:
        if i < carries:
            place[i] = len(outs)
            outs.append(found[i] or b.zeros(body.outs[i]))
    for i in range(carries, len(body.outs)):
        t = found[i]
        if t is not None:
            place[i] = len(outs)
            outs.append(t)
    leaves = _side_by_side(carries, stacked, list(body.params), dict(zip(active, tangents)))
    return body_over(leaves, outs, f"{body.name}.jvp", body.recompute), place


STRUCTURE = {ops.CALL: _jvp_call, ops.SCAN: _jvp_scan}
