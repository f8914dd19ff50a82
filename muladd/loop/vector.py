"""Expressions at one turn of the loops, for one lane or for all lanes of a vector.

Axes become loop variables, stages become buffers.

`at` works on scalars; `spread` then turns whatever depends on the vector loop into values of shape
(lanes,): the loop itself is IOTA, what does not depend on it is EXPANDed where the two meet.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import product

from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort

Slots = Callable[[str, tuple[Dim, ...]], Dim]


class Known:
    """What earlier turns came to: in a tile of results most loads are those of a neighbour."""

    def __init__(self) -> None:
        self.loads: dict[tuple, Node] = {}  # by load, its axes and its buffers' turns
        self.wide: dict[Node, dict[Node, Node]] = {}  # by vector loop and node
        self._inside: dict[Node, tuple[list[Node], list[str]]] = {}

    def inside(self, load: Node) -> tuple[list[Node], list[str]]:
        """The axes and the stages that an access depends on."""
        if load not in self._inside:
            order = toposort((load,))
            self._inside[load] = ([n for n in order if n.op is ops.RANGE],
                                  [n.arg[0] for n in order if n.op is ops.READ])  # fmt: skip
        return self._inside[load]


def at(
    value: Node, exact: dict[Node, Dim], clamped: dict[Node, Dim],
    masks: dict[Node, Node | bool], vector: Node | None, slot: Slots, known: Known,
    turns: Callable[[str], tuple],
) -> Node:  # fmt: skip
    """A stage's value at one turn.

    exact gives each axis; clamped gives it for addresses of arguments, never outside; masks tells,
    for an axis that the vector loop belongs to, which lanes are inside; turns tells what the slots
    of a stage depend on besides their indices.
    """
    ragged = {a for a in exact if a in masks or clamped[a] is not exact[a]}
    done: dict[tuple[Node, bool], Node] = {}
    stack: list[tuple[Node, bool]] = [(value, False)]
    while stack:
        n, address = key = stack[-1]
        if key in done:
            stack.pop()
            continue
        here: tuple = ()
        if not address and n.op in (ops.LOAD, ops.READ):
            axes, stages = known.inside(n)
            here = (n, *[x for a in axes for x in (exact.get(a), clamped.get(a), masks.get(a))],
                    *[x for name in stages for x in turns(name)])  # fmt: skip
            if here in known.loads:
                done[key] = known.loads[here]
                continue
        inner = address or n.op is ops.LOAD or (n.op is ops.READ and _strays(n, ragged))
        missing = [(s, inner) for s in n.srcs if (s, inner) not in done]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        srcs = tuple(done[s, inner] for s in n.srcs)
        stray = ragged if inner and n.op is ops.READ else None
        done[key] = _one(n, srcs, clamped if address else exact, masks, slot, bool(stray))
        if here:
            known.loads[here] = done[key]
    return spread(done[value, False], vector, known)


def _strays(read: Node, ragged: set[Node]) -> bool:
    """Whether a stage is read at an index made of an axis that overhangs. (Buffers are padded for
    the axis itself, and for sums of it and others.)"""
    for s in read.srcs if ragged else ():
        inside = ragged & {*toposort((s,))}
        if s in inside or not inside:
            continue
        terms = sym.poly(sym.as_dim(s))
        if any(terms.get((a,)) != 1 for a in inside):
            return True
        if any(a in toposort(m) for a in inside for m in terms if m and m != (a,)):
            return True
    return False


def _one(n: Node, srcs: tuple, axes: dict[Node, Dim], masks: dict, slot: Slots,
         stray: bool) -> Node:  # fmt: skip
    if n.op is ops.RANGE:
        return sym.as_node(axes.get(n, n))
    if n.op is ops.READ:
        name, _ = n.arg
        index = sym.as_node(slot(name, tuple(map(sym.as_dim, srcs))))
        return _load(n, name, index, True, masks if stray else {})
    if n.op is ops.LOAD:
        return _load(n, n.arg, srcs[0], srcs[1] if len(srcs) > 1 else True, masks)
    if n.op in sym.FUNCTIONS and n.dtype is dtype.INDEX and sym.trusted(n):
        return sym.apply(n.op, srcs)
    if all(a is b for a, b in zip(srcs, n.srcs)):
        return n
    if n.op is ops.LT and n.srcs[0].dtype is dtype.INDEX and all(map(sym.trusted, n.srcs)):
        known = sym.is_less(sym.as_dim(srcs[0]), sym.as_dim(srcs[1]))
        if known is not None:
            return make(ops.CONST, (), known, dtype.bool_)
    return make(n.op, srcs, n.arg, n.dtype if n.op in (ops.CAST, ops.BITCAST) else None)


def _load(n: Node, place: int | str, index: Node, guard: sym.Condition, masks: dict) -> Node:
    """The load for n, under its guard and the masks of the overhanging axes it depends on."""
    for axis, mask in masks.items():
        if axis in toposort(n.srcs):
            guard = sym.both(guard, mask)
    if guard is True:
        return make(ops.LOAD, (index,), place, n.dtype)
    if guard is False:
        return make(ops.CONST, (), 0, n.dtype)
    return make(ops.LOAD, (index, guard), place, n.dtype)


def base_of(index: Node) -> Node:
    """The first of the places that lanes have, if they lie side by side."""
    first = index.srcs[0]
    return first.srcs[0] if first.op is ops.EXPAND else first


def spread(value: Node, vector: Node | None, known: Known) -> Node:
    """value for all lanes of the vector loop at once: shape (lanes,), or () if it does not vary."""
    if vector is None:
        return value
    lanes = vector.arg.extent
    done = known.wide.setdefault(vector, {})
    for n in toposort((value,), into=lambda m: m not in done):
        if n in done:
            continue
        if n is vector:
            ramp = make(ops.IOTA, (), lanes, dtype.INDEX)
            done[n] = make(ops.ADD, (_wide(sym.as_node(0), lanes), ramp))
        elif all(done[s] is s for s in n.srcs):
            done[n] = n  # does not vary
        elif n.dtype is dtype.INDEX and (index := _affine(n, vector, lanes, done)) is not None:
            done[n] = index
        else:
            srcs = tuple(_wide(done[s], lanes) for s in n.srcs)
            if n.op is ops.LOAD and len(srcs) > 1:
                srcs = (srcs[0], _mask(srcs[1]))
            needs = n.op in (ops.CAST, ops.BITCAST, ops.LOAD)
            done[n] = make(n.op, srcs, n.arg, n.dtype if needs else None)
    return done[value]


def _mask(guard: Node) -> Node:
    """A guard of lanes joined with one for all lanes, its constants made opaque.

    LLVM 22 takes a masked load for a plain one, or ends in an assertion, where half of a mask that
    is no constant turns out to be all false (seen on x86; LLVM IR and its passes are right).
    """
    parts, todo = [], [guard]
    while todo:
        c = todo.pop()
        if c.op is ops.MUL and c.dtype is dtype.bool_:
            todo.extend(c.srcs)
        else:
            parts.append(c)
    if not any(c.op is ops.EXPAND for c in parts):
        return guard
    done: dict[Node, Node] = {}
    for n in toposort((guard,), into=lambda m: m.dtype is dtype.bool_):
        if n.op is ops.EXPAND and n.srcs[0].op is ops.CONST and n.dtype is dtype.INDEX:
            hidden = make(ops.BITCAST, n.srcs, None, dtype.INDEX)
            done[n] = make(ops.EXPAND, (hidden,), n.shape)
        elif n.dtype is dtype.bool_ and n.srcs and n.op is not ops.EXPAND:
            srcs = tuple(done.get(s, s) for s in n.srcs)
            done[n] = make(n.op, srcs, n.arg, n.dtype if n.op in _ASKING else None)
    return done.get(guard, guard)


_ASKING = (ops.CAST, ops.BITCAST, ops.LOAD)


def _wide(n: Node, lanes: int) -> Node:
    return n if n.shape else make(ops.EXPAND, (n,), (lanes,))


def _affine(n: Node, vector: Node, lanes: int, done: dict[Node, Node]) -> Node | None:
    """base + step * lane, when an index has that form."""
    base: sym.Poly = {}
    step: sym.Poly = {}
    for mono, c in sym.poly(n).items():
        if vector in mono:
            left = list(mono)
            left.remove(vector)
            if any(_varies(a, done) for a in left):
                return None
            step[tuple(left)] = c
        elif any(_varies(a, done) for a in mono):
            return None
        else:
            base[mono] = c
    ramp = make(ops.IOTA, (), lanes, dtype.INDEX)
    stride = sym.build(step)
    if stride != 1:
        ramp = make(ops.MUL, (ramp, _wide(sym.as_node(stride), lanes)))
    return make(ops.ADD, (_wide(sym.as_node(sym.build(base)), lanes), ramp))


def _varies(n: Node, done: dict[Node, Node]) -> bool:
    return done.get(n) is not n


def at_lane(value: Node, lane: int) -> Node | None:
    """An index, or a condition of indices, for one lane; None if that needs what lanes load."""
    done: dict[Node, Node] = {}
    for n in toposort((value,), into=lambda m: m.op is not ops.EXPAND):
        if n.op is ops.EXPAND and not n.srcs[0].shape:
            done[n] = n.srcs[0]
        elif n.op is ops.IOTA:
            done[n] = sym.as_node(lane)
        elif not n.shape:
            done[n] = n
        elif any(s not in done for s in n.srcs):
            return None
        elif n.dtype is dtype.INDEX and not all(sym.trusted(done[s]) for s in n.srcs):
            return None
        elif n.op in sym.FUNCTIONS and n.dtype is dtype.INDEX:
            done[n] = sym.apply(n.op, tuple(done[s] for s in n.srcs))
        elif n.op is ops.LT and n.srcs[0].dtype is dtype.INDEX:
            left, right = (sym.as_dim(done[s]) for s in n.srcs)
            done[n] = sym.as_condition(sym.less(left, right))
        elif n.op is ops.MUL and n.dtype is dtype.bool_:
            a, b = (_known(done[s]) for s in n.srcs)
            done[n] = sym.as_condition(sym.both(a, b))
        else:
            return None
    return done[value]


def _known(condition: Node) -> sym.Condition:
    return bool(condition.arg) if condition.op is ops.CONST else condition


def turns_of(loops: list[Node], values: dict[Node, Dim]) -> list[dict[Node, Dim]]:
    """Every combination of turns of some (constant) loops, the last loop fastest."""
    return [
        {**values, **dict(zip(loops, turn))}
        for turn in product(*(range(x.arg.extent) for x in loops))
    ]
