"""e to the power x and the cosine, which graphs spell with two operations, as one each.

exp(x) is EXP2(x * log2(e)) and cos(x) is SIN(x + pi/2). Rounding the product or the sum would cost
what it rounds: at x = 80 five bits, at x = 1e8 everything. So whatever runs a graph (interpreter or
compiler) first puts EXP and COS for these pairs. This belongs to the meaning of the exact profile,
and therefore happens before anything else can move the two operations together or apart.
"""
from __future__ import annotations

from collections.abc import Sequence

from muladd.ir import ops
from muladd.ir.node import Node, const, make, rebuild, toposort

LOG2_E = 1.4426950408889634
HALF_PI = 1.5707963267948966
_PAIRS = {ops.EXP2: (ops.MUL, LOG2_E, ops.EXP), ops.SIN: (ops.ADD, HALF_PI, ops.COS)}


def named(outputs: Sequence[Node]) -> tuple[Node, ...]:
    """The outputs with EXP and COS for the pairs that spell them (bodies are not entered)."""
    order = toposort(outputs)
    if not any(n.op in _PAIRS for n in order):
        return tuple(outputs)
    done: dict[Node, Node] = {}
    for n in order:
        srcs = tuple([done[s] for s in n.srcs])
        same = n if srcs == n.srcs else rebuild(n, srcs)
        done[n] = name(same) if n.op in _PAIRS else same
    return tuple([done[o] for o in outputs])


def name(node: Node) -> Node:
    """EXP or COS of x where the node spells that, else the node."""
    inner, number, outer = _PAIRS[node.op]
    (source,) = node.srcs
    if source.op is inner:
        wanted = const(number, source.dtype).arg
        for x, constant in (source.srcs, source.srcs[::-1]):
            while constant.op is ops.EXPAND:
                constant = constant.srcs[0]
            if constant.op is ops.CONST and constant.arg == wanted:
                return make(outer, (x,))
    return node
