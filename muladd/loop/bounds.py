"""Proofs that no load and no store of a lowered kernel leaves its array.

For every access 0 <= index and index < size are shown from what is known where it stands: the
ranges of loops, the conditions around it, and its own guard. Each of these is a polynomial that is
at least zero; a goal is proven when multiples of such facts, taken off it, leave something that
`sym.lower` sees to be at least zero. Lanes of a vector are one more loop.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from muladd.errors import BoundsError
from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.ir.polynomial import Poly, long_division, plus, scaled, times, without
from muladd.loop.kernel import reaxis, show
from muladd.loop.narrow import Facts, along, atoms, cases, rounded, split, tightened, whole
from muladd.loop.statements import For, Grid, If, Lowered, Place, Statement, Store

_DEPTH = 5  # facts used in one proof
_BUDGET = 1500  # attempts for one proof
_SPLITS = 8  # loops written as whole parts and remainders


def prove(lowered: Lowered, name: str = "kernel") -> int:
    """Proves every access and gives their number. Raises BoundsError naming kernel, statement and
    index where a proof is not found."""
    return _Prover(lowered, name).run()


class _Prover:
    def __init__(self, lowered: Lowered, name: str) -> None:
        self.lowered, self.name = lowered, name
        self.proven: set[tuple] = set()
        self.count = 0
        self.narrow: dict[Node, Dim] = {}  # loops that stop early
        self.ends: list[Poly] = []  # facts of loops that begin or end where a maximum is

    def run(self) -> int:
        self.statements(self.lowered.body, ())
        return self.count

    def statements(self, body: list[Statement], facts: Facts) -> None:
        for s in body:
            if isinstance(s, Grid):
                for loop in s.loops:
                    self.expression(sym.as_node(loop.arg.extent), facts, s)
                self.statements(s.body, facts)
            elif isinstance(s, For):
                self.expression(sym.as_node(s.start), facts, s)
                self.expression(sym.as_node(s.stop), facts, s)
                self.loop(s, facts)
            elif isinstance(s, If):
                self.expression(s.condition, facts, s)
                self.branch(s.body, facts, conjuncts(self.scalar(s.condition)))
                self.branch(s.orelse, facts, opposite(self.scalar(s.condition)))
            elif isinstance(s, Store):
                self.store(s, facts)

    def loop(self, s: For, facts: Facts) -> None:
        """A loop from 0 to less than its axis' extent counts as an axis of that extent."""
        stop = sym.replace(s.stop, self.narrow)
        if s.start == 0 and stop is not s.loop.arg.extent:
            self.narrow[s.loop] = sym.axis(f"{s.loop.arg.name}'{len(self.narrow)}", stop)
            self.statements(s.body, facts)
            del self.narrow[s.loop]
        else:
            start = sym.replace(s.start, self.narrow)
            ends = _gap(s.loop, stop, 1), _gap(start, s.loop)
            cases = [f for f in ends if any(a.op is ops.MAX for a in atoms(f))]
            self.ends += cases
            self.statements(s.body, (*facts, *ends))
            del self.ends[len(self.ends) - len(cases) :]

    def scalar(self, value: Node) -> Node:
        """`scalar` with narrow loops in their places."""
        x = scalar(value)
        return reaxis(x, dict(self.narrow), {}) if self.narrow else x

    def branch(self, body: list[Statement], facts: Facts, more: Facts | None) -> None:
        """A body under a condition; None is a condition that never holds."""
        if body and more is not None:
            self.statements(body, (*facts, *more))

    def store(self, s: Store, facts: Facts) -> None:
        self.expression(s.value, facts, s)
        self.expression(s.index, facts, s)
        if s.guard is not None:
            self.expression(s.guard, facts, s)
        self.access(s.place, s.index, s.guard, facts, s)

    def expression(self, value: Node, facts: Facts, where: Statement) -> None:
        """Every load in a value."""
        for n in toposort((value,)):
            if n.op is ops.LOAD:
                place = n.arg[0] if isinstance(n.arg, tuple) else n.arg
                self.access(place, n.srcs[0], n.srcs[1] if len(n.srcs) > 1 else None, facts, where)

    def access(
        self, place: Place, index: Node, guard: Node | None, facts: Facts, where: Statement
    ) -> None:
        key = (place, index, guard, tuple(map(_frozen, facts)), tuple(self.narrow.items()))
        self.count += 1
        if key in self.proven:
            return
        known: Facts | None = facts
        if guard is not None:
            more = conjuncts(self.scalar(guard))
            known = None if more is None else (*facts, *more)
        size = self.size(place)
        if known is not None:
            at = sym.as_dim(self.scalar(index))
            for goal, what in ((sym.poly(at), "0 <= index"), (_gap(at, size, 1), "index < size")):
                if not sym.trusted(at) or not self.shown(goal, known):
                    self.refuse(place, index, guard, size, what, where)
        self.proven.add(key)

    def shown(self, goal: Poly, known: Facts) -> bool:
        """Whether goal >= 0 can be proven: first without the cases of where loops end, for what
        an access is guarded by is enough for most."""
        plain = tuple(f for f in known if not any(f is x for x in self.ends))
        if len(plain) < len(known) and holds(goal, plain):
            return True
        return holds(goal, known) or _each_case(goal, known)

    def size(self, place: Place) -> Dim:
        if isinstance(place, str):
            return self.lowered.arrays[place].count
        return self.lowered.kernel.arguments[place].size

    def refuse(self, place: Place, index: Node, guard: Node | None, size: Dim, what: str,
               where: Statement) -> None:  # fmt: skip
        condition = f" if {show(guard)}" if guard is not None else ""
        kind = type(where).__name__
        text = f"{where.place}[{show(where.index)}]" if isinstance(where, Store) else ""
        array = place if isinstance(place, str) else f"b{place}"
        raise BoundsError(
            f"{self.name}: {what} could not be proven for {array}[{show(index)}]{condition} of "
            f"size {show(size)}, in {kind} {text}; give the access a guard that implies it"
        )


