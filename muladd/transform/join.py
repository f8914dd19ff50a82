"""Joining scans that carry the same values, so that what they share runs once.

The derivative of a scan asks for the same scan with further stacked results (the residuals),
while the program still holds the plain one. Both carry the same values through the same steps;
they differ in what they stack. Here they become one scan that stacks everything.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from muladd.ir import ops
from muladd.ir.node import Body, Node, ScanArg, toposort
from muladd.transform import build as b


def join_scans(outputs: Sequence[Node]) -> list[Node]:
    """The same outputs, in which scans with equal sources and equal carried values are one.

    Bodies are treated alike. Joining one pair can make the sources of another pair equal, so this
    repeats until nothing is left to join (at most once per level of scans feeding scans).
    """
    nodes = list(outputs)
    while True:
        new = _once(nodes)
        if all(a is c for a, c in zip(nodes, new)):
            return new
        nodes = new


def _key(n: Node) -> tuple:
    a: ScanArg = n.arg
    carried = a.body.outs[: a.carries]
    return (n.srcs, a.body.params, a.length, a.carries, a.stacked, a.reverse, carried,
            a.body.recompute, a.body.gradient)  # fmt: skip


def _once(outputs: Sequence[Node]) -> list[Node]:
    order = toposort(outputs)
    if not any(n.op in (ops.SCAN, ops.CALL) for n in order):
        return list(outputs)
    stacks: dict[tuple, dict[Node, None]] = {}  # every stacked result of a family, in order
    bodies: dict[tuple, dict[Body, None]] = {}
    for n in order:
        if n.op is ops.SCAN and n.arg.body.gradient is None:
            key = _key(n)
            bodies.setdefault(key, {})[n.arg.body] = None
            stacks.setdefault(key, {}).update(dict.fromkeys(n.arg.body.outs[n.arg.carries :]))
    done: dict[Node, Node] = {}
    for n in order:
        srcs = tuple([done[s] for s in n.srcs])
        arg = n.arg
        if n.op is ops.SCAN:
            arg = _joined(n, stacks, bodies)
        if n.op in (ops.SCAN, ops.CALL):
            arg = replace(arg, body=_inside(arg.body))
        same = arg is n.arg or arg == n.arg
        same = same and all(a is s for a, s in zip(srcs, n.srcs))
        done[n] = n if same else b.rebuild(n, srcs, arg)
    return [done[out] for out in outputs]


def _joined(n: Node, stacks: dict, bodies: dict) -> ScanArg:
    arg: ScanArg = n.arg
    key = _key(n)
    if len(bodies.get(key, ())) < 2:
        return arg
    family = stacks[key]
    first = next(iter(bodies[key]))
    outs = (*arg.body.outs[: arg.carries], *family)
    body = Body(outs, first.params, first.name, recompute=first.recompute)
    out = arg.out
    if out >= arg.carries:
        out = arg.carries + list(family).index(arg.body.outs[out])
    return replace(arg, body=body, out=out)


def _inside(body: Body) -> Body:
    """The body with its own scans joined, remembered on it."""
    if "joined" not in body.memo:
        outs = tuple(join_scans(body.outs))
        changed = any(a is not c for a, c in zip(outs, body.outs))
        body.memo["joined"] = replace(body, outs=outs) if changed else None
    return body.memo["joined"] or body
