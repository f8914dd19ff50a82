"""Small constructors over nodes: what the tables of this room are written with.

Nothing here promotes or broadcasts by itself: operands come with equal shapes and dtypes, as the
language wants them. Where an operation would change nothing, its operand is returned.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from muladd.ir import ops, sym
from muladd.ir.dtype import DType
from muladd.ir.node import Body, CallArg, Dim, Node, ScanArg, Shape, const, make, param, rebuild
from muladd.ir.ops import equal_dims, equal_shapes


def like(value: Any, x: Node) -> Node:
    """The number `value` in the shape and dtype of x."""
    return const(value, x.dtype, x.shape)


def zeros(x: Node) -> Node:
    return like(0, x)


# --- arithmetic ----------------------------------------------------------------------------------


def add(a: Node, b: Node) -> Node:
    return make(ops.ADD, (a, b))


def mul(a: Node, b: Node) -> Node:
    return make(ops.MUL, (a, b))


def scale(a: Node, factor: float) -> Node:
    """a times a number."""
    return make(ops.MUL, (a, like(factor, a)))


def neg(a: Node) -> Node:
    return scale(a, -1)


def sub(a: Node, b: Node) -> Node:
    return add(a, neg(b))


def div(a: Node, b: Node) -> Node:
    return make(ops.DIV, (a, b))


def sqrt(a: Node) -> Node:
    return make(ops.SQRT, (a,))


def exp2(a: Node) -> Node:
    return make(ops.EXP2, (a,))


def log2(a: Node) -> Node:
    return make(ops.LOG2, (a,))


def sin(a: Node) -> Node:
    return make(ops.SIN, (a,))


def cos(a: Node) -> Node:
    """1 - 2 sin(a/2)^2: a/2 is exact, so the error stays near one rounding however great a is.

    (sin(a + pi/2) would round a + pi/2 first, which for a = 10,000 costs four digits.)
    """
    half = sin(scale(a, 0.5))
    return add(like(1, a), scale(mul(half, half), -2))


def maximum(a: Node, b: Node) -> Node:
    return make(ops.MAX, (a, b))


def less(a: Node, b: Node) -> Node:
    return make(ops.LT, (a, b))


def equal(a: Node, b: Node) -> Node:
    """a == b (false where either is NaN)."""
    differ = make(ops.NE, (a, b))
    return make(ops.NE, (differ, like(True, differ)))


def where(condition: Node, a: Node, b: Node) -> Node:
    return make(ops.WHERE, (condition, a, b))


def cast(a: Node, dtype: DType) -> Node:
    return a if a.dtype is dtype else make(ops.CAST, (a,), None, dtype)


# --- shapes --------------------------------------------------------------------------------------


def reshape(a: Node, shape: Iterable[Dim]) -> Node:
    shape = tuple(shape)
    return a if equal_shapes(a.shape, shape) else make(ops.RESHAPE, (a,), shape)


def permute(a: Node, order: Sequence[int]) -> Node:
    order = tuple(order)
    return a if order == tuple(range(a.ndim)) else make(ops.PERMUTE, (a,), order)


def move_axis(a: Node, source: int, target: int) -> Node:
    order = [i for i in range(a.ndim) if i != source]
    order.insert(target, source)
    return permute(a, order)


def expand(a: Node, shape: Iterable[Dim]) -> Node:
    shape = tuple(shape)
    return a if equal_shapes(a.shape, shape) else make(ops.EXPAND, (a,), shape)


def sum_axes(a: Node, axes: Iterable[int]) -> Node:
    axes = tuple(sorted(axes))
    return make(ops.SUM, (a,), axes) if axes else a


def sum_to_shape(a: Node, shape: Shape) -> Node:
    """a summed over the axes that EXPAND from `shape` to a's shape repeats: its transpose."""
    new = a.ndim - len(shape)
    repeated = [
        i + new
        for i, n in enumerate(shape)
        if equal_dims(n, 1) and not equal_dims(a.shape[i + new], 1)
    ]
    return reshape(sum_axes(a, [*range(new), *repeated]), shape)