# --- facts ---------------------------------------------------------------------------------------


def _gap(a: Dim, b: Dim, least: int = 0) -> Poly:
    """b - a - least, which is >= 0 when a + least <= b."""
    return sym.poly(sym.sub(sym.sub(b, a), least))


def _frozen(p: Poly) -> frozenset:
    return frozenset(p.items())


def conjuncts(condition: Node) -> Facts | None:
    """What holds where a condition does; None if it never does."""
    found: list[Poly] = []
    todo = [condition]
    while todo:
        c = todo.pop()
        if c.op is ops.MUL and c.dtype is dtype.bool_:
            todo.extend(c.srcs)
        elif c.op is ops.CONST and not c.arg:
            return None
        elif _compares(c):
            gap = _gap(sym.as_dim(c.srcs[0]), sym.as_dim(c.srcs[1]), 1)
            if gap and not set(gap) - {()} and gap[()] < 0:
                return None
            found.append(gap)
    return tuple(found)


def opposite(condition: Node) -> Facts | None:
    """What holds where a condition does not."""
    if condition.op is ops.CONST and condition.arg:
        return None
    if _compares(condition):
        return (_gap(sym.as_dim(condition.srcs[1]), sym.as_dim(condition.srcs[0])),)
    return ()


def _compares(c: Node) -> bool:
    """Whether c compares indices to which algebra applies."""
    return c.op is ops.LT and c.srcs[0].dtype is dtype.INDEX and all(map(sym.trusted, c.srcs))


def scalar(value: Node) -> Node:
    """An expression over lanes as one over a loop of that many turns; scalars stay as they are."""
    if not value.shape and not any(n.shape for n in toposort((value,))):
        return value
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.EXPAND or (sym.is_opaque(n) and srcs[0].op is ops.CONST):
            done[n] = srcs[0]
        elif n.op is ops.IOTA:
            done[n] = sym.axis("lane", n.arg)
        elif n.op in sym.FUNCTIONS and n.dtype is dtype.INDEX and all(map(sym.trusted, srcs)):
            done[n] = sym.apply(n.op, srcs)
        elif n.op in (ops.SUM, ops.AMAX) or all(a is b for a, b in zip(srcs, n.srcs)):
            done[n] = n if not n.srcs or n.op not in (ops.SUM, ops.AMAX) else srcs[0]
        else:
            asks = n.op in (ops.CAST, ops.BITCAST, ops.LOAD)
            arg = n.arg[0] if n.op is ops.LOAD and isinstance(n.arg, tuple) else n.arg
            done[n] = make(n.op, srcs, arg, n.dtype if asks else None)
    return done[value]


# --- proofs --------------------------------------------------------------------------------------


def _each_case(goal: Poly, facts: Facts) -> bool:
    """Whether goal >= 0 follows from facts for every value of the sizes or loops that all depends
    on, if those are few."""
    values = cases(goal, facts)
    for case in values:
        here, *known = _replaced((goal, *facts), case)
        if not any(map(_never, known)) and not holds(here, known):
            return False
    return bool(values)


@dataclass
class _Search:
    left: int
    seen: set[tuple]


def holds(goal: Poly, facts: Iterable[Poly] = ()) -> bool:
    """Whether goal >= 0 can be proven from facts, each of which is >= 0."""
    if sym.lower(goal) >= 0:
        return True
    facts = tuple(dict(f) for f in dict.fromkeys(_frozen(whole(f)) for f in facts) if f)
    ways = [_narrowed(goal, facts, *order) for order in ((False, False), (True, False), (True,))]
    for _ in range(_SPLITS):
        loops, more, remainder = split((goal, *facts))
        if not loops:
            break
        goal, *known = _replaced((goal, *facts), loops)
        facts = (*known, *more)
        facts += rounded(facts, remainder)
    ways.append(_narrowed(goal, tuple(map(whole, facts)), False, False))
    return any(  # short proofs first
        _follows(*way, depth, _Search(_BUDGET, set())) for depth in range(1, _DEPTH + 1)
        for way in ways
    )  # fmt: skip


