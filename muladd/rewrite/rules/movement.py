"""Movement that does nothing, cancels, or can be one: all exact, for nothing is computed."""
from __future__ import annotations

from typing import Any

from muladd.ir import ops
from muladd.ir.node import Node, const, make
from muladd.rewrite.engine import Rule
from muladd.rewrite.pattern import Match, anything, number, op, same_number

x, c = anything("x"), number(name="c")


def _keeps_shape(m: Match) -> bool:
    return ops.equal_shapes(m.root.shape, m.x.shape)


def _constant(m: Match) -> Node:
    return const(m.value("c"), m.root.dtype, m.root.shape)


def _permute(m: Match) -> Node:
    order = tuple(m.inner.arg[a] for a in m.root.arg)
    return m.x if order == tuple(range(len(order))) else make(ops.PERMUTE, (m.x,), order)


def _whole(m: Match) -> bool:
    """Every axis from its beginning to its end, step 1."""
    return all(
        ops.equal_dims(start, 0) and step == 1 and ops.equal_dims(size, n)
        for (start, size, step), n in zip(m.root.arg, m.x.shape)
    )


def _is_static(slices: tuple) -> bool:
    return all(isinstance(v, int) for one in slices for v in one)


def _slice_of_slice(m: Match) -> Node | None:
    inner, outer = m.inner.arg, m.root.arg
    if not (_is_static(inner) and _is_static(outer)) or 0 in m.root.shape:
        return None
    both = tuple(
        (start + first * step, size, step * stride)
        for (start, _, step), (first, size, stride) in zip(inner, outer)
    )
    return make(ops.SLICE, (m.x,), both)


def _empty(m: Match) -> Node | None:
    if not any(isinstance(n, int) and n == 0 for n in m.root.shape):
        return None
    return const(0, m.root.dtype, m.root.shape)


def _pads_nothing(m: Match) -> bool:
    pads, _ = m.root.arg
    return all(
        ops.equal_dims(low, 0) and ops.equal_dims(high, 0) and (gap == 0 or n in (0, 1))
        for (low, high, gap), n in zip(pads, m.x.shape)
    )


def _same_fill(a: Any, b: Any) -> bool:
    return same_number(a, b) and isinstance(a, float) == isinstance(b, float)


def _pad_of_pad(m: Match) -> Node | None:
    (inner, fill), (outer, other) = m.inner.arg, m.root.arg
    if not _same_fill(fill, other) or not (_is_static(inner) and _is_static(outer)):
        return None
    if any(gap for *_, gap in inner + outer) or any(v < 0 for p in inner + outer for v in p):
        return None
    both = tuple((a + p, b + q, 0) for (a, b, _), (p, q, _) in zip(inner, outer))
    return make(ops.PAD, (m.x,), (both, fill))


def _slice_of_pad(m: Match) -> Node | None:
    """A slice that takes nothing of the padding."""
    pads, slices, shape = m.inner.arg[0], m.root.arg, m.x.shape
    if not (_is_static(pads) and _is_static(slices)) or 0 in m.root.shape:
        return None
    moved = []
    for (low, _, gap), (start, size, step), n in zip(pads, slices, shape):
        ends = sorted((start - low, start - low + (size - 1) * step))
        if gap or not isinstance(n, int) or ends[0] < 0 or ends[1] >= n:
            return None
        moved.append((start - low, size, step))
    return make(ops.SLICE, (m.x,), tuple(moved))


def _pad_is_like_constant(m: Match) -> bool:
    fill, value = m.root.arg[1], m.value("c")
    return same_number(const(fill, m.root.dtype).arg, value)


# fmt: off
RULES = (
    Rule("reshape_nothing", op(ops.RESHAPE, x), x, _keeps_shape, exact=True),
    Rule("reshape_constant", op(ops.RESHAPE, c), _constant, exact=True),
    Rule("reshape_reshape", op(ops.RESHAPE, op(ops.RESHAPE, x)),
         lambda m: make(ops.RESHAPE, (m.x,), m.root.arg), exact=True),

    Rule("permute_nothing", op(ops.PERMUTE, x), x,
         lambda m: m.root.arg == tuple(range(m.x.ndim)), exact=True),
    Rule("permute_constant", op(ops.PERMUTE, c), _constant, exact=True),
    Rule("permute_permute", op(ops.PERMUTE, op(ops.PERMUTE, x, name="inner")), _permute,
         exact=True),

    Rule("expand_nothing", op(ops.EXPAND, x), x, _keeps_shape, exact=True),
    Rule("expand_expand", op(ops.EXPAND, op(ops.EXPAND, x)),
         lambda m: make(ops.EXPAND, (m.x,), m.root.arg), exact=True),

    Rule("slice_nothing", op(ops.SLICE, x), x, _whole, exact=True),
    Rule("slice_constant", op(ops.SLICE, c), _constant, exact=True),
    Rule("slice_empty", op(ops.SLICE, x), _empty, exact=True),
    Rule("slice_slice", op(ops.SLICE, op(ops.SLICE, x, name="inner")), _slice_of_slice,
         exact=True),
    Rule("slice_of_pad", op(ops.SLICE, op(ops.PAD, x, name="inner")), _slice_of_pad, exact=True),

    Rule("pad_nothing", op(ops.PAD, x), x, _pads_nothing, exact=True),
    Rule("pad_constant", op(ops.PAD, c), _constant, _pad_is_like_constant, exact=True),
    Rule("pad_pad", op(ops.PAD, op(ops.PAD, x, name="inner")), _pad_of_pad, exact=True),
)
# fmt: on
