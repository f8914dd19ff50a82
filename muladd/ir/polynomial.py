"""Polynomials with whole coefficients over atoms: nodes that algebra does not look into."""
from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from muladd.ir import node as nodes
from muladd.ir import ops
from muladd.ir.node import Node, Var

Monomial = tuple[Node, ...]  # a product of atoms, sorted; () is 1
Poly = dict[Monomial, int]  # monomial -> coefficient, none of them zero


def plus(a: Poly, b: Poly, scale: int = 1) -> Poly:
    """a + scale * b."""
    out = dict(a)
    for mono, c in b.items():
        c = out.get(mono, 0) + c * scale
        if c:
            out[mono] = c
        else:
            out.pop(mono, None)
    return out


def times(a: Poly, b: Poly) -> Poly:
    out: Poly = {}
    for m1, c1 in a.items():
        for m2, c2 in b.items():
            mono = ordered(m1 + m2) if m1 and m2 else m1 or m2
            c = out.get(mono, 0) + c1 * c2
            if c:
                out[mono] = c
            else:
                out.pop(mono, None)
    return out


def scaled(p: Poly, c: int) -> Poly:
    return {m: k * c for m, k in p.items()} if c else {}


def put(p: Poly, atom: Node, value: Poly) -> Poly:
    """p with a polynomial in an atom's place."""
    out: Poly = {}
    for mono, c in p.items():
        term: Poly = {(): c}
        for a in mono:
            term = times(term, value if a is atom else {(a,): 1})
        out = plus(out, term)
    return out


def without(mono: Monomial, part: Monomial) -> Monomial | None:
    """mono divided by part; None if part does not divide it."""
    left = list(mono)
    for atom in part:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


def long_division(a: Poly, b: Poly) -> tuple[Poly, Poly]:
    """a = quotient * b + rest, taking every term of a that b's leading term divides."""
    lead = min(b, key=order_of)
    quotient: Poly = {}
    rest = a
    for _ in range(16):
        for mono, c in rest.items():
            left = without(mono, lead)
            k = c // b[lead] if left is not None and (c % b[lead] == 0 or not mono) else 0
            if left is not None and k:
                term = {left: k}
                quotient = plus(quotient, term)
                rest = plus(rest, times(term, b), -1)
                break
        else:
            break
        if len(b) == 1:  # terms do not interact: take all the others in one go
            for mono, c in list(rest.items()):
                left = without(mono, lead)
                k = c // b[lead] if left is not None and (c % b[lead] == 0 or not mono) else 0
                if left is not None and k:
                    quotient = plus(quotient, {left: k})
                    rest = plus(rest, times({left: k}, b), -1)
            break
    return quotient, rest


# --- the order of terms ---------------------------------------------------------------------------


def name_of(x: Node) -> str:
    """A name for an atom that is the same in every process: it decides the order of terms."""
    memo = memo_of(x)
    if "key" not in memo:
        for n in nodes.toposort((x,), into=lambda m: "key" not in memo_of(m)):
            if "key" not in memo_of(n):
                memo_of(n)["key"] = _name(n)
    return memo["key"]


def _name(n: Node) -> str:
    if n.op is ops.RANGE or is_size(n):
        return n.arg.name
    inner = ",".join(memo_of(s)["key"] for s in n.srcs)
    key = f"{n.op.name}({inner}){n.arg if n.arg else ''}"
    # shared sub-expressions would make names grow without bound
    return key if len(key) <= 80 else blake2b(key.encode(), digest_size=12).hexdigest()


def order_of(mono: Monomial) -> tuple:
    """What terms are sorted by: highest degree first."""
    return (-len(mono), [name_of(a) for a in mono])


def ordered(atoms: Iterable[Node]) -> Monomial:
    return tuple(sorted(atoms, key=name_of))


def is_size(x: Node) -> bool:
    """Whether x is a symbolic size."""
    return x.op is ops.INPUT and isinstance(x.arg, Var)


def memo_of(x: Node) -> dict:
    """What is remembered of a node."""
    if x.memo is None:
        x.memo = {}
    return x.memo
