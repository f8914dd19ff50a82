"""Index algebra: integer scalars over loop variables and symbolic sizes, kept in a normal form.

A size or an index is a `Dim`: a Python int, or an int64 scalar node. Every function here takes and
returns Dims in one normal form (a polynomial with sorted terms, in which DIV and MOD remain only
where no rule below removes them), so two expressions that are equal by these rules are the same
object. Shapes, lowering and guards all use this module, and it alone.
"""
from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod
from typing import TYPE_CHECKING

from muladd.ir import dtype as dt
from muladd.ir import node as nodes
from muladd.ir import ops
from muladd.ir.node import Dim, Node, Var
from muladd.ir.polynomial import (
    Monomial,
    Poly,
    is_size,
    long_division,
    memo_of,
    name_of,
    order_of,
    ordered,
    plus,
    put,
    scaled,
    times,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class Axis:
    """A loop variable: what a RANGE node names. It runs over 0 <= value < extent."""

    name: str
    extent: Dim

    def __repr__(self) -> str:
        return self.name


def axis(name: str, extent: Dim) -> Node:
    """The RANGE node of a new axis; an axis of one element is the constant 0."""
    return nodes.make(ops.RANGE, (), Axis(name, extent), dt.INDEX)


# --- normal form ---------------------------------------------------------------------------------


def poly(x: Dim) -> Poly:
    """x as a polynomial over atoms (variables, ranges, DIV, MOD and anything else opaque)."""
    if isinstance(x, int):
        return {(): x} if x else {}
    if x.memo is not None and "poly" in x.memo:
        return x.memo["poly"]
    if x.op is ops.CONST:
        result: Poly = {(): x.arg} if x.arg else {}
    elif x.op is ops.ADD:
        result = plus(poly(x.srcs[0]), poly(x.srcs[1]))
    elif x.op is ops.MUL:
        result = times(poly(x.srcs[0]), poly(x.srcs[1]))
    else:
        return {(x,): 1}  # not remembered: x would keep itself
    memo_of(x)["poly"] = result
    return result


_built: weakref.WeakValueDictionary[frozenset, Node] = weakref.WeakValueDictionary()


def build(p: Poly) -> Dim:
    """The Dim of a polynomial; the inverse of `poly`."""
    if not p:
        return 0
    if len(p) == 1:
        ((mono, c),) = p.items()
        if not mono:
            return c
        if c == 1 and len(mono) == 1:
            return mono[0]
    key = frozenset(p.items())  # one in ten has not been built before
    total = _built.get(key)
    if total is not None:
        return total
    simple = _recombine(p)
    if simple is not p:
        return build(simple)
    for mono in sorted(p, key=order_of):
        term = _as_node(p[mono]) if not mono else _product_node(mono, p[mono])
        total = term if total is None else nodes.make(ops.ADD, (total, term))
    assert total is not None
    memo_of(total).setdefault("poly", p)
    _built[key] = total
    return total


def as_node(x: Dim) -> Node:
    """A Dim as a node (an int becomes an int64 constant)."""
    return _as_node(x) if isinstance(x, int) else x


def as_dim(x: Node) -> Dim:
    """A node as a Dim (a constant becomes an int)."""
    return x.arg if x.op is ops.CONST else x


def _as_node(x: int) -> Node:
    return nodes.make(ops.CONST, (), x, dt.INDEX)


def _product_node(mono: Monomial, coefficient: int) -> Node:
    node = reduce(lambda a, b: nodes.make(ops.MUL, (a, b)), mono)
    return node if coefficient == 1 else nodes.make(ops.MUL, (node, _as_node(coefficient)))


def _recombine(p: Poly) -> Poly:
    """d * (x div d) + (x mod d)  ->  x, with any common factor; and of mixed radix,
    d * ((x div d) mod e) + (x mod d)  ->  x mod (d * e)."""
    for mono in list(p):
        for atom in mono:
            if atom.op is not ops.MOD or mono not in p:
                continue
            x, d = atom.srcs
            rest = list(mono)
            rest.remove(atom)
            upper = _next_digit(p, rest, x, d, p[mono])
            if upper is not None:
                digit, e = upper
                whole_d: int = _number(d)  # type: ignore[assignment]
                joined = nodes.make(ops.MOD, (x, _as_node(whole_d * e)))
                others = {m: c for m, c in p.items() if m not in (mono, digit)}
                return _recombine(plus(others, {ordered((*rest, joined)): p[mono]}))
            whole = nodes.make(ops.DIV, (x, d))
            factor = times({ordered((*rest, whole)): p[mono]}, poly(d))
            if factor and all(p.get(m) == c for m, c in factor.items()):
                p = plus(plus(p, factor, -1), {mono: p[mono]}, -1)
                p = plus(p, times({tuple(rest): 1}, scaled(poly(x), _one(factor, d))))
                return _recombine(p)
    return p


def _next_digit(
    p: Poly, rest: list[Node], x: Node, d: Node, c: int
) -> tuple[Monomial, int] | None:
    """The term c*d * ((x div d) mod e) that stands beside c * (x mod d), and its e."""
    if _number(d) is None:
        return None
    for mono, k in p.items():
        if k != c * _number(d):  # type: ignore[operator]
            continue
        for atom in mono:
            if atom.op is not ops.MOD or _number(atom.srcs[1]) is None:
                continue
            inner, left = atom.srcs[0], list(mono)
            left.remove(atom)
            if sorted(map(name_of, left)) == sorted(map(name_of, rest)) and inner.op is ops.DIV \
                    and inner.srcs == (x, d):  # fmt: skip
                return mono, _number(atom.srcs[1])  # type: ignore[return-value]
    return None


def _one(factor: Poly, d: Node) -> int:
    """The coefficient that `factor` has beside the polynomial of d."""
    return next(iter(factor.values())) // next(iter(poly(d).values()))


# --- arithmetic ----------------------------------------------------------------------------------


def add(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(b, int) and b == 0:
        return a
    if isinstance(a, int) and a == 0:
        return b
    return build(plus(poly(a), poly(b)))


def sub(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return build(plus(poly(a), poly(b), -1))


def mul(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(b, int) and b == 1:
        return a
    if isinstance(a, int) and a == 1:
        return b
    return build(times(poly(a), poly(b)))


def product(shape: Iterable[Dim]) -> Dim:
    """The number of elements of a shape."""
    dims = list(shape)
    if all(isinstance(d, int) for d in dims):
        return prod(dims)  # type: ignore[arg-type]
    total: Dim = 1
    for d in dims:
        total = mul(total, d)
    return total


def sum_of(terms: Iterable[Dim]) -> Dim:
    """The sum of many terms, normalised once."""
    total: Poly = {}
    for t in terms:
        total = plus(total, poly(t))
    return build(total)


def div(a: Dim, b: Dim) -> Dim:
    """a divided by b, rounded down; b > 0 is the caller's promise."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else 0
    return build(_divmod(a, b)[0])


def mod(a: Dim, b: Dim) -> Dim:
    """a - b * div(a, b)."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else a
    return build(_divmod(a, b)[1])


def _divmod(a: Dim, b: Dim) -> tuple[Poly, Poly]:
    divisor = poly(b)
    if divisor == {(): 1}:
        return poly(a), {}
    quotient, rest = long_division(poly(a), divisor)
    if isinstance(b, int):  # every coefficient below b, if that leaves nothing to carry
        whole = {m: c // b for m, c in rest.items() if abs(c) >= b}
        small = plus(rest, {m: k * b for m, k in whole.items()}, -1)
        if whole and _within(small, divisor):
            return plus(quotient, whole), small
    if not rest or _within(rest, divisor):
        return quotient, rest
    if isinstance(b, int):
        return _divmod_int(quotient, rest, b)
    x, d = as_node(build(rest)), as_node(b)
    return (
        plus(quotient, {(nodes.make(ops.DIV, (x, d)),): 1}),
        {(nodes.make(ops.MOD, (x, d)),): 1},
    )


def _divmod_int(quotient: Poly, rest: Poly, b: int) -> tuple[Poly, Poly]:
    """The rules for a constant divisor, with `rest` not known to lie in [0, b)."""
    for g in sorted({gcd(c, b) for m, c in rest.items() if m} - {1}, reverse=True):
        small = {m: c if m else c % g for m, c in rest.items() if c % g}
        if _within(small, {(): g}):  # (g*s + t) over g*d, 0 <= t < g
            large = {m: c // g for m, c in plus(rest, small, -1).items()}
            q, r = _divmod(build(large), b // g)
            return plus(quotient, q), plus(scaled(r, g), small)
    x = build(rest)
    inner = _number(x.srcs[1]) if isinstance(x, Node) and x.op in (ops.DIV, ops.MOD) else None
    if isinstance(x, Node) and x.op is ops.DIV and inner is not None:
        return plus(quotient, poly(div(x.srcs[0], inner * b))), _atom(ops.MOD, x, b)
    if isinstance(x, Node) and x.op is ops.MOD and inner is not None:
        if inner % b == 0:
            return plus(quotient, _atom(ops.DIV, x, b)), poly(mod(x.srcs[0], b))
    return plus(quotient, _atom(ops.DIV, x, b)), _atom(ops.MOD, x, b)


def _atom(op: ops.Op, x: Dim, b: int) -> Poly:
    return {(nodes.make(op, (as_node(x), _as_node(b))),): 1}


def _number(x: Node) -> int | None:
    return x.arg if x.op is ops.CONST else None


# --- bounds --------------------------------------------------------------------------------------

_FAR = 1 << 62  # stands for "unbounded"


def bounds(x: Dim) -> tuple[int, int]:
    """The least and greatest value x can take (or +-2^62 where nothing is known)."""
    if isinstance(x, int):
        return x, x
    memo = memo_of(x)
    if "bounds" not in memo:
        p = poly(x)
        low = _clip(lower(p))
        high = _clip(-lower(scaled(p, -1)))
        memo["bounds"] = (low, high)
    return memo["bounds"]


def _clip(x: int) -> int:
    return max(-_FAR, min(_FAR, x))


def lower(p: Poly) -> int:
    """A lower bound of a polynomial over all values of its ranges and symbolic sizes.

    Each range is set to the end that makes the polynomial least (its extent may be symbolic, so
    i < n proves n - 1 - i >= 0); what is left holds symbolic sizes only: interval arithmetic.
    """
    for _ in range(32):
        atom = next((a for m in p for a in m if eliminable(a, p)), None)
        if atom is None:
            break
        low, high = ends(atom)
        slope: Poly = {}
        rest: Poly = {}
        for mono, c in p.items():
            if atom in mono:
                slope[without(mono, (atom,))] = c  # type: ignore[index]
            else:
                rest[mono] = c
        end = low if interval(slope)[0] >= 0 else high
        p = plus(rest, times(slope, end))
    return interval(p)[0]


def eliminable(atom: Node, p: Poly) -> bool:
    if atom.op not in (ops.RANGE, ops.MOD, ops.DIV):
        return False
    if ends(atom)[1] is None:
        return False
    slope: Poly = {}
    for mono, c in p.items():
        if atom in mono:
            left = without(mono, (atom,))
            if left is None or atom in left:
                return False
            slope[left] = c
    low, high = interval(slope)
    return low >= 0 or high <= 0


def ends(atom: Node) -> tuple[Poly, Poly]:
    """The least and greatest value of an atom, as polynomials over symbolic sizes."""
    memo = memo_of(atom)
    if "ends" not in memo:
        low: Poly = {}
        high: Poly | None = None
        if atom.op is ops.RANGE:
            high = poly(sub(atom.arg.extent, 1))
        elif atom.op is ops.MOD:
            high = poly(sub(atom.srcs[1], 1))
        elif atom.op is ops.DIV and (d := _number(atom.srcs[1])):
            a, b = bounds(atom.srcs[0])
            if a > -_FAR and b < _FAR:
                low = {(): a // d} if a // d else {}
                high = {(): b // d} if b // d else {}
        memo["ends"] = (low, high)
    return memo["ends"]


def interval(p: Poly) -> tuple[int, int]:
    low, high = _term_by_term(p)
    if low < 0 < high and (shifted := _from_least(p)) is not p:
        a, b = _term_by_term(shifted)
        low, high = max(low, a), min(high, b)
    return low, high


def _term_by_term(p: Poly) -> tuple[int, int]:
    low = high = 0
    for mono, c in p.items():
        a, b = c, c
        for atom in mono:
            x, y = _atom_interval(atom)
            corners = (a * x, a * y, b * x, b * y)
            a, b = min(corners), max(corners)
        low, high = low + a, high + b
    return _clip(low), _clip(high)


def _from_least(p: Poly) -> Poly:
    """A polynomial over sizes, each written as its least value and a rest that begins at zero.

    What was multiplied out keeps its bound so: n*n - 2*n + 1 with n >= 2 is r*r + 2*r + 1.
    """
    sizes = {a for m in p if len(m) > 1 for a in m if is_size(a) and a.arg.low}
    for n in sizes:
        rest = Var(f"{n.arg.name} - {n.arg.low}", 0, n.arg.high - n.arg.low)
        shifted = plus({(nodes.make(ops.INPUT, (), rest),): 1}, {(): n.arg.low})
        p = put(p, n, shifted)
    return p


def _atom_interval(x: Node) -> tuple[int, int]:
    if is_size(x):
        return x.arg.low, x.arg.high
    if x.op is ops.RANGE:
        return 0, max(bounds(x.arg.extent)[1] - 1, 0)
    if x.op is ops.MOD:
        return 0, max(bounds(x.srcs[1])[1] - 1, 0)
    if x.op is ops.DIV:
        low, high = bounds(x.srcs[0])
        d_low, d_high = bounds(x.srcs[1])
        if d_low > 0:
            return min(low // d_low, low // d_high), max(high // d_low, high // d_high)
    if x.op is ops.MAX:
        (a, b), (c, d) = bounds(x.srcs[0]), bounds(x.srcs[1])
        return max(a, c), max(b, d)
    if x.op is ops.WHERE:
        (a, b), (c, d) = bounds(x.srcs[1]), bounds(x.srcs[2])
        return min(a, c), max(b, d)
    if x.op is ops.CAST and x.srcs[0].dtype.bits < 64 and not x.srcs[0].dtype.is_float:
        return int(x.srcs[0].dtype.min), int(x.srcs[0].dtype.max)
    return -_FAR, _FAR


def _within(p: Poly, limit: Poly) -> bool:
    """Whether 0 <= p < limit is certain."""
    return lower(p) >= 0 and lower(plus(plus(limit, p, -1), {(): -1})) >= 0


def is_less(a: Dim, b: Dim) -> bool | None:
    """Whether a < b: True or False where certain, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    gap = plus(poly(b), poly(a), -1)
    if lower(plus(gap, {(): -1})) >= 0:
        return True
    if lower(scaled(gap, -1)) >= 0:
        return False
    return None


def maximum(a: Dim, b: Dim) -> Dim:
    less = is_less(a, b)
    if less is None:
        return nodes.make(ops.MAX, (as_node(a), as_node(b)))
    return b if less else a


def minimum(a: Dim, b: Dim) -> Dim:
    return sub(0, maximum(sub(0, a), sub(0, b)))


# --- conditions: bool, or a bool node ------------------------------------------------------------

Condition = bool | Node


def less(a: Dim, b: Dim) -> Condition:
    known = is_less(a, b)
    if known is not None:
        return known
    return nodes.make(ops.LT, (as_node(a), as_node(b)))


def both(a: Condition, b: Condition) -> Condition:
    if a is True or a is b:
        return b
    if b is True:
        return a
    if a is False or b is False:
        return False
    return nodes.make(ops.MUL, (a, b))


def inside(x: Dim, extent: Dim) -> Condition:
    """0 <= x < extent."""
    return both(less(-1, x), less(x, extent))


def as_condition(c: Condition) -> Node:
    """A condition as a node."""
    return nodes.make(ops.CONST, (), c, dt.bool_) if isinstance(c, bool) else c


# --- whether an expression may be treated as an index --------------------------------------------


def trusted(x: Dim) -> bool:
    """Whether the rules of this module hold for x: no wrapping, no division by zero or less.

    Sizes and indices that muladd makes are; a user's int64 arithmetic need not be, unless it is
    made of axes, sizes and narrow integers, stays small, and divides by positive numbers only.
    """
    if isinstance(x, int):
        return True
    memo = x.memo
    if memo is not None and "trusted" in memo:
        return bool(memo["trusted"])
    for n in nodes.toposort((x,), into=lambda m: m.memo is None or "trusted" not in m.memo):
        memo = memo_of(n)
        if "trusted" not in memo:
            memo["trusted"] = _trusted(n)
            memo["closed"] = is_opaque(n) or any(memo_of(s)["closed"] for s in n.srcs)
    return bool(memo_of(x)["trusted"])


def _trusted(n: Node) -> bool:
    if n.op in (ops.CONST, ops.RANGE) or is_opaque(n):
        return not n.shape and n.dtype is dt.INDEX
    if n.op is ops.INPUT:
        return is_size(n)
    if n.op is ops.CAST:
        source = n.srcs[0].dtype
        return n.dtype is dt.INDEX and source.bits <= 32 and not source.is_float and not n.shape
    if n.op not in FUNCTIONS or n.shape or n.dtype is not dt.INDEX:
        return False
    if not all(memo_of(s)["trusted"] for s in n.srcs):
        return False
    if n.op in (ops.DIV, ops.MOD):
        return bounds(n.srcs[1])[0] > 0
    if n.op is ops.MAX or any(memo_of(s)["closed"] for s in n.srcs):  # what `opaque` closed is far
        return True
    a, b = (memo_of(s).get("span") or bounds(s) for s in n.srcs)
    span = _combined(n.op, a, b)
    if max(map(abs, span)) >= _FAR:
        span = _combined(n.op, *(bounds(s) for s in n.srcs))
    memo_of(n)["span"] = span  # wider than `bounds`, and found in no time
    return max(map(abs, span)) < _FAR


def _combined(op: ops.Op, a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Between which numbers a sum or a product lies, given the same of its operands."""
    if op is ops.ADD:
        return a[0] + b[0], a[1] + b[1]
    corners = [v * w for v in a for w in b]
    return min(corners), max(corners)


def opaque(x: Dim) -> Dim:
    """x as an atom, if it is not trusted: what computes it stays exactly as it is."""
    return x if trusted(x) else nodes.make(ops.BITCAST, (as_node(x),), None, dt.INDEX)


def is_opaque(n: Node) -> bool:
    """Whether n is an index that `opaque` has closed."""
    return n.op is ops.BITCAST and n.dtype is dt.INDEX and n.srcs[0].dtype is dt.INDEX


# --- numbers -------------------------------------------------------------------------------------


def evaluate(x: Dim, values: dict[str, int]) -> int:
    """x as a number, given the values of its symbolic variables and axes by name.

    Raises KeyError for a name without a value.
    """
    if isinstance(x, int):
        return x
    done: dict[Node, int] = {}
    for n in nodes.toposort((x,)):
        if n.op is ops.CONST:
            done[n] = n.arg
        elif n.op in (ops.INPUT, ops.RANGE):
            done[n] = values[n.arg.name]
        else:
            args = [done[s] for s in n.srcs]
            done[n] = _EVALUATE[n.op](*args)
    return done[x]


_EVALUATE: dict[ops.Op, Callable[..., int]] = {
    ops.ADD: lambda a, b: a + b,
    ops.MUL: lambda a, b: a * b,
    ops.DIV: lambda a, b: a // b if b else 0,
    ops.MOD: lambda a, b: a % b if b else a,
    ops.MAX: max,
    ops.LT: lambda a, b: a < b,
    ops.NE: lambda a, b: a != b,
    ops.WHERE: lambda c, a, b: a if c else b,
}


def replace(x: Dim, values: dict[Node, Dim]) -> Dim:
    """x with atoms exchanged, brought to normal form again."""
    if isinstance(x, int):
        return x
    if x in values:
        return values[x]
    if trusted(x) and all(_plain(a, values) for mono in poly(x) for a in mono):
        return _exchanged(x, values)
    done: dict[Node, Dim] = dict(values)
    for n in nodes.toposort((x,), into=lambda m: m not in done):
        if n in done:
            continue
        args = [done[s] for s in n.srcs]
        if n.op is ops.CONST:  # a position may be computed through floats: those stay nodes
            done[n] = n.arg if n.dtype is dt.int64 else n
        elif all(a is s for a, s in zip(args, n.srcs)):
            done[n] = n
        elif n.op in FUNCTIONS and trusted(n):
            done[n] = FUNCTIONS[n.op](*args)
        else:
            done[n] = nodes.rebuild(n, tuple(map(as_node, args)))
    return done[x]


def _plain(atom: Node, values: dict[Node, Dim]) -> bool:
    """Whether an atom is to be exchanged, or has nothing inside that could be."""
    return atom in values or atom.op is ops.RANGE or atom.op is ops.INPUT


def _exchanged(x: Node, values: dict[Node, Dim]) -> Dim:
    """x with atoms exchanged, all of which stand in its polynomial: one pass over that."""
    out: Poly = {}
    changed = False
    for mono, c in poly(x).items():
        term: Poly = {(): c}
        for atom in mono:
            if atom in values:
                changed = True
                term = times(term, poly(values[atom]))
            else:
                term = times(term, {(atom,): 1})
        out = plus(out, term)
    return build(out) if changed else x


FUNCTIONS = {ops.ADD: add, ops.MUL: mul, ops.DIV: div, ops.MOD: mod, ops.MAX: maximum}


def apply(op: ops.Op, srcs: Iterable[Node]) -> Node:
    """One of FUNCTIONS between nodes: the operation, in normal form."""
    return as_node(FUNCTIONS[op](*map(as_dim, srcs)))


def row_major(shape: Iterable[Dim]) -> tuple[Dim, ...]:
    """The stride of each axis, in elements, of an array stored row by row."""
    strides: list[Dim] = []
    step: Dim = 1
    for n in reversed(list(shape)):
        strides.append(step)
        step = mul(step, n)
    return tuple(reversed(strides))


def flatten(indices: Iterable[Dim], shape: Iterable[Dim]) -> Dim:
    """The position of an element in an array stored row by row."""
    return sum_of(mul(i, s) for i, s in zip(indices, row_major(shape)))


def unflatten(position: Dim, shape: Iterable[Dim]) -> tuple[Dim, ...]:
    """The inverse of `flatten`: the first axis is not reduced modulo its size."""
    dims = list(shape)
    strides = row_major(dims)
    out: list[Dim] = []
    for k, (n, s) in enumerate(zip(dims, strides)):
        here = div(position, s)
        out.append(mod(here, n) if k else here)
    return tuple(out)
