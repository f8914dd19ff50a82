"""From graph to stage: the value of a graph node at given indices, as one scalar expression.

Movement operations vanish here: each is a change of indices (PAD also adds a condition). The walk
stops at inputs and at nodes that have a stage of their own, which become READ nodes.
"""

from __future__ import annotations

from collections.abc import Callable

from muladd.errors import GraphError
from muladd.ir import Dim, Node, Storage, Var, dtype, make, ops, sym
from muladd.ir.sym import Condition

Indices = tuple[Dim, ...]
OPAQUE = frozenset((ops.SCAN, ops.CALL))  # their bodies are graphs of their own


class Indexer:
    """Builds stage values. `reader(node, indices, guard)` gives the READ of a node that has a
    stage or a buffer, or None for a node whose expression is to be written out."""

    def __init__(self, reader: Callable[[Node, Indices, Condition], Node | None]) -> None:
        self.reader = reader
        self.memo: dict[tuple, Node] = {}

    def at(self, root: Node, indices: Indices, guard: Condition = True) -> Node:
        """root[indices], where guard is true (elsewhere the result does not matter)."""
        stack: list[tuple[Node, Indices, Condition]] = [(root, indices, guard)]
        memo = self.memo
        while stack:
            key = stack[-1]
            if key in memo:
                stack.pop()
                continue
            missing = self._try(key)
            if missing:
                stack.extend(missing)
            else:
                stack.pop()
        return memo[root, indices, guard]

    def _try(self, key: tuple[Node, Indices, Condition]) -> list:
        """Compute memo[key], or say which other keys are needed first."""
        node, idx, guard = key
        found = self.reader(node, idx, guard)
        if found is not None:
            self.memo[key] = found
            return []
        op = node.op
        if op is ops.CONST:
            self.memo[key] = node
            return []
        if op is ops.INPUT and isinstance(node.arg, Var):
            self.memo[key] = node
            return []
        if op is ops.IOTA:
            at = sym.as_node(idx[0])
            self.memo[key] = (
                at if node.dtype is dtype.INDEX else make(ops.CAST, (at,), None, node.dtype)
            )
            return []
        if op.elementwise:
            needed = [(s, idx, guard) for s in node.srcs]
        elif op in ops.MOVEMENT:
            source = node.srcs[0]
            inner, condition = moved(node, idx)
            needed = [(source, inner, sym.both(guard, condition))]
        else:
            raise GraphError(f"{op.name} needs a stage of its own")
        missing = [k for k in needed if k not in self.memo]
        if missing:
            return missing
        values = tuple(self.memo[k] for k in needed)
        self.memo[key] = self._combine(node, values, needed[0][2], guard)
        return []

    def _combine(self, node: Node, values: tuple, inner: Condition, outer: Condition) -> Node:
        if node.op.elementwise:
            needs = node.op in (ops.CAST, ops.BITCAST)
            return make(node.op, values, None, node.dtype if needs else None)
        (value,) = values
        if node.op is not ops.PAD:
            return value
        return _padded(value, inner, outer, node.arg[1])


def _padded(value: Node, inner: Condition, outer: Condition, fill: object) -> Node:
    """`value` where `inner` holds, the fill elsewhere; a guarded load already gives zero there."""
    if inner is True or inner is outer:
        return value
    filler = make(ops.CONST, (), fill, value.dtype)
    if inner is False:
        return filler
    if value.op is ops.READ and fill == 0 and len(value.srcs) and value.srcs[-1] is inner:
        return value
    return make(ops.WHERE, (inner, value, filler))


def moved(node: Node, idx: Indices) -> tuple[Indices, Condition]:
    """Where element `idx` of a movement node comes from, and whether it comes from anywhere."""
    source, arg = node.srcs[0], node.arg
    if node.op is ops.RESHAPE:
        return reshaped(idx, node.shape, source.shape), True
    if node.op is ops.PERMUTE:
        inner: list[Dim] = [0] * len(idx)
        for i, a in enumerate(arg):
            inner[a] = idx[i]
        return tuple(inner), True
    if node.op is ops.EXPAND:
        tail = idx[len(idx) - source.ndim :]
        same = node.shape[len(idx) - source.ndim :]
        return tuple(
            0 if ops.equal_dims(n, 1) and not ops.equal_dims(m, 1) else i
            for i, n, m in zip(tail, source.shape, same)
        ), True
    if node.op is ops.SLICE:
        return tuple(
            sym.add(start, sym.mul(i, step)) for i, (start, _, step) in zip(idx, arg)
        ), True
    condition: Condition = True
    out: list[Dim] = []
    at: Dim
    for index, n, (low, high, interior) in zip(idx, source.shape, arg[0]):
        at = sym.sub(index, low)
        if interior:
            condition = sym.both(condition, sym.less(-1, at))
            rest = sym.mod(at, interior + 1)
            condition = sym.both(condition, sym.less(rest, 1))
            at = sym.div(at, interior + 1)
            condition = sym.both(condition, sym.less(at, n))
        elif low != 0 or high != 0:
            condition = sym.both(condition, sym.inside(at, n))
        out.append(at)
    return tuple(out), condition


def reshaped(idx: Indices, old: tuple[Dim, ...], new: tuple[Dim, ...]) -> Indices:
    """Indices into shape `old` as indices into shape `new` (equal element counts).

    The two shapes are cut where their sizes agree, so that untouched axes stay untouched.
    """
    if any(ops.equal_dims(n, 0) for n in old):
        return tuple(0 for _ in new)
    out: list[Dim] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i2, j2 = i + (i < len(old)), j + (j < len(new))
        a, b = sym.product(old[i:i2]), sym.product(new[j:j2])
        while not ops.equal_dims(a, b):
            grow_old = j2 >= len(new) or (i2 < len(old) and sym.is_less(a, b) is True)
            if grow_old or j2 >= len(new):
                if i2 >= len(old):
                    break
                a, i2 = sym.mul(a, old[i2]), i2 + 1
            else:
                b, j2 = sym.mul(b, new[j2]), j2 + 1
        if i2 - i == 1 and j2 - j == 1:
            out.append(idx[i])
        else:
            out.extend(sym.unflatten(sym.flatten(idx[i:i2], old[i:i2]), new[j:j2]))
        i, j = i2, j2
    return tuple(out)


def forward(node: Node, idx: Indices) -> Indices:
    """The other way round, for PERMUTE and RESHAPE: where element idx of the source goes."""
    if node.op is ops.PERMUTE:
        return tuple(idx[a] for a in node.arg)
    return reshaped(idx, node.srcs[0].shape, node.shape)


def is_buffer(node: Node) -> bool:
    """Whether a node is an array in memory (rather than an expression)."""
    return node.op in OPAQUE or (node.op is ops.INPUT and not isinstance(node.arg, Var))


__all__ = ["Indexer", "Indices", "Storage", "forward", "is_buffer", "moved", "reshaped"]
