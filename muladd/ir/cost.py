"""What a graph costs, from the graph alone: FLOPs, bytes, peak memory, before anything runs.

The language has no data-dependent control flow, so these are facts and not estimates: the FLOPs
equal, op by op, what the interpreter counts while it runs. Peak memory is that of a model, below.

**The model of memory.** Nodes run in `toposort` order. What is stored: outputs, results of SUM,
AMAX, CALL and SCAN, operands of CALL and SCAN, and elementwise results with more than one reader.
Everything else is computed where it is read (a compiler fuses it), and keeps what it reads alive:
movement, constants, iota, and elementwise results with one reader. A stored value lives until the
last stored value that reads it; outputs live to the end; inputs belong to the caller and are not
counted. While a CALL or SCAN runs, the peak of its body comes on top, which holds the body's
results (so new and old carried values exist side by side).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from muladd.ir import ops, sym
from muladd.ir.node import Body, Dim, Node, ScanArg, Shape, Storage, Var, toposort


@dataclass(frozen=True)
class Cost:
    """flops_by_op: FLOPs per op name (ops that cost nothing are left out). bytes_read: all inputs
    once; bytes_written: all outputs once. With symbolic sizes these are Dims, unless variables
    were given; peak_bytes is then the peak with every symbolic size at its greatest.
    """

    flops_by_op: dict[str, Dim]
    bytes_read: Dim
    bytes_written: Dim
    peak_bytes: int

    @property
    def flops(self) -> Dim:
        return sym.sum_of(self.flops_by_op.values())


def cost(outputs: Sequence[Node], variables: Mapping[str, int] | None = None) -> Cost:
    """The static cost of computing `outputs`; a CALL counts its whole body once per distinct
    application, a SCAN `length` times its body.

    Raises KeyError where `variables` is given but lacks a symbolic size.
    """
    pricing = _Pricing(None if variables is None else dict(variables))
    whole = pricing.scope(tuple(outputs))
    read = [n for n in whole.inputs if not isinstance(n.arg, Var)]
    flops = {name: n for name, n in whole.flops.items() if not (isinstance(n, int) and n == 0)}
    return Cost(
        flops,
        sym.sum_of(map(pricing.bytes, read)),
        sym.sum_of(map(pricing.bytes, dict.fromkeys(outputs))),
        whole.peak,
    )


def application(node: Node) -> tuple:
    """What tells one application of a body from another, whichever of its results is meant: CALL
    and SCAN nodes for which this is equal are computed together."""
    arg = node.arg
    if isinstance(arg, ScanArg):
        return (arg.body, arg.length, arg.carries, arg.stacked, arg.reverse, node.srcs)
    return (arg.body, node.srcs)


@dataclass
class _Scope:
    """The price of one graph, or of one run of a body."""

    flops: dict[str, Dim] = field(default_factory=dict)
    inputs: dict[Node, None] = field(default_factory=dict)  # storages, and own parameters
    peak: int = 0


class _Pricing:
    def __init__(self, variables: dict[str, int] | None) -> None:
        self.variables = variables
        self.bodies: dict[Body, _Scope] = {}
        self.numbers: dict[Node, int] = {}

    def scope(self, outputs: tuple[Node, ...]) -> _Scope:
        order = toposort(outputs)
        result = _Scope()
        applied: set[tuple] = set()
        transient: dict[Node, int] = {}
        for node in order:
            if node.op is ops.INPUT:
                result.inputs[node] = None
            elif node.op is ops.CALL or node.op is ops.SCAN:
                key = application(node)
                if key not in applied:
                    applied.add(key)
                    transient[node] = self.apply(node, result)
            elif node.op.flops:
                counted = node.srcs[0] if node.op.group == "reduce" else node
                work = sym.mul(self.elements(counted.shape), node.op.flops)
                result.flops[node.op.name] = sym.add(result.flops.get(node.op.name, 0), work)
        result.peak = _peak(order, outputs, self.greatest_bytes, transient)
        return result

    def apply(self, node: Node, into: _Scope) -> int:
        """Adds the price of one application of a body; returns the memory it needs meanwhile."""
        body = node.arg.body
        if body not in self.bodies:
            self.bodies[body] = self.scope(body.outs)
        inner = self.bodies[body]
        times = self.dim(node.arg.length) if node.op is ops.SCAN else 1
        for name, flops in inner.flops.items():
            into.flops[name] = sym.add(into.flops.get(name, 0), sym.mul(flops, times))
        into.inputs.update((n, None) for n in inner.inputs if isinstance(n.arg, Storage))
        return inner.peak

    def dim(self, d: Dim) -> Dim:
        if isinstance(d, int) or self.variables is None:
            return d
        if d not in self.numbers:
            self.numbers[d] = sym.evaluate(d, self.variables)
        return self.numbers[d]

    def elements(self, shape: Shape) -> Dim:
        return sym.product([self.dim(d) for d in shape])

    def bytes(self, node: Node) -> Dim:
        return sym.mul(self.elements(node.shape), node.dtype.itemsize)

    def greatest_bytes(self, node: Node) -> int:
        total = node.dtype.itemsize
        for d in node.shape:
            total *= d if isinstance(d, int) else sym.bounds(self.dim(d))[1]
        return total


_VIEWS = frozenset(ops.MOVEMENT)


def _peak(
    order: list[Node], outputs: tuple[Node, ...], size: Callable[[Node], int],
    transient: dict[Node, int],
) -> int:  # fmt: skip
    """The most bytes alive at once, under the model in this module's docstring."""
    end = len(order)
    position = {node: i for i, node in enumerate(order)}
    stored = _stored(order, outputs)
    until = list(range(end))
    for out in outputs:
        until[position[out]] = end
    for i in range(end - 1, -1, -1):
        last = i if stored[i] else until[i]
        for s in order[i].srcs:
            j = position[s]
            if until[j] < last:
                until[j] = last
    alive = peak = 0
    ending: dict[int, int] = {}  # position -> bytes that are free after it
    for i, node in enumerate(order):
        if stored[i]:
            n = size(node)
            alive += n
            ending[until[i]] = ending.get(until[i], 0) + n
        peak = max(peak, alive + transient.get(node, 0))
        alive -= ending.pop(i, 0)
    return peak


def _stored(order: list[Node], outputs: tuple[Node, ...]) -> list[bool]:
    """Which values of a scope are kept in memory rather than computed where they are read."""
    wanted = set(outputs)
    readers = dict.fromkeys(order, 0)
    for node in reversed(order):
        if node.op is ops.CALL or node.op is ops.SCAN:
            wanted.update(node.srcs)
        count = readers[node] if node.op in _VIEWS else 1
        for s in node.srcs:
            readers[s] += count
    structural = (ops.SUM, ops.AMAX, ops.CALL, ops.SCAN)
    return [
        n.op is not ops.INPUT
        and (n in wanted or n.op in structural or (n.op.elementwise and readers[n] > 1))
        for n in order
    ]
