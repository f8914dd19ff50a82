"""Reverse-mode derivatives: one table keyed by operation, and one walk from outputs to inputs.

A row of `GRADIENT` holds one cell per source of the operation: given the node and its cotangent g
(the derivative of the final value by the node, in the node's shape and dtype), the cell is the
source's cotangent. None says that the source has no derivative. CALL and SCAN see all their
results' cotangents at once; their rows live in grad_call.py and grad_scan.py.

For elementwise operations the same cells serve forward mode, because there the Jacobian is
diagonal: `PARTIAL[op][i](n, t)` is t times the derivative of n by source i.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from muladd.errors import GradientError
from muladd.ir import ops, sym
from muladd.ir.node import Body, Dim, Node, ScanArg, toposort
from muladd.ir.ops import Op, equal_shapes
from muladd.transform import build as b

Cell = Callable[[Node, Node], Node] | None
Row = tuple[Cell, ...]

LN2 = math.log(2)


# --- the cells that need a name ------------------------------------------------------------------


def _greater(n: Node, t: Node, mine: int) -> Node:
    """MAX: all to the greater operand, half to each where they are equal (as torch.maximum)."""
    this, other = n.srcs[mine], n.srcs[1 - mine]
    halved = b.where(b.equal(this, other), b.scale(t, 0.5), t)
    return b.where(b.less(this, other), b.zeros(t), halved)


def greatest(n: Node) -> tuple[Node, Node]:
    """AMAX: where the greatest elements are (as bool), and how many there are per result."""
    x = n.srcs[0]
    mask = b.equal(x, b.spread(n, n.arg, x.shape))
    return mask, b.sum_axes(b.cast(mask, n.dtype), n.arg)


def _gradient_amax(n: Node, g: Node) -> Node:
    """Shared evenly among the greatest (as torch.amax)."""
    mask, count = greatest(n)
    share = b.spread(b.div(g, count), n.arg, n.srcs[0].shape)
    return b.where(mask, share, b.zeros(share))


def _gradient_permute(n: Node, g: Node) -> Node:
    return b.permute(g, sorted(range(len(n.arg)), key=n.arg.__getitem__))


def _gradient_pad(n: Node, g: Node) -> Node:
    pads, _ = n.arg
    return b.slice_(
        g, [(low, m, gap + 1) for m, (low, _, gap) in zip(n.srcs[0].shape, pads)]
    )


def _gradient_slice(n: Node, g: Node) -> Node:
    """Each element goes back to where it was taken from: flip, spread apart, then pad."""
    g = b.flip(g, [i for i, (_, _, step) in enumerate(n.arg) if step < 0])
    pads: list[tuple[Dim, Dim, int]] = []
    for i, (size_before, (start, size, step)) in enumerate(zip(n.srcs[0].shape, n.arg)):
        if isinstance(size, int) and size == 0:
            pads.append((0, size_before, 0))
            continue
        stride = abs(step)
        if stride > 1:
            g = b.dilate(g, i, stride)
        first = sym.add(start, sym.mul(sym.sub(size, 1), step)) if step < 0 else start
        pads.append((first, sym.sub(sym.sub(size_before, first), g.shape[i]), 0))
    return b.pad(g, pads)


# --- the tables ----------------------------------------------------------------------------------

# fmt: off
PARTIAL: dict[Op, Row] = {
    ops.SQRT: (lambda n, t: b.div(b.scale(t, 0.5), n),),
    ops.EXP2: (lambda n, t: b.mul(t, b.scale(n, LN2)),),
    ops.LOG2: (lambda n, t: b.div(t, b.scale(n.srcs[0], LN2)),),
    ops.SIN: (lambda n, t: b.mul(t, b.cos(n.srcs[0])),),
    ops.ADD: (lambda n, t: t,
              lambda n, t: t),
    ops.MUL: (lambda n, t: b.mul(t, n.srcs[1]),
              lambda n, t: b.mul(t, n.srcs[0])),
    ops.DIV: (lambda n, t: b.div(t, n.srcs[1]),
              lambda n, t: b.neg(b.mul(b.div(t, n.srcs[1]), n))),
    ops.MAX: (lambda n, t: _greater(n, t, 0),
              lambda n, t: _greater(n, t, 1)),
    ops.WHERE: (None,
                lambda n, t: b.where(n.srcs[0], t, b.zeros(t)),
                lambda n, t: b.where(n.srcs[0], b.zeros(t), t)),
    ops.BITCAST: (None,),
    ops.MOD: (None, None),
    ops.LT: (None, None),
    ops.NE: (None, None),
    ops.AND: (None, None),
    ops.XOR: (None, None),
}

GRADIENT: dict[Op, Row] = {
    **PARTIAL,
    ops.CONST: (),
    ops.INPUT: (),
    ops.IOTA: (),
    ops.CAST: (lambda n, g: b.cast(g, n.srcs[0].dtype),),
    ops.SUM: (lambda n, g: b.spread(g, n.arg, n.srcs[0].shape),),
    ops.AMAX: (_gradient_amax,),
    ops.RESHAPE: (lambda n, g: b.reshape(g, n.srcs[0].shape),),
    ops.PERMUTE: (_gradient_permute,),
    ops.EXPAND: (lambda n, g: b.sum_to_shape(g, n.srcs[0].shape),),
    ops.PAD: (_gradient_pad,),
    ops.SLICE: (_gradient_slice,),
}
# fmt: on

# (one of the results, cotangents by result number, numbers of the sources wanted) -> by source
Joint = Callable[[Node, dict[int, Node], list[int]], dict[int, Node]]


def _joint(op: Op) -> Joint:
    """The row of an operation with many results (imported late: bodies are differentiated here)."""
    from muladd.transform import grad_call, grad_scan

    return {ops.CALL: grad_call.call_cotangents, ops.SCAN: grad_scan.scan_cotangents}[op]


JOINT_OPS = (ops.CALL, ops.SCAN)


# --- the walk ------------------------------------------------------------------------------------


def carries_derivative(n: Node) -> bool:
    """Whether a derivative can pass through this operation at all."""
    return n.dtype.is_float and n.op is not ops.BITCAST


def active_nodes(order: Iterable[Node], inputs: Iterable[Node]) -> set[Node]:
    """The nodes of a sorted graph that depend on an input along a differentiable path."""
    active = {x for x in inputs if x.dtype.is_float}
    for n in order:
        if carries_derivative(n) and any(s in active for s in n.srcs):
            active.add(n)
    return active


def result_group(n: Node) -> tuple:
    """What the results of one CALL or SCAN have in common."""
    a = n.arg
    if isinstance(a, ScanArg):
        return (n.op, a.body, a.length, a.carries, a.stacked, a.reverse, n.srcs)
    return (n.op, a.body, n.srcs)


def gradient(
    outputs: Sequence[Node], inputs: Sequence[Node], cotangents: Sequence[Node | None]
) -> list[Node | None]:
    """The inputs' cotangents, given the outputs': a vector-Jacobian product, as nodes.

    Inputs may be any nodes; the walk stops at them, so each is taken to be independent of the
    others. None among the cotangents stands for zero; None among the results says that no
    differentiable path leads from the outputs to that input. Integers and bools have no gradient.
    A cotangent has its node's shape and dtype. Many cotangents of one node are added as a balanced
    tree in a fixed order. Raises GradientError where a cotangent does not fit its output, or where
    an input is hidden inside a body.
    """
    check_pairs("gradient", "cotangent", outputs, cotangents)
    stops = set(inputs)
    order = toposort(outputs, into=lambda n: n not in stops)
    refuse_hidden("gradient", order, stops)
    active = active_nodes(order, inputs)
    pending: dict[Node, list[Node]] = {}
    for out, g in zip(outputs, cotangents):
        if g is not None and out in active:
            pending.setdefault(out, []).append(g)
    # The results of one CALL or SCAN are done together, when the first of them in order comes up:
    # by then all users of all results have been visited, and its sources still lie ahead.
    waiting: dict[tuple, int] = {}
    groups: dict[Node, tuple] = {}
    for n in order:
        if n.op in JOINT_OPS and n in active and n not in stops:
            groups[n] = result_group(n)
            waiting[groups[n]] = waiting.get(groups[n], 0) + 1
    gathered: dict[tuple, dict[int, Node]] = {}
    found: dict[Node, Node] = {}
    for n in reversed(order):
        terms = pending.pop(n, None)
        g = b.total(terms) if terms else None
        if n in stops:
            if g is not None:
                found[n] = g
        elif n in groups:
            key = groups[n]
            results = gathered.setdefault(key, {})
            if g is not None:
                results[n.arg.out] = g
            waiting[key] -= 1
            if not waiting[key] and results:
                wanted = [i for i, s in enumerate(n.srcs) if s in active]
                for i, c in _joint(n.op)(n, results, wanted).items():
                    pending.setdefault(n.srcs[i], []).append(c)
        elif g is not None:
            for s, cell in zip(n.srcs, GRADIENT[n.op]):
                if cell is not None and s in active:
                    pending.setdefault(s, []).append(cell(n, g))
    return [found.get(x) for x in inputs]


# --- what gradient, jvp and vmap check alike -----------------------------------------------------


def check_pairs(
    who: str, what: str, nodes: Sequence[Node], partners: Sequence[Node | None]
) -> None:
    """Each partner (a cotangent or tangent) is None, or fits its float node."""
    if len(nodes) != len(partners):
        raise GradientError(
            f"{who}: got {len(partners)} {what}s for {len(nodes)} nodes; give one each, or None"
        )
    for i, (n, t) in enumerate(zip(nodes, partners)):
        if t is None:
            continue
        if not n.dtype.is_float:
            raise GradientError(
                f"{who}: node {i} is {n.dtype.name}; only floats have a {what}; "
                "give None, or cast to a float first"
            )
        if t.dtype is not n.dtype or not equal_shapes(t.shape, n.shape):
            raise GradientError(
                f"{who}: {what} {i} is {t.dtype.name}{list(t.shape)}, but its node is "
                f"{n.dtype.name}{list(n.shape)}; they need one shape and one dtype"
            )


def refuse_hidden(who: str, order: Iterable[Node], inputs: Iterable[Node]) -> None:
    """An input that occurs inside a body, and not among its sources, would be missed."""
    stored = {x for x in inputs if x.op is ops.INPUT}
    for n in order:
        if n.op in JOINT_OPS and n not in stored and stored & free_inputs(n.arg.body):
            raise GradientError(
                f"{who}: an input is used inside body {n.arg.body.name!r} of a {n.op.name} without "
                "being one of its parameters; pass it to the body as a source"
            )


def free_inputs(body: Body) -> frozenset[Node]:
    """The INPUT leaves inside a body that are none of its parameters (nested bodies included)."""
    if "free_inputs" not in body.memo:
        own = set(body.params)
        found: set[Node] = set()
        for n in toposort(body.outs):
            if n.op is ops.INPUT and n not in own:
                found.add(n)
            elif n.op in JOINT_OPS:
                found |= free_inputs(n.arg.body)
        body.memo["free_inputs"] = frozenset(found)
    return body.memo["free_inputs"]