def spread(a: Node, axes: Iterable[int], shape: Shape) -> Node:
    """a, whose `axes` a reduction removed, repeated along them to `shape` again."""
    axes = set(axes)
    return expand(reshape(a, [1 if i in axes else n for i, n in enumerate(shape)]), shape)


def pad(a: Node, pads: Iterable[tuple[Dim, Dim, int]], value: Any = 0) -> Node:
    pads = tuple(pads)
    if all(equal_dims(n, 0) for p in pads for n in p):
        return a
    if a.dtype.is_float:
        value = float(value)
    return make(ops.PAD, (a,), (pads, value))


def slice_(a: Node, slices: Iterable[tuple[Dim, Dim, int]]) -> Node:
    slices = tuple(slices)
    whole = (
        equal_dims(start, 0) and equal_dims(size, n) and step == 1
        for (start, size, step), n in zip(slices, a.shape)
    )
    return a if all(whole) else make(ops.SLICE, (a,), slices)


def flip(a: Node, axes: Iterable[int]) -> Node:
    axes = set(axes)
    return slice_(
        a,
        [(sym.sub(n, 1), n, -1) if i in axes else (0, n, 1) for i, n in enumerate(a.shape)],
    )


def dilate(a: Node, axis: int, step: int) -> Node:
    """step - 1 zeros between neighbours along an axis whose size may be symbolic."""
    n = a.shape[axis]
    if isinstance(n, int):
        return pad(a, [(0, 0, step - 1 if i == axis else 0) for i in range(a.ndim)])
    apart = reshape(a, (*a.shape[: axis + 1], 1, *a.shape[axis + 1 :]))
    apart = pad(apart, [(0, step - 1 if i == axis + 1 else 0, 0) for i in range(apart.ndim)])
    joined = reshape(apart, (*a.shape[:axis], sym.mul(n, step), *a.shape[axis + 1 :]))
    size = sym.sub(sym.mul(n, step), step - 1)  # a symbolic size is taken to be at least 1
    return slice_(joined, [(0, size if i == axis else m, 1) for i, m in enumerate(joined.shape)])


# --- sums of many --------------------------------------------------------------------------------


def total(terms: Sequence[Node]) -> Node:
    """The sum of one or more nodes, as a balanced tree in the order given."""
    level = list(terms)
    while len(level) > 1:
        pairs = [add(a, b) for a, b in zip(level[::2], level[1::2])]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


# --- structure -----------------------------------------------------------------------------------


def params(nodes: Iterable[Node], start: int = 0) -> tuple[Node, ...]:
    """New parameters, numbered from `start`, in the shapes and dtypes of some nodes."""
    return tuple(param(i, n.shape, n.dtype) for i, n in enumerate(nodes, start))


def call(body: Body, srcs: Iterable[Node], out: int = 0) -> Node:
    return make(ops.CALL, tuple(srcs), CallArg(body, out))


def calls(body: Body, srcs: Iterable[Node]) -> list[Node]:
    """Every result of a body applied to sources."""
    srcs = tuple(srcs)
    return [call(body, srcs, i) for i in range(len(body.outs))]


def scan(arg: ScanArg, srcs: Iterable[Node], out: int) -> Node:
    arg = ScanArg(arg.body, arg.length, arg.carries, arg.stacked, arg.reverse, out)
    return make(ops.SCAN, tuple(srcs), arg)


def scans(arg: ScanArg, srcs: Iterable[Node]) -> list[Node]:
    """Every result of a scan over sources: final carried values, then stacked outputs."""
    srcs = tuple(srcs)
    return [scan(arg, srcs, i) for i in range(len(arg.body.outs))]


__all__ = [
    "add", "call", "calls", "cast", "cos", "dilate", "div", "equal", "exp2", "expand", "flip",
    "less", "like", "log2", "maximum", "move_axis", "mul", "neg", "pad", "params", "permute",
    "rebuild", "reshape", "scale", "scan", "scans", "sin", "slice_", "spread", "sqrt", "sub",
    "sum_axes", "sum_to_shape", "total", "where", "zeros",
]  # fmt: skip
