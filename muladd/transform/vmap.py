"""Vectorising: a graph for one example becomes the graph for many, with a new axis in front.

A row of `VMAP` builds the batched node, given the original, its sources with a leading axis of
size n, and n. Only nodes that depend on a batched input gain the axis; the others stay as they
are, and are repeated (a free EXPAND) where they meet a batched one.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from muladd.errors import ShapeError
from muladd.ir import ops
from muladd.ir.node import Body, Dim, Node, ScanArg, param, toposort
from muladd.ir.ops import ELEMENTWISE, Op, equal_dims, equal_shapes
from muladd.transform import build as b
from muladd.transform.grad import refuse_hidden
from muladd.transform.grad_call import check_custom, wrapped

Rule = Callable[[Node, tuple[Node, ...], Dim], Node]


def _elementwise(node: Node, srcs: tuple[Node, ...], n: Dim) -> Node:
    return b.rebuild(node, srcs)


def _reduce(node: Node, srcs: tuple[Node, ...], n: Dim) -> Node:
    return b.rebuild(node, srcs, tuple(a + 1 for a in node.arg))


def _expand(node: Node, srcs: tuple[Node, ...], n: Dim) -> Node:
    """New axes stand behind the batch axis, so they are made, at size 1, before repeating."""
    old = node.srcs[0].shape
    aligned = b.reshape(srcs[0], (n, *[1] * (node.ndim - len(old)), *old))
    return b.expand(aligned, (n, *node.shape))


def _pad(node: Node, srcs: tuple[Node, ...], n: Dim) -> Node:
    pads, value = node.arg
    return b.rebuild(node, srcs, (((0, 0, 0), *pads), value))


# fmt: off
VMAP: dict[Op, Rule | None] = {
    ops.CONST: None,  # leaves never depend on a batched input
    ops.INPUT: None,
    ops.IOTA: None,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    ops.SUM: _reduce,
    ops.AMAX: _reduce,
    ops.RESHAPE: lambda node, srcs, n: b.reshape(srcs[0], (n, *node.arg)),
    ops.PERMUTE: lambda node, srcs, n: b.permute(srcs[0], (0, *(a + 1 for a in node.arg))),
    ops.EXPAND: _expand,
    ops.PAD: _pad,
    ops.SLICE: lambda node, srcs, n: b.slice_(srcs[0], ((0, n, 1), *node.arg)),
}
# fmt: on


def vectorize(
    outputs: Sequence[Node],
    inputs: Sequence[Node],
    values: Sequence[Node],
    axes: Sequence[int | None],
    size: Dim | None = None,
) -> list[Node]:
    """The outputs for every example at once, each with the batch axis in front.

    Each input (any node of the outputs' graph) is exchanged for its value: one with a further axis,
    at position axes[i], or with axes[i] None one of the input's own shape. An output that does not
    depend on a batched input is repeated. `size` is needed only if no axis is given. Raises
    ShapeError where a value does not fit, or where batch sizes differ.
    """
    n = _batch_size(inputs, values, axes, size)
    replaced = {
        x: v if axis is None else b.move_axis(v, axis % v.ndim, 0)
        for x, v, axis in zip(inputs, values, axes)
    }
    batched = {x for x, axis in zip(inputs, axes) if axis is not None}
    found, flags = _vectorize(outputs, replaced, batched, n)
    return [out if flag else b.expand(out, (n, *out.shape)) for out, flag in zip(found, flags)]


def _batch_size(
    inputs: Sequence[Node],
    values: Sequence[Node],
    axes: Sequence[int | None],
    size: Dim | None,
) -> Dim:
    if not len(inputs) == len(values) == len(axes):
        raise ShapeError(
            f"vectorize: {len(inputs)} inputs, {len(values)} values and {len(axes)} axes; "
            "give one value and one axis (or None) for each input"
        )
    for i, (x, v, axis) in enumerate(zip(inputs, values, axes)):
        rest = list(v.shape)
        if axis is not None and not -v.ndim <= axis < v.ndim:
            raise ShapeError(f"vectorize: value {i} has no axis {axis}; its shape is {v.shape}")
        n = None if axis is None else rest.pop(axis % v.ndim)
        if not equal_shapes(tuple(rest), x.shape) or v.dtype is not x.dtype:
            raise ShapeError(
                f"vectorize: value {i} is {v.dtype.name}{list(v.shape)} with batch axis {axis}; "
                f"input {i} is {x.dtype.name}{list(x.shape)}"
            )
        if n is not None and size is not None and not equal_dims(n, size):
            raise ShapeError(f"vectorize: value {i} has batch size {n}, others have {size}")
        size = size if n is None else n
    if size is None:
        raise ShapeError("vectorize: no input is batched; give an axis for one, or the size")
    return size


def _vectorize(
    outputs: Sequence[Node], replaced: dict[Node, Node], batched: set[Node], n: Dim
) -> tuple[list[Node], list[bool]]:
    """The outputs over replaced inputs, and which of them have the axis (in front)."""
    order = toposort(outputs, into=lambda node: node not in replaced)
    refuse_hidden("vectorize", order, replaced)
    done = dict(replaced)
    has_axis = set(batched)
    for node in order:
        if node in done:
            continue
        srcs = [done[s] for s in node.srcs]
        flags = [s in has_axis for s in node.srcs]
        if not any(flags):
            changed = any(a is not s for a, s in zip(srcs, node.srcs))
            done[node] = b.rebuild(node, tuple(srcs)) if changed else node
        elif node.op in STRUCTURE:
            done[node], flag = STRUCTURE[node.op](node, srcs, flags, n)
            if flag:
                has_axis.add(node)
        else:
            rule = VMAP[node.op]
            assert rule is not None  # a leaf has no sources
            done[node] = rule(node, tuple(_lead(s, f, n) for s, f in zip(srcs, flags)), n)
            has_axis.add(node)
    return [done[out] for out in outputs], [out in has_axis for out in outputs]


def _lead(x: Node, flag: bool, n: Dim) -> Node:
    return x if flag else b.expand(x, (n, *x.shape))


# --- bodies --------------------------------------------------------------------------------------

Batched = tuple[Body, tuple[bool, ...]]  # the batched body, and which results have the axis


def _body(body: Body, flags: tuple[bool, ...], n: Dim, force: tuple[int, ...] = ()) -> Batched:
    """A body whose flagged parameters have a leading axis; results `force` always get it."""
    key = ("vmap", flags, n, force)
    if key not in body.memo:
        new = tuple(
            param(i, (n, *p.shape) if flag else p.shape, p.dtype)
            for i, (p, flag) in enumerate(zip(body.params, flags))
        )
        batched = {p for p, flag in zip(body.params, flags) if flag}
        outs, got = _vectorize(body.outs, dict(zip(body.params, new)), batched, n)
        for i in force:
            outs[i], got[i] = _lead(outs[i], got[i], n), True
        gradient = None
        if body.gradient is not None:
            gradient = _gradient_body(body, body.gradient, flags, tuple(got), n)
        batch = Body(tuple(outs), new, body.name, gradient, body.recompute)
        body.memo[key] = batch, tuple(got)
    return body.memo[key]


def _gradient_body(
    body: Body, gradient: Body, flags: tuple[bool, ...], got: tuple[bool, ...], n: Dim
) -> Body:
    """The custom gradient of a batched body: a shared parameter's cotangents are summed."""
    check_custom(body, gradient)
    batched, has_axis = _body(gradient, (*flags, *got, *got), n)
    outs = []
    for out, original, flag, has in zip(batched.outs, gradient.outs, flags, has_axis):
        if flag:
            outs.append(_lead(out, has, n))
        elif original.dtype.is_float:
            outs.append(b.sum_axes(_lead(out, has, n), (0,)))
        else:
            outs.append(b.zeros(original))  # integers have no gradient: a place is kept for them
    return Body(tuple(outs), batched.params, batched.name, recompute=batched.recompute)


def _vmap_call(node: Node, srcs: list[Node], flags: list[bool], n: Dim) -> tuple[Node, bool]:
    body, got = _body(node.arg.body, tuple(flags), n)
    return b.call(body, srcs, node.arg.out), got[node.arg.out]


def _vmap_scan(node: Node, srcs: list[Node], flags: list[bool], n: Dim) -> tuple[Node, bool]:
    """The length axis of stacked values stays in front of the batch axis while scanning."""
    arg: ScanArg = node.arg
    carries, stacked = arg.carries, arg.stacked
    original = arg.body if arg.body.gradient is None else wrapped(arg.body)
    carried = list(flags[:carries])
    while True:  # a carried value is batched from the start if a step makes it so
        body, got = _body(
            original,
            (*carried, *flags[carries:]),
            n,
            tuple(i for i in range(carries) if carried[i]),
        )
        if list(got[:carries]) == carried:
            break
        carried = list(got[:carries])
    new = [_lead(s, f, n) if c and not f else s for s, f, c in zip(srcs, flags, carried)]
    new += [b.move_axis(s, 1, 0) if f else s for s, f in
            zip(srcs[carries : carries + stacked], flags[carries : carries + stacked])]  # fmt: skip
    new += srcs[carries + stacked :]
    out = b.scan(ScanArg(body, arg.length, carries, stacked, arg.reverse), new, arg.out)
    flag = got[arg.out]
    return (b.move_axis(out, 1, 0) if flag and arg.out >= carries else out), flag


STRUCTURE = {ops.CALL: _vmap_call, ops.SCAN: _vmap_scan}
