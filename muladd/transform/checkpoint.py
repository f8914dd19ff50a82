"""Checkpointing: keep a part's inputs, and compute its inside again when going backwards.

Nodes are interned: recomputed nodes over the same sources *are* the forward ones, so a graph
cannot say "compute this again" by repeating it. The part therefore becomes a Body marked
`recompute`, used by a CALL. Its parameters are other nodes than the values passed, so its inside
shares nothing with the outside; its gradient body (marked likewise) takes parameters and
cotangents only, and holds its own copy of the forward computation. The barrier holds as long as
CALLs of marked bodies are not inlined, which is what the mark tells the compiler.
"""
from __future__ import annotations

from collections.abc import Sequence

from muladd.ir import ops
from muladd.ir.node import Body, Node, Var, toposort
from muladd.transform import build as b
from muladd.transform.residuals import CHEAP, body_over

_CHEAP = CHEAP | {ops.DIV, ops.MOD} | set(ops.MOVEMENT)
_NOTHING = {ops.CONST, ops.IOTA}  # made where they are needed
_MOST_UNPACKED = 64  # nodes


def lift(
    outputs: Sequence[Node], inputs: Sequence[Node], name: str = "", recompute: bool = False
) -> tuple[Body, list[Node]]:
    """The part of a graph between inputs and outputs as a body, and what else it reads.

    The body's parameters are the inputs, then the captured nodes: those that no input leads to but
    that the part reads (as large as possible: they stay outside and are computed once). Constants
    and symbolic sizes are repeated inside. So outputs[i] equals CALL(body, inputs + captured, i).
    """
    stops = dict.fromkeys(inputs)
    order = toposort(outputs, into=lambda n: n not in stops)
    inside = set(stops)
    if recompute:
        inside |= _unpacked(order, inside)
    fixed: set[Node] = set()  # constants: worth nothing as parameters
    for n in order:
        if n in inside:
            continue
        if any(s in inside for s in n.srcs):
            inside.add(n)
        elif all(s in fixed for s in n.srcs) and (n.op is not ops.INPUT or _is_size(n)):
            fixed.add(n)
    read = [s for n in order if n in inside and n not in stops for s in n.srcs]
    captured = dict.fromkeys(
        n for n in (*read, *outputs) if n not in inside and n not in fixed
    )
    leaves = [*stops, *captured]
    return body_over(leaves, outputs, name, recompute), list(captured)


def _unpacked(order: Sequence[Node], inputs: set[Node]) -> set[Node]:
    """What would be captured and is larger than all it is made of by cheap operations: the numbers
    of a quantised weight, a vector along many rows. Handed over, it would have to lie in memory."""
    depends = set(inputs)
    read: dict[Node, None] = {}
    for n in order:
        if n not in inputs and any(s in depends for s in n.srcs):
            depends.add(n)
            read |= dict.fromkeys(s for s in n.srcs if s not in inputs)
    found: set[Node] = set()
    for n in read:
        if n in depends or n in found or not _is_cheap(n):
            continue
        made = toposort([n], into=_is_cheap)
        leaves = [m for m in made if not _is_cheap(m)]
        if len(made) <= _MOST_UNPACKED and sum(map(_bytes, leaves)) < _bytes(n):
            found |= set(made).difference(leaves)
    return found


def _is_cheap(n: Node) -> bool:
    """Also a part of cheap operations that is to be recomputed itself."""
    if n.op is not ops.CALL:
        return n.op in _CHEAP
    body = n.arg.body
    return body.recompute and all(
        m.op in _CHEAP or m.op in _NOTHING or m.op is ops.INPUT for m in toposort(body.outs)
    )


def _bytes(n: Node) -> int:
    size = n.dtype.itemsize
    for dim in n.shape:
        size *= dim if isinstance(dim, int) else 1
    return 0 if n.op in _NOTHING else size


def _is_size(n: Node) -> bool:
    return isinstance(n.arg, Var)


def checkpoint(
    outputs: Sequence[Node], inputs: Sequence[Node], name: str = "checkpoint"
) -> list[Node]:
    """The same outputs, of whose computation from `inputs` nothing is kept for the derivative."""
    distinct = list(dict.fromkeys(inputs))
    body, captured = lift(outputs, distinct, name, recompute=True)
    return b.calls(body, [*distinct, *captured])