def _narrowed(goal: Poly, facts: Facts, *order: bool) -> tuple[Poly, Facts]:
    """The same with loops that run as far as facts let them, by numbers alone where order says so;
    facts that say nothing new are left out."""
    for by_numbers in order:  # a loop that is now narrower may narrow others
        goal, *known = _replaced((goal, *facts), tightened(facts, by_numbers))
        facts = tuple(f for f in known if sym.lower(f) < 0)
    return goal, facts


def _replaced(known: Facts, loops: dict[Node, Dim]) -> Facts:
    if not loops:
        return known
    loops = along(loops, known)
    return tuple(sym.poly(sym.replace(sym.build(p), loops)) for p in known)


def _follows(goal: Poly, facts: Facts, depth: int, search: _Search) -> bool:
    if sym.lower(goal) >= 0 or sym.lower(_least(goal)) >= 0:
        return True
    key = (_frozen(goal), len(facts), depth)
    if depth == 0 or key in search.seen or search.left <= 0:
        return False
    search.seen.add(key)
    search.left -= 1
    for atom in atoms(goal):
        if atom.op is ops.MAX:
            return _either(goal, atom, facts, depth, search)
    for fact in (*facts, *_definitions(goal, facts)):
        for weaker in _without(goal, fact):
            if _follows(weaker, facts, depth - 1, search):
                return True
    return False


def _either(goal: Poly, atom: Node, facts: Facts, depth: int, search: _Search) -> bool:
    """A maximum is one of its two sides, and at least the other: both cases must hold."""
    a, b = (sym.as_dim(s) for s in atom.srcs)
    for one, other in ((a, b), (b, a)):
        values: dict[Node, Dim] = {atom: one}
        case = sym.poly(sym.replace(sym.build(goal), values))
        known = tuple(sym.poly(sym.replace(sym.build(f), values)) for f in facts)
        known = (*known, _gap(other, one))
        if not any(map(_never, known)) and not _follows(case, known, depth, search):
            return False
    return True


def _never(fact: Poly) -> bool:
    """Whether something which is said to be at least zero is a number below: no such case."""
    return not set(fact) - {()} and fact.get((), 0) < 0


def _definitions(goal: Poly, facts: Facts) -> list[Poly]:
    """q = x div d says d*q <= x <= d*q + d - 1, and with r = x mod d that d*q + r is x; a maximum
    is at least each of its sides; a loop stays below its extent."""
    found: list[Poly] = []
    seen = dict.fromkeys([*atoms(goal), *(a for f in facts for a in atoms(f))])
    for atom in seen:
        if atom.op is ops.DIV and sym.bounds(atom.srcs[1])[0] > 0:
            x, d = (sym.as_dim(s) for s in atom.srcs)
            low = sym.mul(atom, d)
            found += [_gap(low, x), _gap(x, sym.add(low, d), 1)]
            found += [_gap(atom, most) for most in _quotients(x, d, facts)]
            if isinstance(d, int):
                found += _rounded(atom, sym.poly(x), d, facts)
        elif atom.op is ops.MAX:
            found += [_gap(sym.as_dim(s), atom) for s in atom.srcs]
        elif atom.op is ops.MOD and sym.bounds(atom.srcs[1])[0] > 0:
            x, d = (sym.as_dim(s) for s in atom.srcs)
            if isinstance(d, int) and (q := sym.div(x, d)) in seen:
                rest = plus(sym.poly(x), {(q,): d, (atom,): 1}, -1)  # type: ignore[dict-item]
                found += [rest, scaled(rest, -1)]
            if holds(sym.poly(x)) or any(f == sym.poly(x) for f in facts):
                found.append(_gap(atom, x))
        elif atom.op is ops.RANGE and not isinstance(atom.arg.extent, int):
            if any(a.op is ops.MAX for a in atoms(sym.poly(atom.arg.extent))):
                found.append(_gap(atom, atom.arg.extent, 1))  # as both sides of the maximum
    return found


