"""Splitting a body's derivative in two: what the forward run already knows, and the rest.

The cotangents of a body's parameters, written over its parameters P and its results' cotangents Q,
use many values that depend on P alone: the forward run computes them anyway. `residuals` picks
which of those to hand over; the derivative is then a body over residuals and Q.

What costs next to nothing to compute again is not handed over: constants, a few cheap elementwise
operations on parameters, and anything that a movement operation made of a smaller value.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from muladd.ir import ops
from muladd.ir.node import Body, Node, substitute, toposort
from muladd.transform import build as b

MOVING = {ops.RESHAPE, ops.PERMUTE, ops.EXPAND}
CHEAP = {
    ops.ADD, ops.MUL, ops.MAX, ops.LT, ops.NE, ops.AND, ops.XOR, ops.WHERE, ops.CAST, ops.BITCAST,
}  # fmt: skip
CHEAP_ENOUGH = 4  # so many cheap operations are repeated rather than stored
DEAR = 1 << 20


def residuals(
    derivative: Sequence[Node],
    params: Sequence[Node],
    cotangents: Sequence[Node],
    recompute: bool = False,
) -> list[Node]:
    """The values to hand over: parameters and interior nodes of the forward body.

    With `recompute` they are parameters only, and everything else is computed again.
    """
    order = toposort(derivative)
    unknown = set(cotangents)
    for n in order:
        if any(s in unknown for s in n.srcs):
            unknown.add(n)
    known = [n for n in order if n not in unknown]
    if recompute:
        return [p for p in params if p in set(known)]
    return _choose(known, _frontier(order, unknown, derivative), set(params))


def body_over(
    leaves: Sequence[Node], outs: Iterable[Node], name: str, recompute: bool = False
) -> Body:
    """The body that computes `outs` from `leaves` (any distinct nodes), made its parameters."""
    new = b.params(leaves)
    replaced = substitute(tuple(outs), dict(zip(leaves, new)))
    return Body(replaced, new, name, recompute=recompute)


def _frontier(order: Iterable[Node], unknown: set[Node], outs: Iterable[Node]) -> set[Node]:
    """Known nodes that an unknown one reads, or that are results themselves."""
    found = {s for n in order if n in unknown for s in n.srcs if s not in unknown}
    return found | {n for n in outs if n not in unknown}


def _choose(known: Sequence[Node], frontier: set[Node], params: set[Node]) -> list[Node]:
    """The residuals: from them, parameters and constants every node of the frontier is cheap."""
    price: dict[Node, int] = {}
    chosen: dict[Node, None] = {}
    for n in known:
        price[n] = _price(n, price, params)
        if n in frontier and price[n] > CHEAP_ENOUGH:
            base = _smallest_origin(n, price)
            chosen[base] = None
            price[base] = 0
            price[n] = min(price[n], CHEAP_ENOUGH)
    used = _reached(frontier, lambda n: n in params or n in chosen)
    return [n for n in known if n in used and (n in params or n in chosen)]


def _price(n: Node, price: dict[Node, int], params: set[Node]) -> int:
    if n in params or not n.srcs:
        return 0
    below = sum(price[s] for s in n.srcs)
    if n.op in MOVING:
        return below
    if below == 0 and not _varies(n, params):
        return 0
    return min(DEAR, below + (1 if n.op in CHEAP else DEAR))


def _varies(n: Node, params: set[Node]) -> bool:
    """Whether an operation over free sources depends on a parameter (constants do not)."""
    return any(s in params or s.srcs for s in n.srcs)


def _smallest_origin(n: Node, price: dict[Node, int]) -> Node:
    """The value that n is a mere rearrangement, cast or scaling of, while that is no larger."""
    while True:
        dear = [s for s in n.srcs if price[s] > 0]
        cheap = n.op in MOVING or (n.op in CHEAP and dear and dear[0].dtype.bits <= n.dtype.bits)
        if len(dear) != 1 or not cheap:
            return n
        n = dear[0]


def _reached(roots: Iterable[Node], stop: Callable[[Node], bool]) -> set[Node]:
    return set(toposort(roots, into=lambda n: not stop(n)))
