"""Loops as other loops, by what is known of them: fewer turns, or whole parts and remainders.

A fact is a polynomial which is at least zero. Its variables are whole numbers, so 2i - 1 >= 0 says
that i >= 1. Both changes give expressions to write in the loops' places. Symbolic sizes, and loops
on which others depend, may also be written as numbers, one case after the other, if those are few.
"""
from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from math import gcd, prod

from muladd.ir import Dim, Node, ops, sym, toposort
from muladd.ir.polynomial import Poly, is_size, plus, scaled

_FEW = 64  # values of all sizes or loops together that are tried one by one

Facts = tuple[Poly, ...]


def atoms(p: Poly) -> list[Node]:
    return list(dict.fromkeys(a for mono in p for a in mono))


def whole(f: Poly) -> Poly:
    """A fact divided by what all its coefficients have in common."""
    common = gcd(*(c for mono, c in f.items() if mono))
    return {m: v for m, c in f.items() if (v := c // common)} if common > 1 else f


def tightened(facts: Facts, by_numbers: bool) -> dict[Node, Dim]:
    """Loops that facts bound by themselves, as loops over fewer turns: i >= 2 makes i = 2 + i'.

    by_numbers: only where the bound is a number; others may be made of loops that have such.
    """
    low: dict[Node, Dim] = {}
    high: dict[Node, Dim] = {}
    for f in facts:
        loops = [a for a in atoms(f) if a.op is ops.RANGE]
        for loop in loops:
            c = f.get((loop,), 0)
            rest = {m: k for m, k in f.items() if m != (loop,)}
            if not c or loop in atoms(rest):
                continue
            if len(loops) > 1 or abs(c) > 1:  # the others at their best
                most = sym.interval(rest)[1]
                if abs(most) > 1 << 61:
                    continue
                bound: Dim = -(most // c) if c > 0 else most // -c
            else:
                bound = sym.build(scaled(rest, -c) if c > 0 else rest)
            if by_numbers and not isinstance(bound, int):
                continue
            if c > 0:
                low[loop] = sym.maximum(low.get(loop, 0), bound)
            else:
                last = high.get(loop, sym.sub(loop.arg.extent, 1))
                high[loop] = last if _lower(last, bound) else bound
    found: dict[Node, Dim] = {}
    for loop in dict.fromkeys([*low, *high]):
        begin, end = low.get(loop, 0), high.get(loop, sym.sub(loop.arg.extent, 1))
        if begin != 0 or loop in high and end is not sym.sub(loop.arg.extent, 1):
            turns = sym.axis(f"{loop.arg.name}~", sym.add(sym.sub(end, begin), 1))
            found[loop] = sym.add(begin, turns)
    return found


def _lower(a: Dim, b: Dim) -> bool:
    """Whether a is the lower of two bounds, or, where that depends, reaches less far."""
    known = sym.is_less(a, b)
    return known if known is not None else sym.bounds(a)[1] < sym.bounds(b)[1]


def along(loops: dict[Node, Dim], known: Iterable[Poly]) -> dict[Node, Dim]:
    """These changes, and those of loops that run as far as a changed one says."""
    found = dict(loops)
    seen: set[Node] = set()
    for p in known:
        _along(p, found, seen)
    return found


def _along(p: Poly, found: dict[Node, Dim], seen: set[Node]) -> None:
    for n in toposort(tuple(atoms(p))):
        if n.op is ops.RANGE and n not in seen and not isinstance(n.arg.extent, int):
            seen.add(n)
            _along(sym.poly(n.arg.extent), found, seen)
            extent = sym.replace(n.arg.extent, found)
            if n not in found and extent is not n.arg.extent:
                found[n] = sym.axis(n.arg.name, extent)


def cases(goal: Poly, facts: Facts) -> list[dict[Node, Dim]]:
    """The symbolic sizes in these polynomials with each of their values, if those are few; else the
    loops on which it depends how far others run."""
    nodes = dict.fromkeys(n for p in (goal, *facts) for n in toposort(tuple(_with_extents(p))))
    found = {n: range(n.arg.low, n.arg.high + 1) for n in nodes if is_size(n)}
    if not found:
        ends = [n.arg.extent for n in nodes if n.op is ops.RANGE and isinstance(n.arg.extent, Node)]
        ends += [n for n in nodes if n.op is ops.MAX]
        loops = dict.fromkeys(n for n in toposort(tuple(ends)) if n.op is ops.RANGE)
        for p in facts:  # loops that bound each other, also by their quotients and remainders
            together = [a for a in atoms(p) if a.op is ops.RANGE]
            loops.update(dict.fromkeys(together if len(together) > 1 else ()))
        divided = tuple(a for p in facts for a in atoms(p) if a.op in (ops.DIV, ops.MOD))
        loops.update(dict.fromkeys(n for n in toposort(divided) if n.op is ops.RANGE))
        for loop in loops:
            turns = loop.arg.extent
            if isinstance(turns, int) and prod(map(len, found.values())) * turns <= _FEW:
                found[loop] = range(turns)
    if not found or prod(map(len, found.values())) > _FEW:
        return []
    return [dict(zip(found, v)) for v in product(*found.values())]


def _with_extents(p: Poly) -> list[Node]:
    """What p is made of, and how far its loops run."""
    found: dict[Node, None] = {}
    todo = atoms(p)
    while todo:
        n = todo.pop()
        if n not in found:
            found[n] = None
            for inner in toposort((n,)):
                if inner.op is ops.RANGE and isinstance(inner.arg.extent, Node):
                    todo.append(inner.arg.extent)
    return list(found)


def split(known: Iterable[Poly]) -> tuple[dict[Node, Dim], Facts, Poly]:
    """Where a remainder or quotient of e by a number d occurs, a loop, symbolic size or maximum i
    of e, such that e is d * q + r with loops q and r: i + 3 = 2q + r makes i = 2q + r - 3. And what
    is known of it, and the remainder."""
    found = list(dict.fromkeys(a for p in known for a in atoms(p)))
    for atom in dict.fromkeys((*found, *toposort(tuple(found)))):
        if atom.op not in (ops.MOD, ops.DIV) or atom.srcs[1].op is not ops.CONST:
            continue
        e, d = sym.poly(atom.srcs[0]), atom.srcs[1].arg
        lowest, highest = sym.interval(e)
        if d < 2 or lowest < -(1 << 61) or highest > 1 << 61:
            continue
        for loop in atoms(e):
            if loop.op not in (ops.RANGE, ops.MAX) and not is_size(loop):
                continue
            if abs(e.get((loop,), 0)) != 1:
                continue
            rest = {m: c for m, c in e.items() if m != (loop,)}
            if any(x is loop for a in atoms(rest) for x in toposort((a,))):
                continue
            first = lowest // d
            name = "max" if loop.op is ops.MAX else loop.arg.name
            q = sym.axis(f"{name}/{d}", highest // d - first + 1)
            r = sym.axis(f"{name}%{d}", d)
            value = sym.sum_of([sym.mul(sym.add(q, first), d), r, sym.build(scaled(rest, -1))])
            value = sym.mul(value, e[loop,])
            lows: list[Dim] = [0]
            high: Dim
            if loop.op is ops.MAX:
                lows, high = [sym.as_dim(x) for x in loop.srcs], sym.bounds(loop)[1]
            elif is_size(loop):
                lows, high = [loop.arg.low], loop.arg.high
            else:
                high = sym.sub(loop.arg.extent, 1)
            known = (*(sym.poly(sym.sub(value, x)) for x in lows), sym.poly(sym.sub(high, value)))
            return {loop: value}, known, sym.poly(r)
    return {}, (), {}


def rounded(facts: Facts, remainder: Poly) -> Facts:
    """What facts say of whole parts: 98 - 3q - r >= 0 makes 32 - q >= 0, for r is not negative.
    Also two together: 2i + 1 - 8q - r >= 0 and 35 - i >= 0 make 8 - q >= 0."""
    (mono,) = remainder
    least = max([0, *(-f.get((), 0) for f in facts if set(f) <= {mono, ()} and f.get(mono) == 1)])
    with_it = [f for f in facts if f.get(mono, 0) < 0]
    for f in tuple(with_it):
        with_it += [plus(f, g, k) for g in facts for k in _eliminating(f, g)]
    weaker = [plus(f, {mono: f[mono], (): -f[mono] * least}, -1) for f in with_it if mono in f]
    return tuple(w for f in weaker if (w := whole(f)) is not f)


def _eliminating(f: Poly, g: Poly) -> set[int]:
    """How many times g is added to f for a term of f to vanish that raises it."""
    return {c // -d for m, c in f.items() if m and c > 0 and (d := g.get(m, 0)) < 0 and not c % d}


__all__ = ["Facts", "along", "atoms", "cases", "rounded", "split", "tightened", "whole"]
