"""The one node type, and interning: equal structure is the same object.

Because a node's sources are themselves interned, equality of whole graphs is one dictionary look-up
per node, and `is` compares graphs of any size. Nothing here recurses: graphs may be 50,000 deep.
"""
from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Union

from muladd.errors import GraphError, MuladdError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType
from muladd.ir.ops import Op

Dim = Union[int, "Node"]  # a size: a number, or an integer scalar node over symbolic variables
Shape = tuple[Dim, ...]


class Node:
    """`op` applied to `srcs` with the static argument `arg`. Immutable, and interned.

    shape is a tuple of `Dim`. `memo` is scratch space for analyses that want to remember a fact
    about a node as long as it lives; it is no part of its identity.
    """

    __slots__ = ("op", "dtype", "srcs", "arg", "shape", "memo", "__weakref__")

    op: Op
    dtype: DType
    srcs: tuple[Node, ...]
    arg: Any
    shape: Shape
    memo: dict | None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __reduce__(self) -> tuple:
        raise GraphError("a graph is not pickled; use muladd.ir.encode for its canonical bytes")

    def __repr__(self) -> str:
        if _is_size(self):  # as a person writes it: sizes stand in the shapes that errors name
            from muladd.ir.text import size_text

            return size_text(self)
        return f"<{self.op.name} {self.dtype.name}{list(self.shape)} {_short(self.arg)}>"

    # Arithmetic on integer scalars is index algebra, which keeps a normal form (see sym.py).
    def __add__(self, other: Dim) -> Dim:
        return _sym().add(self, other)

    def __radd__(self, other: Dim) -> Dim:
        return _sym().add(other, self)

    def __sub__(self, other: Dim) -> Dim:
        return _sym().sub(self, other)

    def __rsub__(self, other: Dim) -> Dim:
        return _sym().sub(other, self)

    def __mul__(self, other: Dim) -> Dim:
        return _sym().mul(self, other)

    def __rmul__(self, other: Dim) -> Dim:
        return _sym().mul(other, self)

    def __floordiv__(self, other: Dim) -> Dim:
        return _sym().div(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return _sym().div(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return _sym().mod(self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return _sym().mod(other, self)


def _sym() -> Any:
    from muladd.ir import sym

    return sym


def _is_size(node: Node) -> bool:
    """Whether a node is an expression over symbolic sizes."""
    if node.dtype is not dt.INDEX or node.shape:
        return False
    leaves = [n for n in toposort((node,)) if not n.srcs]
    return all(isinstance(n.arg, Var | int) for n in leaves) and any(
        isinstance(n.arg, Var) for n in leaves
    )


def _short(arg: Any) -> str:
    text = "" if arg is None else repr(arg)
    return text if len(text) < 60 else text[:57] + "..."


# --- leaves' arguments ---------------------------------------------------------------------------


class Storage:
    """The identity of one stored array: what the INPUT node of a realised tensor names.

    Two storages with equal contents are different; that is what keeps state apart from value.
    `buffer` is the device memory, filled in by the runtime; the language never looks at it.
    """

    __slots__ = ("shape", "dtype", "device", "buffer", "__weakref__")

    def __init__(self, shape: Shape, dtype: DType, device: str = "CPU", buffer: Any = None) -> None:
        self.shape, self.dtype, self.device, self.buffer = shape, dtype, device, buffer

    def __repr__(self) -> str:
        return f"Storage({self.dtype.name}{list(self.shape)} on {self.device})"


@dataclass(frozen=True)
class Param:
    """Parameter number `index` of a body. Equal parameters are equal, so equal bodies are too."""

    index: int
    shape: Shape
    dtype: DType


@dataclass(frozen=True)
class Var:
    """A symbolic size: low <= name <= high, bound to a number when a program is called."""

    name: str
    low: int
    high: int
    shape: Shape = ()
    dtype: DType = dt.INDEX


# --- interning -----------------------------------------------------------------------------------

_table: dict[tuple, weakref.ref] = {}


class _Entry(weakref.ref):
    __slots__ = ("key",)
    key: tuple


def _forget(entry: _Entry, table: dict = _table) -> None:
    if table.get(entry.key) is entry:
        del table[entry.key]


def const_bits(value: Any, dtype: DType) -> Any:
    """What tells constants apart: 0.0 from -0.0, and one NaN from another."""
    return struct.pack("<d", value) if dtype.is_float else value


def make(op: Op, srcs: tuple[Node, ...] = (), arg: Any = None, dtype: DType | None = None) -> Node:
    """The node `op(srcs, arg)`, checked against the op's row.

    `dtype` is needed only where the row says "the dtype asked for". Raises ShapeError, DTypeError
    or GraphError, naming the operation and its operands.
    """
    key_arg = arg
    if op is ops.CONST and dtype is not None:
        key_arg = const_bits(arg, dtype)
    elif op is ops.PAD:
        key_arg = (arg[0], const_bits(arg[1], srcs[0].dtype))
    key = (op, dtype, key_arg, *map(id, srcs))
    entry = _table.get(key)
    if entry is not None:
        found = entry()
        if found is not None:
            return found
    if op.arity >= 0 and len(srcs) != op.arity:
        raise GraphError(f"{op.name}: takes {op.arity} sources, got {len(srcs)}")
    try:
        shape, result = op.shape(srcs, arg, dtype), op.dtype(srcs, arg, dtype)
    except MuladdError as error:
        raise type(error)(f"{op.name}: {error}") from None
    return _interned(key, op, srcs, arg, shape, result)


def stored(storage: Storage) -> Node:
    """The INPUT node of a storage; quicker than `make`, because a storage is always well-formed."""
    key = (ops.INPUT, None, storage)
    entry = _table.get(key)
    found = entry() if entry is not None else None
    if found is not None:
        return found
    return _interned(key, ops.INPUT, (), storage, storage.shape, storage.dtype)


def _interned(
    key: tuple, op: Op, srcs: tuple[Node, ...], arg: Any, shape: Shape, dtype: DType
) -> Node:
    """A new node, found by this key from now on."""
    node = object.__new__(Node)
    node.op, node.srcs, node.arg, node.memo = op, srcs, arg, None
    node.shape, node.dtype = shape, dtype
    new = _Entry(node, _forget)
    new.key = key
    _table[key] = new
    return node


def interned() -> int:
    """How many nodes are alive (the tests watch it for leaks)."""
    return len(_table)


# --- constructors --------------------------------------------------------------------------------


def const(value: Any, dtype: DType, shape: Shape = ()) -> Node:
    """The number `value` as a dtype, repeated to a shape. Integers wrap, floats round, to it."""
    if dtype.is_float:
        return _constant(struct.pack("<d", value), dtype, shape)
    return _constant(bool(value) if dtype is dt.bool_ else int(value), dtype, shape)


@lru_cache(maxsize=512)  # few numbers occur again and again
def _constant(number: Any, dtype: DType, shape: Shape) -> Node:
    """A constant by its bits (0.0 is not -0.0) or its whole number."""
    value: Any = number
    if dtype.is_float:
        value = _rounded(number, dtype)
    elif dtype is dt.bool_:
        value = bool(number)
    else:
        value &= (1 << dtype.bits) - 1
        if dtype.kind == "i" and value >> (dtype.bits - 1):
            value -= 1 << dtype.bits
    node = make(ops.CONST, (), value, dtype)
    return make(ops.EXPAND, (node,), shape) if shape else node


@lru_cache(maxsize=4096)
def _rounded(bits: bytes, dtype: DType) -> float:
    """A number (by its bits: 0.0 is not -0.0) rounded to a float type."""
    value = struct.unpack("<d", bits)[0]
    return float(dt.decode(dt.encode(_scalar(value, dtype), dtype), dtype)[0])


def _scalar(value: Any, dtype: DType) -> Any:
    import numpy as np

    with np.errstate(over="ignore"):
        return np.array([value], dtype=dtype.numpy)


def var(name: str, low: int, high: int) -> Node:
    """A symbolic size `name` with low <= name <= high."""
    if not 0 <= low <= high:
        raise GraphError(f"var {name!r}: needs 0 <= low <= high, got {low} and {high}")
    return make(ops.INPUT, (), Var(name, low, high))


def param(index: int, shape: Shape, dtype: DType) -> Node:
    return make(ops.INPUT, (), Param(index, shape, dtype))


def iota(n: Dim, dtype: DType = dt.INDEX) -> Node:
    return make(ops.IOTA, (), n, dtype)


def is_const(node: Node, value: Any = None) -> bool:
    """Whether a node is a constant, possibly expanded or reshaped (and equal to `value`)."""
    while node.op in (ops.EXPAND, ops.RESHAPE, ops.PERMUTE):
        node = node.srcs[0]
    return node.op is ops.CONST and (value is None or node.arg == value)


# --- bodies --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Body:
    """A sub-graph with parameters: what CALL applies and SCAN repeats.

    outs are its results; params are their INPUT(Param) leaves in order of index (a body may leave
    parameters unused). No other body's parameters may occur in it. `name` is for people, and
    `gradient`, when given, is a Body that replaces its derivative: it takes the parameters, the
    results and the results' cotangents, and returns the parameters' cotangents. `recompute` asks
    that nothing inside be kept for the derivative: a CALL of such a body is never inlined (inlined,
    its nodes would be the same objects as their recomputation). `memo` is scratch space, as a
    node's.
    """

    outs: tuple[Node, ...]
    params: tuple[Node, ...]
    name: str = ""
    gradient: Body | None = field(default=None, repr=False)
    recompute: bool = False
    memo: dict = field(default_factory=dict, compare=False, repr=False)
    _hash: int = field(default=0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        parts = (self.outs, self.params, self.name, self.gradient, self.recompute)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:  # kept, because every CALL of a body asks for it
        return self._hash

    def check(self, srcs: tuple[Node, ...], start: int = 0) -> None:
        for i, (p, s) in enumerate(zip(self.params[start:], srcs)):
            if p.dtype is not s.dtype or not ops.equal_shapes(p.shape, s.shape):
                raise GraphError(
                    f"body {self.name!r}: parameter {i + start} is {p.dtype.name}{list(p.shape)}, "
                    f"got {s.dtype.name}{list(s.shape)}"
                )


@dataclass(frozen=True)
class CallArg:
    """Which result of which body. Equal calls differ only in `out`, and are computed together."""

    body: Body
    out: int = 0

    def result_shape(self, srcs: tuple[Node, ...]) -> Shape:
        if len(srcs) != len(self.body.params):
            raise GraphError(f"takes {len(self.body.params)} sources, got {len(srcs)}")
        self.body.check(srcs)
        return self.body.outs[self.out].shape

    def result_dtype(self, srcs: tuple[Node, ...]) -> DType:
        return self.body.outs[self.out].dtype


@dataclass(frozen=True)
class ScanArg:
    """`length` repetitions of a body.

    Sources and parameters: `carries` carried values, then `stacked` inputs (a source has a leading
    axis of `length`; the parameter is one slice of it), then values that every step sees alike.
    Results of the body: the new carried values, then one slice of each stacked output. `out`
    selects: a final carried value, or a stacked output with a leading axis of `length`. With
    `reverse` the steps run from the last slice to the first.
    """

    body: Body
    length: Dim
    carries: int
    stacked: int
    reverse: bool = False
    out: int = 0

    def result_shape(self, srcs: tuple[Node, ...]) -> Shape:
        body = self.body
        if len(srcs) != len(body.params) or len(body.outs) < self.carries:
            raise GraphError(f"takes {len(body.params)} sources, got {len(srcs)}")
        body.check(srcs[: self.carries])
        for i in range(self.carries):
            new, old = body.outs[i], body.params[i]
            if new.dtype is not old.dtype or not ops.equal_shapes(new.shape, old.shape):
                raise GraphError(
                    f"carried value {i} enters as {old.dtype.name}{list(old.shape)} and leaves as "
                    f"{new.dtype.name}{list(new.shape)}; a carried value keeps its shape and dtype"
                )
        for i in range(self.carries, self.carries + self.stacked):
            s, p = srcs[i], body.params[i]
            if not (s.shape and ops.equal_dims(s.shape[0], self.length)) or s.dtype is not p.dtype \
                    or not ops.equal_shapes(s.shape[1:], p.shape):  # fmt: skip
                raise GraphError(
                    f"stacked input {i} is {s.dtype.name}{list(s.shape)}; the body takes slices "
                    f"{p.dtype.name}{list(p.shape)}, {self.length} of them"
                )
        body.check(srcs[self.carries + self.stacked :], self.carries + self.stacked)
        shape = body.outs[self.out].shape
        return shape if self.out < self.carries else (self.length, *shape)

    def result_dtype(self, srcs: tuple[Node, ...]) -> DType:
        return self.body.outs[self.out].dtype


# --- walking -------------------------------------------------------------------------------------


def toposort(roots: Iterable[Node], into: Callable[[Node], bool] | None = None) -> list[Node]:
    """Every node reachable from the roots, sources before users, each once.

    `into(node)` false keeps the walk from entering that node's sources. Bodies are not entered.
    """
    order: list[Node] = []
    done: set[Node] = set()
    entered: list[Node] = []
    stack: list[Node | None] = [*roots]
    stack.reverse()
    push, pop, add, emit = stack.append, stack.pop, done.add, order.append
    while stack:
        node = pop()
        if node is None:  # the sources of the node that was entered last are done
            node = entered.pop()
        elif node in done:
            continue
        elif node.srcs and (into is None or into(node)):
            entered.append(node)
            push(None)
            for s in node.srcs[::-1]:  # no list comprehension: this is the compiler's inner loop
                if s not in done:
                    push(s)
            continue
        add(node)
        emit(node)
    return order


def substitute(roots: tuple[Node, ...], replace: dict[Node, Node]) -> tuple[Node, ...]:
    """The roots with every node that is a key of `replace` exchanged for its value.

    Symbolic sizes inside shapes are exchanged too where `replace` names a symbolic variable.
    """
    done: dict[Node, Node] = dict(replace)
    sizes = {k: v for k, v in replace.items() if k.op is ops.INPUT and isinstance(k.arg, Var)}
    for node in toposort(roots, into=lambda n: n not in done):
        if node in done:
            continue
        srcs = tuple([done[s] for s in node.srcs])
        arg = _substitute_arg(node.arg, sizes) if sizes else node.arg
        changed = any(a is not b for a, b in zip(srcs, node.srcs)) or arg is not node.arg
        done[node] = rebuild(node, srcs, arg) if changed else node
    return tuple(done[r] for r in roots)


def _substitute_arg(arg: Any, sizes: dict[Node, Node]) -> Any:
    if isinstance(arg, Node):
        return substitute((arg,), sizes)[0]
    if isinstance(arg, tuple):
        new = tuple(_substitute_arg(a, sizes) for a in arg)
        return new if any(a is not b for a, b in zip(new, arg)) else arg
    return arg


def rebuild(node: Node, srcs: tuple[Node, ...], arg: Any = ...) -> Node:
    """The same operation over other sources."""
    if (arg is ... or arg is node.arg) and len(srcs) == len(node.srcs):
        for a, b in zip(srcs, node.srcs):
            if a.dtype is not b.dtype or a.shape != b.shape:
                break
        else:
            return _moved(node, srcs)
    return make(node.op, srcs, node.arg if arg is ... else arg, node.dtype if _asks(node) else None)


def _moved(node: Node, srcs: tuple[Node, ...]) -> Node:
    """The same operation over sources of the same shapes and dtypes, which need no second check."""
    op, arg = node.op, node.arg
    key_arg = arg
    if op is ops.CONST:
        key_arg = const_bits(arg, node.dtype)
    elif op is ops.PAD:
        key_arg = (arg[0], const_bits(arg[1], node.dtype))
    key = (op, node.dtype if op in _ASKING else None, key_arg, *map(id, srcs))
    entry = _table.get(key)
    found = entry() if entry is not None else None
    return _interned(key, op, srcs, arg, node.shape, node.dtype) if found is None else found


_ASKING = {ops.CONST, ops.IOTA, ops.CAST, ops.BITCAST, ops.RANGE, ops.LOAD, ops.READ}


def _asks(node: Node) -> bool:
    return node.op in _ASKING


def variables(roots: Iterable[Node]) -> list[Node]:
    """The symbolic variables that roots depend on, through sources and through shapes."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    plain: set[Shape] = set()  # shapes, of which graphs have few, that were looked at
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        stack += node.srcs
        if node.shape not in plain:
            plain.add(node.shape)
            stack += [d for d in node.shape if isinstance(d, Node)]
        if node.arg is None or node.arg is node.shape:
            continue
        if node.op is ops.INPUT:
            if isinstance(node.arg, Var):
                found[node] = None
        else:
            stack += _dims(node.arg)
    return list(found)


def _dims(arg: Any) -> Iterator[Node]:
    """The nodes in an operation's argument."""
    stack = [arg]
    while stack:
        item = stack.pop()
        if isinstance(item, Node):
            yield item
        elif isinstance(item, tuple):
            stack.extend(item)
        elif isinstance(item, ScanArg | CallArg):
            stack.extend(item.body.outs)
            if isinstance(item, ScanArg):
                stack.append(item.length)
