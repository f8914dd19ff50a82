"""What is cut off a reduction is not computed.

    slice(sum(a * b))  ->  sum(slice(a) * slice(b))

Where nobody else wants the rest: the derivative of a padded convolution, say, is cut to the image
without its border. Only in the fast profile, whose sums may change their order.
"""
from __future__ import annotations

from collections import Counter
from typing import Any

from muladd.ir import Node, make, ops, rebuild, toposort


def crop(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The graph with slices of reductions taken of what they reduce."""
    order = toposort(outputs)
    users = Counter(s for n in order for s in set(n.srcs))
    users.update(outputs)
    done: dict[Node, Node] = {}
    for n in order:
        srcs = tuple(done[s] for s in n.srcs)
        total = _reduction_below(n, users) if n.op is ops.SLICE else None
        if total is not None:
            done[n] = _cropped(n, total, done[total.srcs[0]])
        else:
            done[n] = n if all(a is b for a, b in zip(srcs, n.srcs)) else rebuild(n, srcs)
    return tuple(done[o] for o in outputs)


def _reduction_below(n: Node, users: Counter[Node]) -> Node | None:
    """The reduction that a slice alone uses, perhaps with axes of one element more or fewer."""
    below = n.srcs[0]
    while below.op is ops.RESHAPE and users[below] == 1 and _long(below) == _long(below.srcs[0]):
        below = below.srcs[0]
    if below.op.group != "reduce" or users[below] > 1 or users[n.srcs[0]] > 1:
        return None
    return below if len(_long(below)) == len(_long(n.srcs[0])) else None


def _long(n: Node) -> list[Any]:
    """The sizes of the axes that have more than one element."""
    return [d for d in n.shape if not ops.equal_dims(d, 1)]


def _cropped(n: Node, total: Node, source: Node) -> Node:
    taken = iter(t for t, d in zip(n.arg, n.srcs[0].shape) if not ops.equal_dims(d, 1))
    kept = iter((0, d, 1) if ops.equal_dims(d, 1) else next(taken) for d in total.shape)
    whole = tuple((0, d, 1) if a in total.arg else next(kept) for a, d in enumerate(source.shape))
    if source.op.elementwise:  # a product stays one
        inner = rebuild(source, tuple(make(ops.SLICE, (s,), whole) for s in source.srcs))
    else:
        inner = make(ops.SLICE, (source,), whole)
    result = make(total.op, (inner,), total.arg)
    return result if result.shape == n.shape else make(ops.RESHAPE, (result,), n.shape)
