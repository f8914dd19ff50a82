"""Building nodes conveniently: broadcasting, casts and the arithmetic that the op table spells out.

Functions here take and return nodes, never tensors. They leave out what changes nothing (a reshape
to the same shape), and otherwise build exactly what their name says: the compiler simplifies.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from muladd.errors import DTypeError, ShapeError
from muladd.ir import Dim, DType, Node, Shape, const, iota, make, ops, sym
from muladd.ir import dtype as dt
from muladd.ir.named import LOG2_E
from muladd.ir.ops import equal_dims, equal_shapes

Interior = tuple[tuple[Dim, Dim, int], ...]


# --- shapes ---------------------------------------------------------------------------------------


def describe(node: Node) -> str:
    """How an error names an operand: float32[2, 3]."""
    return f"{node.dtype.name}{list(node.shape)}"


def broadcast_shapes(who: str, *shapes: Shape) -> Shape:
    """The shape that all given shapes broadcast to by NumPy's rule; ShapeError when there is none.
    """
    if shapes and all(s == shapes[0] for s in shapes[1:]):
        return tuple(shapes[0])
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = [1] * rank
    for shape in shapes:
        for i, n in enumerate(shape, rank - len(shape)):
            if equal_dims(out[i], 1):
                out[i] = n
            elif not equal_dims(n, 1) and not equal_dims(n, out[i]):
                raise ShapeError(
                    f"{who}: shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast: "
                    f"axis {i - rank} is both {out[i]} and {n}; make these sizes equal, or one of "
                    "them 1"
                )
    return tuple(out)


def axis_of(who: str, axis: Any, rank: int) -> int:
    """An axis counted from the front; -1 is the last. ShapeError outside -rank..rank-1."""
    try:
        number = axis.__index__()
    except AttributeError:
        raise DTypeError(f"{who}: an axis is a whole number, got {axis!r}") from None
    if not -rank <= number < rank:
        expected = f"expected {-rank} <= axis < {rank}" if rank else "a scalar has none"
        raise ShapeError(
            f"{who}: axis {number} does not exist in a tensor of {rank} axes; {expected}"
        )
    return number % rank


def axes_of(who: str, axes: Any, rank: int) -> tuple[int, ...]:
    """None (all), one axis or several, as ascending axes; ShapeError where one occurs twice.

    A scalar has none, but lets itself be asked for axis 0 or -1, as in torch.
    """
    if axes is None:
        return tuple(range(rank))
    if not isinstance(axes, list | tuple):
        axes = (axes,)
    found = [axis_of(who, a, max(rank, 1)) for a in axes]
    if len(set(found)) != len(found):
        raise ShapeError(f"{who}: axes {tuple(axes)} name one axis twice")
    return tuple(sorted(found)) if rank else ()


def pair(value: Any, count: int, who: str, what: str) -> tuple[int, ...]:
    """One whole number, or `count` of them, as a tuple of `count`."""
    if hasattr(value, "__index__"):
        return (value.__index__(),) * count
    values = tuple(v.__index__() for v in value)
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ShapeError(f"{who}: {what}={value!r} has {len(values)} entries, expected {count}")
    return values


def static(who: str, n: Dim) -> int:
    """A size that is a number; ShapeError where it is symbolic."""
    if not isinstance(n, int):
        raise ShapeError(
            f"{who}: needs an axis of fixed size, got the symbolic size {n!r}; leave this axis out "
            "of jit's symbolic="
        )
    return n


# --- movement -------------------------------------------------------------------------------------


def reshape(x: Node, shape: Shape) -> Node:
    return x if equal_shapes(x.shape, shape) else make(ops.RESHAPE, (x,), tuple(shape))


def permute(x: Node, order: Sequence[int]) -> Node:
    return x if list(order) == list(range(x.ndim)) else make(ops.PERMUTE, (x,), tuple(order))


def expand(x: Node, shape: Shape) -> Node:
    return x if equal_shapes(x.shape, shape) else make(ops.EXPAND, (x,), tuple(shape))


def pad(x: Node, pads: Iterable[Sequence[Any]], value: Any = 0) -> Node:
    """pads: per axis (low, high) or (low, high, interior)."""
    full = tuple(tuple(p) if len(p) == 3 else (p[0], p[1], 0) for p in pads)
    if all(equal_dims(a, 0) and equal_dims(b, 0) and not c for a, b, c in full):
        return x
    return make(ops.PAD, (x,), (full, _pad_value(value, x.dtype)))


def _pad_value(value: Any, d: DType) -> Any:
    return bool(value) if d is dt.bool_ else float(value) if d.is_float else int(value)


def slice_(x: Node, spec: Sequence[tuple[Dim, Dim, int]]) -> Node:
    """spec: per axis (start, size, step)."""
    whole = all(
        equal_dims(a, 0) and s == 1 and equal_dims(n, m) for (a, n, s), m in zip(spec, x.shape)
    )
    return x if whole else make(ops.SLICE, (x,), tuple(tuple(s) for s in spec))


def cut(x: Node, axis: int, start: Dim, size: Dim, step: int = 1) -> Node:
    """`size` entries along one axis, from `start`, `step` apart."""
    spec: list[tuple[Dim, Dim, int]] = [(0, n, 1) for n in x.shape]
    spec[axis] = (start, size, step)
    return slice_(x, spec)


def flip(x: Node, axis: int) -> Node:
    return cut(x, axis, sym.sub(x.shape[axis], 1), x.shape[axis], -1)


def unsqueeze(x: Node, axis: int) -> Node:
    """A new axis of size 1 in front of `axis` (rank allowed)."""
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def keep(x: Node, shape: Shape, axes: Sequence[int]) -> Node:
    """A reduction of something of `shape` over `axes`, with those axes back as size 1."""
    return reshape(x, tuple(1 if i in axes else n for i, n in enumerate(shape)))


def concatenate(parts: Sequence[Node], axis: int) -> Node:
    """Parts joined along an axis: each padded to the whole length, then selected by position."""
    if len(parts) == 1:
        return parts[0]
    total = sym.sum_of(p.shape[axis] for p in parts)
    shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
    position = along(iota(total), axis, shape)
    start: Dim = 0
    result: Node | None = None
    for part in parts:
        pads: list[tuple[Dim, Dim]] = [(0, 0)] * part.ndim
        end = sym.add(start, part.shape[axis])
        pads[axis] = (start, sym.sub(total, end))
        placed = pad(part, pads)
        if result is None:
            result = placed
        else:
            result = where(lt(position, expand(sym.as_node(start), shape)), result, placed)
        start = end
    assert result is not None
    return result


def along(line: Node, axis: int, shape: Shape) -> Node:
    """A vector laid along one axis of a shape and repeated over the others."""
    return expand(reshape(line, (line.shape[0], *[1] * (len(shape) - axis - 1))), shape)


# --- numbers --------------------------------------------------------------------------------------


def cast(x: Node, d: DType) -> Node:
    return x if x.dtype is d else make(ops.CAST, (x,), None, d)


def bitcast(x: Node, d: DType) -> Node:
    return x if x.dtype is d else make(ops.BITCAST, (x,), None, d)


def stop(x: Node) -> Node:
    """The same value with zero derivative: its bits, as an integer, and back.

    Integers carry no derivative. The compiler folds the pair of casts away.
    """
    if not x.dtype.is_float or x.op is ops.CONST:
        return x
    bits = {8: dt.uint8, 16: dt.uint16, 32: dt.uint32, 64: dt.uint64}[x.dtype.bits]
    return bitcast(bitcast(x, bits), x.dtype)


def level(value: Node, x: Node) -> Node:
    """`value`, computed from x by a step function: its derivative with respect to x is zero.

    The step itself leaves no way back to x; this keeps one, on which nothing passes, so that
    backward() finds the leaf and gives it zeros. The compiler folds it away.
    """
    if not x.dtype.is_float or value.dtype is not x.dtype or value is x:
        return value
    return where(const(True, dt.bool_, x.shape), value, x)


def like(x: Node, value: Any) -> Node:
    """A constant with the shape and dtype of x."""
    return const(value, x.dtype, x.shape)


def dims_product(shape: Iterable[Dim]) -> Dim:
    return sym.product(shape)


def number(value: Dim, d: DType, shape: Shape = ()) -> Node:
    """A size as a scalar of a dtype, repeated to a shape."""
    if isinstance(value, int):
        return const(value, d, shape)
    return expand(cast(value, d), shape)


def _operand(x: Node, y: Any) -> Node:
    return y if isinstance(y, Node) else like(x, y)


def add(a: Node, b: Any) -> Node:
    return make(ops.ADD, (a, _operand(a, b)))


def mul(a: Node, b: Any) -> Node:
    return make(ops.MUL, (a, _operand(a, b)))


def neg(a: Node) -> Node:
    return make(ops.MUL, (a, like(a, -1)))


def sub(a: Any, b: Any) -> Node:
    """a - b; one of them may be a Python number."""
    if not isinstance(a, Node):
        return make(ops.ADD, (neg(b), like(b, a)))
    return make(ops.ADD, (a, neg(b) if isinstance(b, Node) else like(a, -b)))


def div(a: Any, b: Any) -> Node:
    if not isinstance(a, Node):
        a = like(b, a)
    return make(ops.DIV, (a, _operand(a, b)))


def mod(a: Node, b: Any) -> Node:
    return make(ops.MOD, (a, _operand(a, b)))


def maximum(a: Node, b: Any) -> Node:
    return make(ops.MAX, (a, _operand(a, b)))


def minimum(a: Node, b: Any) -> Node:
    """-max(-a, -b) for floats (NaN propagates); order reversed by `not` for integers and bool."""
    b = _operand(a, b)
    if a.dtype.is_float:
        return neg(maximum(neg(a), neg(b)))
    if a.dtype is dt.bool_:
        return mul(a, b)
    return where(lt(b, a), b, a)


def lt(a: Node, b: Any) -> Node:
    return make(ops.LT, (a, _operand(a, b)))


def gt(a: Node, b: Any) -> Node:
    return make(ops.LT, (_operand(a, b), a))


def ne(a: Node, b: Any) -> Node:
    return make(ops.NE, (a, _operand(a, b)))


def eq(a: Node, b: Any) -> Node:
    return invert(ne(a, b))


def le(a: Node, b: Any) -> Node:
    """a < b or a == b (false with NaN)."""
    b = _operand(a, b)
    if a.dtype.is_float:
        return either(lt(a, b), eq(a, b))
    return invert(lt(b, a))


def ge(a: Node, b: Any) -> Node:
    return le(_operand(a, b), a)


def invert(a: Node) -> Node:
    """not a, for bool."""
    return make(ops.NE, (a, like(a, True)))


def both(a: Node, b: Node) -> Node:
    return make(ops.MUL, (a, b))


def either(a: Node, b: Node) -> Node:
    return make(ops.ADD, (a, b))


def where(condition: Node, a: Any, b: Any) -> Node:
    """a where the condition holds, else b; one of the two may be a Python number."""
    if not isinstance(a, Node):
        a = like(b, a)
    return make(ops.WHERE, (condition, a, _operand(a, b)))


def sqrt(a: Node) -> Node:
    return make(ops.SQRT, (a,))


def exp2(a: Node) -> Node:
    return make(ops.EXP2, (a,))


def log2(a: Node) -> Node:
    return make(ops.LOG2, (a,))


def sin(a: Node) -> Node:
    return make(ops.SIN, (a,))


LN_2 = 0.6931471805599453


def exp(a: Node) -> Node:
    """What runs it does not round the product (ir/named.py)."""
    return exp2(mul(a, LOG2_E))


def log(a: Node) -> Node:
    return mul(log2(a), LN_2)


def total(x: Node, axes: Sequence[int]) -> Node:
    """The sum over ascending axes, which disappear."""
    return make(ops.SUM, (x,), tuple(axes)) if axes else x


def greatest(x: Node, axes: Sequence[int]) -> Node:
    """The maximum over ascending axes, which disappear."""
    return make(ops.AMAX, (x,), tuple(axes)) if axes else x


def polynomial(x: Node, coefficients: Sequence[float]) -> Node:
    """coefficients[0] + coefficients[1] x + ..., by Horner's rule."""
    result = like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = add(mul(result, x), c)
    return result


def accumulator(d: DType) -> DType:
    """The dtype in which products of d are summed: 16-bit and 8-bit floats use float32."""
    return dt.float32 if d.is_float and d.bits < 32 else d


def select_rows(table: Node, index: Node) -> Node:
    """table[index] along the first axis: table is (V, ...), index any shape; (*index, ...).

    Written as sum_v where(index == v, table[v], 0), which the compiler loads from memory directly.
    An index outside 0..V-1 gives zero.
    """
    v, rest, lead = table.shape[0], table.shape[1:], index.shape
    k = len(lead)
    shape = (*lead, v, *rest)
    wide_index = expand(reshape(index, (*lead, 1, *[1] * len(rest))), shape)
    position = along(iota(v, index.dtype), k, shape)
    rows = expand(reshape(table, (*[1] * k, v, *rest)), shape)
    return selected(eq(wide_index, position), rows, k)


def selected(condition: Node, x: Node, axis: int) -> Node:
    """The sum over an axis of x where the condition holds (bool travels as uint8)."""
    if x.dtype is dt.bool_:
        return cast(selected(condition, cast(x, dt.uint8), axis), dt.bool_)
    return total(where(condition, x, 0), (axis,))
