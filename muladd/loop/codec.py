"""A kernel as JSON and back, so that other processes, and other people, can be given one.

    {"nodes": [[op, dtype, sources, arg], ...], "shared": [...], "stages": [...], ...}

Nodes stand after their sources and are named by their place in the list; a size or an index is a
number or [node]. Kernels of symbolic sizes are not written. `decode` trusts nothing: what it gives
is made by the language's own constructors, and whoever runs it proves its accesses.
"""

from __future__ import annotations

from typing import Any

from muladd.errors import FormatError
from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.loop.kernel import Argument, Kernel, Stage

_MOST_NODES = 200_000
_PLAIN = (int, bool, str, type(None))


def encode(kernel: Kernel) -> dict[str, Any]:
    """The kernel as lists, numbers and texts. Raises FormatError if its sizes are symbolic."""
    if kernel.variables():
        raise FormatError("kernel: symbolic sizes are not written; fix them first")
    roots: list[Node] = [*kernel.shared]
    for s in kernel.stages:
        roots += [s.value, *s.axes, *s.reduced, sym.as_node(s.position)]
    number: dict[Node, int] = {}
    nodes: list[list[Any]] = []
    for n in toposort(tuple(roots)):
        number[n] = len(nodes)
        nodes.append([n.op.name, n.dtype.name, [number[x] for x in n.srcs], _arg(n)])
    each = lambda xs: [number[x] for x in xs]  # noqa: E731
    stages = [
        [s.name, each(s.axes), number[s.value], s.reduction.name if s.reduction else None,
         each(s.reduced), s.argument, _dim(s.position, number), s.scatter, s.contracted, s.lanes]
        for s in kernel.stages
    ]  # fmt: skip
    arguments = [[a.dtype.name, a.size, a.written] for a in kernel.arguments]
    return {"nodes": nodes, "shared": each(kernel.shared), "stages": stages,
            "arguments": arguments, "exact": kernel.exact}  # fmt: skip


def _dim(x: Dim, number: dict[Node, int]) -> Any:
    return x if isinstance(x, int) else [number[x]]


def _arg(n: Node) -> Any:
    if n.op is ops.CONST:
        return float(n.arg).hex() if n.dtype.is_float else n.arg
    if n.op is ops.RANGE:
        return [n.arg.name, n.arg.extent]
    if n.op is ops.READ:
        return list(n.arg)
    if not isinstance(n.arg, _PLAIN):
        raise FormatError(f"kernel: {n.op.name} of {n.arg!r} is not written")
    return n.arg


def decode(given: Any) -> Kernel:
    """The kernel of such a description. Raises FormatError where it is none."""
    try:
        return _Reader(given).kernel
    except Exception as error:  # whatever a stranger's description provokes
        raise FormatError(f"kernel: its description is damaged: {error}") from None


class _Reader:
    def __init__(self, given: dict[str, Any]) -> None:
        self.nodes: list[Node] = []
        if len(given["nodes"]) > _MOST_NODES:
            raise ValueError(f"{len(given['nodes'])} nodes")
        for op, kind, sources, arg in given["nodes"]:
            self.nodes.append(self.node(op, dtype.dtype(kind), self.some(sources), arg))
        self.kernel = Kernel(
            tuple(self.stage(*s) for s in given["stages"]), self.some(given["shared"]),
            tuple(Argument(i, dtype.dtype(kind), _number(size), written is True)
                  for i, (kind, size, written) in enumerate(given["arguments"])),
            given["exact"] is True,
        )  # fmt: skip

    def some(self, numbers: list[int]) -> tuple[Node, ...]:
        return tuple(self.nodes[_number(i)] for i in numbers)

    def node(self, op: str, kind: dtype.DType, srcs: tuple[Node, ...], arg: Any) -> Node:
        row = ops.by_name(op)
        if row is ops.CONST:
            return make(row, (), float.fromhex(arg) if kind.is_float else arg, kind)
        if row is ops.RANGE:
            name, extent = arg
            return sym.axis(str(name), _number(extent))
        if row is ops.READ:
            arg = (str(arg[0]), _number(arg[1]))
        asks = row in (ops.CAST, ops.BITCAST, ops.LOAD, ops.READ)
        return make(row, srcs, arg, kind if asks else None)

    def stage(
        self, name: str, axes: list, value: int, reduction: str | None, reduced: list,
        argument: int | None, position: Any, scatter: bool, contracted: bool, lanes: int,
    ) -> Stage:  # fmt: skip
        where: Dim = _number(position) if isinstance(position, int) else self.some(position)[0]
        return Stage(
            str(name), self.some(axes), self.nodes[_number(value)],
            None if reduction is None else ops.by_name(reduction), self.some(reduced),
            None if argument is None else _number(argument), where, scatter is True,
            contracted is True, _number(lanes),
        )  # fmt: skip


def _number(given: Any) -> int:
    if type(given) is not int or not 0 <= given < 1 << 48:
        raise ValueError(f"a size or number: {given!r}")
    return given
