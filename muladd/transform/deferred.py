"""Sums over steps that wait until a backward scan is done.

What every step sees alike (a recurrent layer's weight) collects a cotangent from each step. That
of a matrix product is itself a sum of products of small values: sum over b of x[b,k] * g[b,n].
Adding up (k,n) in every step reads and writes the large thing n times; it is far better to stack
the small values x and g, and to do one large product over steps and b together afterwards.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from muladd.ir import ops
from muladd.ir.node import Dim, Node, Param
from muladd.transform import build as b
from muladd.transform.residuals import MOVING
from muladd.transform.vmap import vectorize


@dataclass(frozen=True)
class Deferred:
    """The cotangent of parameter `source`: `after` applied, last first, to the SUM `reduction`.

    leaves: the small values of a step that the reduction's source is made of.
    """

    source: int
    after: tuple[Node, ...]
    reduction: Node
    leaves: tuple[Node, ...]


def defer(source: int, cotangent: Node, free: Callable[[Node], bool]) -> Deferred | None:
    """How a step's cotangent can wait, or None if that would store more than it saves.

    `free(leaf)` says that a leaf needs no storing: it lies stacked already, or never changes.
    """
    after: list[Node] = []
    n = cotangent
    while n.op in (ops.RESHAPE, ops.PERMUTE, ops.CAST):
        after.append(n)
        n = n.srcs[0]
    if n.op is not ops.SUM:
        return None
    leaves = _leaves(n.srcs[0])
    stored = [_elements(leaf) for leaf in leaves if not free(leaf)]
    size = _elements(n)
    if size is None or None in stored or sum(filter(None, stored)) > size:
        return None
    return Deferred(source, tuple(after), n, leaves)


def _leaves(product: Node) -> tuple[Node, ...]:
    """Where the factors of an expanded product come from, before they were expanded."""
    found: dict[Node, None] = {}
    todo = [product]
    while todo:
        n = todo.pop()
        outer = n.op is ops.MUL and any(s.op is ops.EXPAND for s in n.srcs)
        if n.op in MOVING or (outer and _elements(n) == _elements(product)):
            todo.extend(reversed(n.srcs))
        elif n.srcs or isinstance(n.arg, Param):
            found[n] = None  # constants are repeated in the product, not stored
    return tuple(found)


def _elements(n: Node) -> int | None:
    sizes = [d for d in n.shape if isinstance(d, int)]
    return prod(sizes) if len(sizes) == n.ndim else None


def finish(
    deferred: Deferred, values: Iterable[Node], axes: Iterable[int | None], length: Dim
) -> Node:
    """The sum over all steps at once, given the leaves stacked along axis 0 (None: alike)."""
    reduction = deferred.reduction
    (every,) = vectorize(
        [reduction.srcs[0]], deferred.leaves, list(values), list(axes), length
    )
    n = b.sum_axes(every, (0, *(a + 1 for a in reduction.arg)))
    for last in reversed(deferred.after):
        n = b.rebuild(last, (n,))
    return n
