"""The language: one row per operation, and nothing else exists.

The row is the documentation (`muladd ops` prints it), the validator (arity, shape and dtype
rules), the meaning of elementwise operations (`numpy`), the cost model (`flops` per result
element) and what the random-graph generator draws from. Everything a network needs (matmul,
convolution, attention, softmax, gather, random numbers) is a composition of these 28.

Two conventions: elementwise operands have equal shapes and dtypes (`EXPAND` and `CAST` are
explicit), and every operation is total: integer division by zero gives zero, a float cast to an
integer saturates (NaN gives zero), integer arithmetic wraps.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.errors import DTypeError, ShapeError
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType

if TYPE_CHECKING:
    from muladd.ir.node import Dim, Node

    Shape = tuple[Dim, ...]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Op:
    """A row of the table. `shape` and `dtype` take (sources, arg, requested dtype)."""

    name: str
    group: str  # leaf | unary | binary | ternary | reduce | movement | structure | kernel
    arity: int  # -1: any number
    meaning: str
    shape_rule: str
    dtype_rule: str
    gradient: str
    flops: int  # per result element; a reduction counts per source element
    shape: Callable[[tuple[Node, ...], Any, DType | None], Shape]
    dtype: Callable[[tuple[Node, ...], Any, DType | None], DType]
    numpy: Callable[..., np.ndarray] | None = None  # elementwise operations only

    @property
    def elementwise(self) -> bool:
        return self.group in ("unary", "binary", "ternary")

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return (by_name, (self.name,))


def equal_dims(a: Dim, b: Dim) -> bool:
    """Whether two sizes are known to be equal (symbolic sizes are interned, so `is` decides)."""
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def equal_shapes(a: Shape, b: Shape) -> bool:
    return a == b or len(a) == len(b) and all(map(equal_dims, a, b))


# --- shape rules ---------------------------------------------------------------------------------


def _shape_scalar(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    return ()


def _shape_input(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    return arg.shape


def _shape_iota(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    return (arg,)


def _shape_same(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    first = srcs[0].shape
    for other in srcs[1:]:
        if other.shape is not first and not equal_shapes(other.shape, first):
            raise ShapeError(
                f"elementwise operands need equal shapes, got {[s.shape for s in srcs]}; "
                "EXPAND them to one shape first"
            )
    return first


def _shape_reduce(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    axes = arg
    if list(axes) != sorted(set(axes)) or any(not 0 <= a < srcs[0].ndim for a in axes):
        raise ShapeError(f"axes {axes} are not distinct, ascending axes of {srcs[0].shape}")
    return tuple(n for i, n in enumerate(srcs[0].shape) if i not in axes)


def _shape_reshape(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    if not equal_dims(_elements(arg), _elements(srcs[0].shape)):
        raise ShapeError(f"{srcs[0].shape} has another number of elements than {arg}")
    return arg


def _elements(shape: Shape) -> Dim:
    for n in shape:
        if type(n) is not int:
            from muladd.ir import sym

            return sym.product(shape)
    return math.prod(shape)  # type: ignore[arg-type]


def _shape_permute(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    if sorted(arg) != list(range(srcs[0].ndim)):
        raise ShapeError(f"{arg} is not an order of the {srcs[0].ndim} axes")
    return tuple(srcs[0].shape[a] for a in arg)


def _shape_expand(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    old = srcs[0].shape
    if not old:
        return arg
    tail = arg[len(arg) - len(old) :]
    fits = len(arg) >= len(old)
    for o, n in zip(old, tail):
        fits = fits and (o is n or equal_dims(o, 1) or equal_dims(o, n))
    if not fits:
        raise ShapeError(f"{old} does not broadcast to {arg}")
    return arg


def _shape_pad(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    from muladd.ir import sym

    pads, _ = arg
    if len(pads) != srcs[0].ndim:
        raise ShapeError(f"{len(pads)} paddings for {srcs[0].ndim} axes")
    out = []
    for n, (low, high, interior) in zip(srcs[0].shape, pads):
        if interior and not isinstance(n, int):
            raise ShapeError("interior padding needs a static size")
        gaps = max(n - 1, 0) * interior if isinstance(n, int) else 0
        out.append(sym.add(sym.add(n, low), sym.add(high, gaps)))
    return tuple(out)


def _shape_slice(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    if len(arg) != srcs[0].ndim:
        raise ShapeError(f"{len(arg)} slices for {srcs[0].ndim} axes")
    for n, (start, size, step) in zip(srcs[0].shape, arg):
        if not (isinstance(n, int) and isinstance(start, int) and isinstance(size, int)):
            continue  # symbolic: proven when the kernel is lowered
        last = start + (size - 1) * step
        if size < 0 or step == 0 or (size and not (0 <= start < n and 0 <= last < n)):
            given = f"start {start}, size {size}, step {step}"
            raise ShapeError(f"{given} leaves an axis of {n}")
    return tuple(size for _, size, _ in arg)


def _shape_join(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    from muladd.ir import sym

    first = srcs[0].shape
    others = [(*s.shape[:arg], *s.shape[arg + 1 :]) for s in srcs]
    if any(not equal_shapes(o, others[0]) for o in others):
        raise ShapeError(f"{[s.shape for s in srcs]} differ outside axis {arg}")
    return (*first[:arg], sym.sum_of(s.shape[arg] for s in srcs), *first[arg + 1 :])


def _shape_body(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> Shape:
    return arg.result_shape(srcs)


# --- dtype rules ---------------------------------------------------------------------------------


def _dtype_given(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    if d is None:
        raise DTypeError("this operation needs a dtype")
    return d


def _dtype_input(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    return arg.dtype


def _dtype_same(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    first = srcs[0].dtype
    for s in srcs:  # a loop, because every node that is built comes here
        if s.dtype is not first:
            names = [s.dtype.name for s in srcs]
            raise DTypeError(f"operands need one dtype, got {names}; CAST first")
    return first


def _only(kinds: str, wanted: str) -> Callable[[tuple[Node, ...], Any, DType | None], DType]:
    def rule(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
        first = _dtype_same(srcs, arg, d)
        if first.kind not in kinds:
            raise DTypeError(f"this operation is defined for {wanted}, got {first.name}")
        return first

    return rule


_dtype_float = _only("f", "floats")
_dtype_integer = _only("biu", "integers and bool")
_dtype_number = _only("iuf", "numbers")


def _dtype_bool(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    _dtype_same(srcs, arg, d)
    return dt.bool_


def _dtype_bitcast(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    d = _dtype_given(srcs, arg, d)
    if d.bits != srcs[0].dtype.bits or (d is dt.bool_) != (srcs[0].dtype is dt.bool_):
        raise DTypeError(f"{srcs[0].dtype.name} and {d.name} differ in width")
    return d


def _dtype_where(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    if srcs[0].dtype is not dt.bool_:
        raise DTypeError(f"the condition must be bool, got {srcs[0].dtype.name}")
    return _dtype_same(srcs[1:], arg, d)


def _dtype_body(srcs: tuple[Node, ...], arg: Any, d: DType | None) -> DType:
    return arg.result_dtype(srcs)


# --- NumPy meanings (of values already in the type's value representation) ------------------------


def _np_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    if a.dtype.kind == "b":
        return a & b
    safe = np.where(b == 0, np.ones_like(b), b)
    return np.where(b == 0, np.zeros_like(a), np.floor_divide(a, safe)).astype(a.dtype)


def _np_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a - b * _np_div(a, b)).astype(a.dtype)


def _np_max(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b)


# --- the table -----------------------------------------------------------------------------------

OPS: list[Op] = []
KERNEL_OPS: list[Op] = []
_BY_NAME: dict[str, Op] = {}


def _op(
    name: str, group: str, arity: int, meaning: str, shape: tuple, dtype: tuple, gradient: str,
    flops: int = 0, numpy: Callable[..., np.ndarray] | None = None, inside: bool = False,
) -> Op:  # fmt: skip
    row = Op(name, group, arity, meaning, shape[0], dtype[0], gradient, flops,
             shape[1], dtype[1], numpy)  # fmt: skip
    (KERNEL_OPS if inside or group == "kernel" else OPS).append(row)
    _BY_NAME[name] = row
    return row


def by_name(name: str) -> Op:
    return _BY_NAME[name]


_SAME = ("equal shapes", _shape_same)
_T = ("one dtype", _dtype_same)
_F = ("one float dtype", _dtype_float)
_I = ("one integer dtype, or bool", _dtype_integer)
_N = ("one number dtype", _dtype_number)
_B = ("one dtype; gives bool", _dtype_bool)
_GIVEN = ("the dtype asked for", _dtype_given)

# fmt: off
CONST = _op("CONST", "leaf", 0, "the number arg", ("()", _shape_scalar), _GIVEN, "none")
INPUT = _op("INPUT", "leaf", 0, "a stored array, a parameter of a body, or a symbolic size",
            ("arg.shape", _shape_input), ("arg.dtype", _dtype_input), "the variable itself")
IOTA = _op("IOTA", "leaf", 0, "0, 1, ..., arg-1", ("(arg,)", _shape_iota), _GIVEN, "none")

CAST = _op("CAST", "unary", 1, "the nearest value of another dtype; float to integer truncates "
           "and saturates", _SAME, _GIVEN, "cast back; zero through integers", 1)
BITCAST = _op("BITCAST", "unary", 1, "the same bits read as another dtype of equal width",
              _SAME, ("equal widths", _dtype_bitcast), "none (zero)")
SQRT = _op("SQRT", "unary", 1, "square root", _SAME, _F, "g / (2 sqrt(x))", 1, np.sqrt)
EXP2 = _op("EXP2", "unary", 1, "2 to the power x", _SAME, _F, "g * ln(2) * exp2(x)", 1, np.exp2)
LOG2 = _op("LOG2", "unary", 1, "logarithm to base 2", _SAME, _F, "g / (ln(2) * x)", 1, np.log2)
SIN = _op("SIN", "unary", 1, "sine of x radians", _SAME, _F, "g * (1 - 2 sin(x/2)^2)", 1, np.sin)

ADD = _op("ADD", "binary", 2, "a + b; bool: or", _SAME, _T, "g, g", 1, np.add)
MUL = _op("MUL", "binary", 2, "a * b; bool: and", _SAME, _T, "g*b, g*a", 1, np.multiply)
DIV = _op("DIV", "binary", 2, "a / b; integers: rounded down, by zero gives zero", _SAME, _N,
          "g/b, -(g/b) * (a/b)", 1, _np_div)
MOD = _op("MOD", "binary", 2, "a - b * DIV(a, b); integers only", _SAME,
          ("one integer dtype", _only("iu", "integers")), "none (zero)", 1, _np_mod)
MAX = _op("MAX", "binary", 2, "the greater; NaN if either is NaN; bool: or", _SAME, _T,
          "g to the greater, halved where equal", 1, _np_max)
LT = _op("LT", "binary", 2, "a < b", _SAME, _B, "none", 1, np.less)
NE = _op("NE", "binary", 2, "a != b", _SAME, _B, "none", 1, np.not_equal)
AND = _op("AND", "binary", 2, "bitwise and", _SAME, _I, "none", 1, np.bitwise_and)
XOR = _op("XOR", "binary", 2, "bitwise exclusive or", _SAME, _I, "none", 1, np.bitwise_xor)

WHERE = _op("WHERE", "ternary", 3, "b where a is true, else c", _SAME,
            ("bool, then one dtype", _dtype_where), "0, g where a, g where not a", 1, np.where)

SUM = _op("SUM", "reduce", 1, "sum over the axes arg, which disappear; 0 if empty",
          ("drop the axes", _shape_reduce), _N, "g expanded", 1)
AMAX = _op("AMAX", "reduce", 1, "maximum over the axes arg; the dtype's least value if empty",
           ("drop the axes", _shape_reduce), _T, "g shared among the greatest", 1)

RESHAPE = _op("RESHAPE", "movement", 1, "the same elements in row-major order, shape arg",
              ("equal element counts", _shape_reshape), _T, "reshape back")
PERMUTE = _op("PERMUTE", "movement", 1, "axis i of the result is axis arg[i]",
              ("reordered", _shape_permute), _T, "the inverse order")
EXPAND = _op("EXPAND", "movement", 1, "repeat axes of size 1, add axes in front, to shape arg",
             ("NumPy broadcast", _shape_expand), _T, "sum over the repeated axes")
PAD = _op("PAD", "movement", 1, "per axis (low, high, interior) elements of arg's value around and "
          "between", ("low + n + high + (n-1)*interior", _shape_pad), _T, "slice")
SLICE = _op("SLICE", "movement", 1, "per axis (start, size, step); a negative step walks back",
            ("the sizes", _shape_slice), _T, "pad with interior step-1, after a flip if step < 0")

CALL = _op("CALL", "structure", -1, "result arg.out of a body applied to the sources",
           ("the body's", _shape_body), ("the body's", _dtype_body), "call of the body's gradient")
SCAN = _op("SCAN", "structure", -1, "a body repeated arg.length times over carried values and "
           "stacked inputs; result arg.out", ("carry, or stacked", _shape_body),
           ("the body's", _dtype_body), "a scan backwards")

# Inside a kernel only: what loops need. Values there have shape () or (lanes,).
RANGE = _op("RANGE", "kernel", 0, "the value of the loop variable arg", ("()", _shape_scalar),
            _GIVEN, "")
LOAD = _op("LOAD", "kernel", -1, "element of buffer arg at index srcs[0]; srcs[1]: guard, else 0",
           ("the index's", lambda s, a, d: s[0].shape), _GIVEN, "")
READ = _op("READ", "kernel", -1, "value of stage arg at the indices srcs",
           ("()", lambda s, a, d: s[0].shape if s else ()), _GIVEN, "")
FMA = _op("FMA", "kernel", 3, "a * b + c, rounded once", _SAME, _F, "", 2)
DOT = _op("DOT", "kernel", -1, "srcs[0] + the sums of so many neighbours of srcs[1] * srcs[2] as "
          "make a lane, of srcs[3] * srcs[4], ...: bytes into int32",
          ("the first's", lambda s, a, d: s[0].shape), _GIVEN, "", 2)

# What runs a graph gives names to two pairs of operations (named.py), so as to round once, and to
# what many SLICEs, PADs and WHEREs say together (compile/join.py).
EXP = _op("EXP", "unary", 1, "EXP2(x * log2(e)), the product not rounded", _SAME, _F, "", 2, np.exp,
          inside=True)
COS = _op("COS", "unary", 1, "SIN(x + pi/2), the sum not rounded", _SAME, _F, "", 2, np.cos,
          inside=True)
JOIN = _op("JOIN", "movement", -1, "the sources, one after the other along axis arg",
           ("the axis' sizes added", _shape_join), _T, "", inside=True)
# fmt: on

ELEMENTWISE = tuple(o for o in OPS if o.elementwise)
MOVEMENT = tuple(o for o in OPS if o.group == "movement")
