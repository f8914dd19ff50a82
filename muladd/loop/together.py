"""Stages that go along the same loops go along them together, a point at a time.

    for p0 { a[p0] = f(x[p0]) }             for p0 { a[p0] = f(x[p0])
    for p0 { b[p0] = a[p0] * g(x[p0]) }  ->          b[p0] = a[p0] * g(x[p0]) }

A stage reads another one at the same point of the shared axes, so loops along these may always
become one. What the stages have in common (x[p0], and all that f and g share) is then computed once
and stays in registers.
"""
from __future__ import annotations

from collections.abc import Container
from functools import reduce

from muladd.ir import Node
from muladd.loop.statements import For, If, Prefetch, Statement, Store, Threads

Body = list[Statement]
_MOST = 64  # statements of a loop: of more, neither values nor addresses find registers


def together(stages: list[Body], shared: Container[Node]) -> Body:
    """The statements of stages that follow each other. shared: the loops of shared axes."""
    return reduce(lambda done, body: _after(done, body, shared), stages, [])


def _after(first: Body, then: Body, shared: Container[Node]) -> Body:
    n = len(then)
    joined = _one(first[-n:], then, shared) if 0 < n <= len(first) else None
    return first + then if joined is None else first[:-n] + joined


def _one(first: Body, then: Body, shared: Container[Node]) -> Body | None:
    """Two bodies as one, if their loops and conditions are the same down to the last."""
    if len(first) != len(then):
        return None
    found: Body = []
    for a, b in zip(first, then):
        if isinstance(a, For) and isinstance(b, For) and Threads not in (type(a), type(b)):
            same = a.loop is b.loop and a.loop in shared and (a.start, a.stop) == (b.start, b.stop)
            body = _inside(a.body, b.body, shared) if same else None
            if body is None:
                return None
            found.append(For(a.loop, a.start, a.stop, body))
        elif isinstance(a, If) and isinstance(b, If) and a.condition is b.condition:
            body = _inside(a.body, b.body, shared)
            orelse = _inside(a.orelse, b.orelse, shared)
            if body is None or orelse is None:
                return None
            found.append(If(a.condition, body, orelse))
        else:
            return None
    return found


def _inside(first: Body, then: Body, shared: Container[Node]) -> Body | None:
    if all(isinstance(s, Store | Prefetch) for s in (*first, *then)):
        return first + then if len(first) + len(then) <= _MOST else None
    return _one(first, then, shared)


__all__ = ["together"]
