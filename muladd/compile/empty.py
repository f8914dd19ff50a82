"""Arrays without elements never reach the kernels.

    x of shape (n, 0)                ->  a constant of that shape, which nobody computes
    sum of x over its empty axis     ->  zeros (AMAX: the least value)

Sizes that are symbolic may be zero when a program runs; then loops have no turns, and that is all.
"""
from __future__ import annotations

from muladd.ir import Node, const, ops, sym, toposort
from muladd.rewrite.engine import keep_sum_form


def is_empty(node: Node) -> bool:
    """Whether a node certainly has no elements."""
    return bool(ops.equal_dims(sym.product(node.shape), 0))


def drop_empty(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The outputs with everything that has no elements, or reduces none, written as constants."""
    done: dict[Node, Node] = {}
    for n in toposort(outputs):
        srcs = tuple(done[s] for s in n.srcs)
        if is_empty(n):
            done[n] = const(0, n.dtype, n.shape)
        elif n.op.group == "reduce" and is_empty(n.srcs[0]):
            start = n.dtype.min if n.op is ops.AMAX else 0
            done[n] = const(start, n.dtype, n.shape)
        else:
            same = all(a is b for a, b in zip(srcs, n.srcs))
            done[n] = n if same else keep_sum_form(n, srcs)
    return tuple(done[o] for o in outputs)