def _rounded(atom: Node, x: Poly, d: int, facts: Facts) -> list[Poly]:
    """Facts that bound x, or x + d*r for whole r, by numbers bound x div d by whole numbers."""
    found: list[Poly] = []
    for f in facts:
        apart, together = plus(f, x, -1), plus(f, x)
        if (r := _multiple(apart, d)) is not None:  # f is x + d*r + k
            found.append(_gap(sym.sub(-apart.get((), 0) // d, r), atom))
        if (r := _multiple(together, d)) is not None:  # f is k + d*r - x
            found.append(_gap(atom, sym.add(together.get((), 0) // d, r)))
    return found


def _multiple(p: Poly, d: int) -> Dim | None:
    """r, where p is d*r and a number."""
    rest = {mono: c for mono, c in p.items() if mono}
    if any(c % d for c in rest.values()):
        return None
    return sym.build({mono: c // d for mono, c in rest.items()})


def _quotients(x: Dim, d: Dim, facts: Facts) -> list[Dim]:
    """What x div d is at most, for a symbolic d: from x <= greatest, where that has no loops."""
    if isinstance(d, int):
        return []
    greatest = []
    for bound in (_greatest(sym.poly(x)), *(plus(f, sym.poly(x)) for f in facts)):
        if not any(a.op is ops.RANGE for a in atoms(bound)):
            greatest.append(bound)
    found: list[Dim] = []
    for bound in greatest:
        whole, rest = long_division(plus(bound, {(): 1}), sym.poly(d))
        if sym.lower(scaled(rest, -1)) >= 0:  # x < whole * d
            found.append(sym.add(sym.build(whole), -1))
    return found


def _greatest(p: Poly) -> Poly:
    """An upper bound of p without loops, where each of them occurs with one sign."""
    for _ in range(16):
        inner_first = sorted((a for a in atoms(p) if a.op is ops.RANGE), key=_nesting, reverse=True)
        loop = next((a for a in inner_first if sym.eliminable(a, p)), None)
        if loop is None:
            return _multiplied(p)
        slope = {without(m, (loop,)): c for m, c in p.items() if loop in m}
        rest = {m: c for m, c in p.items() if loop not in m}
        low, high = sym.ends(loop)
        up = sym.interval(slope)[0] >= 0  # type: ignore[arg-type]
        p = plus(rest, times(slope, high if up else low))  # type: ignore[arg-type]
    return p


def _nesting(loop: Node) -> int:
    """How many loops deep a loop's extent depends on others."""
    if isinstance(loop.arg.extent, int):
        return 0
    inside = (n for n in toposort((loop.arg.extent,)) if n.op is ops.RANGE)
    return 1 + max(map(_nesting, inside), default=0)


def _least(p: Poly) -> Poly:
    """A lower bound of p without loops, where each of them occurs with one sign."""
    return scaled(_greatest(scaled(p, -1)), -1)


def _multiplied(p: Poly) -> Poly:
    """An upper bound of p: k * d * (x div d) is at most k * x, also beside other factors."""
    for mono, c in list(p.items()):
        atom = next((a for a in mono if a.op is ops.DIV), None)
        if atom is None or c < 0:
            continue
        others = without(mono, (atom,))
        x, d = (sym.as_dim(s) for s in atom.srcs)
        if others is None or any(sym.bounds(a)[0] < 0 for a in others):
            continue
        if isinstance(d, int):
            bound = _quotient(sym.poly(x), d, c)
        else:
            most = _quotients(x, d, ())
            bound = scaled(sym.poly(most[0]), c) if most else None
        if bound is not None:
            p = plus(plus(p, {mono: c}, -1), times({others: 1}, bound))
    return p


def _quotient(x: Poly, d: int, c: int) -> Poly | None:
    """An upper bound of c * (x div d), by multiplying or by dividing what x is at most."""
    if d > 0 and c % d == 0:
        return scaled(x, c // d)
    most = _greatest(x)
    if d <= 0 or any(a.op is ops.RANGE or sym.bounds(a)[0] < 0 for a in atoms(most)):
        return None
    whole = sym.poly(sym.div(sym.build(most), d))
    if any(a.op is ops.DIV for a in atoms(whole)):  # each coefficient rounded up instead
        whole = {m: -(-k // d) for m, k in most.items() if -(-k // d)}
    return scaled(whole, c)


def _without(goal: Poly, fact: Poly) -> list[Poly]:
    """Goals that imply this one given a fact: a multiple of the fact taken off, such that one term
    vanishes. k * goal - factor * fact > -k with k > 0 and factor >= 0 is enough."""
    found = []
    for mono, c in goal.items():
        if not mono:
            continue
        for part, f in fact.items():
            if not part or (c > 0) != (f > 0):
                continue
            rest = without(mono, part)
            if rest is None or any(sym.bounds(a)[0] < 0 for a in rest):
                continue
            scaled = {m: v * abs(f) for m, v in goal.items()}
            scaled[()] = scaled.get((), 0) + abs(f) - 1  # whole numbers: k * goal > -k will do
            taken = times({rest: abs(c)}, fact)
            found.append(plus(scaled, taken, -1))
    return found


__all__ = ["holds", "prove", "scalar"]
