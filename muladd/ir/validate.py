"""Checks a whole graph against the rules of the language again, whoever built or rewrote it.

`make` checks one node; here is what only a walk can see: that no body reads another's parameters,
that symbolic sizes are expressions over symbolic sizes alone, that no kernel op slipped in.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from muladd.errors import GraphError, MuladdError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.node import Body, Dim, Node, Param, ScanArg, Storage, Var, _asks, toposort

_SIZE_OPS = frozenset((
    ops.CONST, ops.ADD, ops.MUL, ops.DIV, ops.MOD, ops.MAX, ops.LT, ops.NE, ops.WHERE,
))  # fmt: skip


def validate(outputs: Sequence[Node], *, params: Iterable[Node] = ()) -> None:
    """Raises GraphError, naming the node, where the graph of `outputs` breaks a rule.

    params: the parameters that may occur outside of any body (a function being traced has some).
    """
    _Check().scope(tuple(outputs), frozenset(params), "the graph")


class _Check:
    def __init__(self) -> None:
        self.bodies: set[int] = set()  # by identity: those that were checked
        self.sizes: set[Node] = set()  # symbolic sizes that were checked
        self.variables: dict[str, Var] = {}

    def scope(self, outputs: tuple[Node, ...], params: frozenset[Node], where: str) -> None:
        for node in toposort(outputs):
            try:
                self.node(node, params)
            except MuladdError as error:
                raise GraphError(f"validate: in {where}: {node!r}: {error}") from None

    def node(self, node: Node, params: frozenset[Node]) -> None:
        op, arg = node.op, node.arg
        if op.group == "kernel" or op not in _TABLE:
            raise GraphError(f"{op.name} is no operation of a graph")
        if op.arity >= 0 and len(node.srcs) != op.arity:
            raise GraphError(f"takes {op.arity} sources, has {len(node.srcs)}")
        if op is ops.INPUT:
            self.leaf(node, params)
        elif op is ops.CONST:
            self.constant(arg, node.dtype)
        elif op is ops.PAD:
            self.constant(arg[1], node.dtype)
            if any(not isinstance(gap, int) or gap < 0 for _, _, gap in arg[0]):
                raise GraphError(f"interior padding is a number, at least 0; got {arg[0]}")
        elif op is ops.CALL or op is ops.SCAN:
            self.application(node)
        asked = node.dtype if _asks(node) else None
        if not ops.equal_shapes(op.shape(node.srcs, arg, asked), node.shape):
            raise GraphError(f"its shape should be {list(op.shape(node.srcs, arg, asked))}")
        if op.dtype(node.srcs, arg, asked) is not node.dtype:
            raise GraphError(f"its dtype should be {op.dtype(node.srcs, arg, asked).name}")
        for d in (*node.shape, *_dims(arg)):
            self.dim(d)
        if any(isinstance(d, int) and d < 0 for d in node.shape):
            raise GraphError("a size is negative")

    def leaf(self, node: Node, params: frozenset[Node]) -> None:
        arg = node.arg
        if isinstance(arg, Var):
            known = self.variables.setdefault(arg.name, arg)
            if known != arg:
                raise GraphError(f"symbolic size {arg.name!r} has two ranges: {known} and {arg}")
        elif isinstance(arg, Param):
            if node not in params:
                raise GraphError(f"parameter {arg.index} does not belong here")
        elif not isinstance(arg, Storage):
            raise GraphError(f"an INPUT is a Storage, a Param or a Var, got {type(arg).__name__}")

    def constant(self, value: Any, dtype: dt.DType) -> None:
        kinds = (float, int) if dtype.is_float else (bool, int)
        if not isinstance(value, kinds) or (
            not dtype.is_float and not dtype.min <= value <= dtype.max
        ):
            raise GraphError(f"{value!r} is no value of {dtype.name}; build it with ir.const")

    def dim(self, d: Dim) -> None:
        if isinstance(d, int) or d in self.sizes:
            return
        if d.dtype is not dt.INDEX or d.shape:
            raise GraphError(f"the size {d!r} is no int64 scalar")
        for n in toposort((d,), into=lambda n: n not in self.sizes):
            if n.op in _SIZE_OPS:
                continue
            if n.op is not ops.INPUT or not isinstance(n.arg, Var):
                raise GraphError(f"a size depends on {n!r}; sizes are over symbolic sizes alone")
            self.leaf(n, frozenset())
        self.sizes.add(d)

    def application(self, node: Node) -> None:
        arg, body = node.arg, node.arg.body
        if not 0 <= arg.out < len(body.outs):
            raise GraphError(f"result {arg.out} of a body with {len(body.outs)}")
        if isinstance(arg, ScanArg):
            if min(arg.carries, arg.stacked) < 0 or arg.carries + arg.stacked > len(body.params):
                raise GraphError(
                    f"{arg.carries} carried and {arg.stacked} stacked of {len(body.params)} values"
                )
            if isinstance(arg.length, int) and arg.length < 0:
                raise GraphError(f"length {arg.length}")
        self.body(body)

    def body(self, body: Body) -> None:
        if id(body) in self.bodies:
            return
        self.bodies.add(id(body))
        for i, p in enumerate(body.params):
            if p.op is not ops.INPUT or not isinstance(p.arg, Param) or p.arg.index != i:
                raise GraphError(f"body {body.name!r}: {p!r} stands where parameter {i} should")
            for d in p.shape:
                self.dim(d)
        self.scope(body.outs, frozenset(body.params), f"body {body.name!r}")
        if body.gradient is not None:
            self.gradient(body, body.gradient)

    def gradient(self, body: Body, gradient: Body) -> None:
        """It takes parameters, results, their cotangents; it gives the parameters' cotangents."""
        takes = [*body.params, *body.outs, *body.outs]
        for what, found, wanted in (
            ("takes", gradient.params, takes), ("gives", gradient.outs, body.params)
        ):  # fmt: skip
            if len(found) != len(wanted) or any(
                f.dtype is not w.dtype or not ops.equal_shapes(f.shape, w.shape)
                for f, w in zip(found, wanted)
            ):
                raise GraphError(
                    f"the gradient of body {body.name!r} {what} {list(found)}, expected values as "
                    f"{wanted}"
                )
        self.body(gradient)


_TABLE = frozenset(ops.OPS)


def _dims(arg: Any) -> list[Node]:
    """The symbolic sizes in an argument."""
    if isinstance(arg, Node):
        return [arg]
    if isinstance(arg, ScanArg):
        return _dims((arg.length,))
    if isinstance(arg, tuple):
        return [d for item in arg for d in _dims(item)]
    return []
