"""Where temporary arrays lie: one arena, planned from lifetimes before anything runs.

Time is the order of actions. An array lives from its first to its last use; one that a loop reads
from outside, or that carries a value from turn to turn, lives throughout the loop. Arrays lie
largest first, each in the lowest gap between those that live at the same time.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

from muladd.ir import Dim

if TYPE_CHECKING:
    from muladd.compile.program import Action, Array

_ALIGN = 64


def lifetimes(actions: list[Action]) -> dict[Array, tuple[int, int]]:
    """(first, last) action of each temporary array."""
    spans: dict[Array, tuple[int, int]] = {}
    _lived(actions, 0, spans)
    return spans


def _lived(actions: list[Action], clock: int, spans: dict[Array, tuple[int, int]]) -> int:
    """What these actions add to lifetimes, the first at this time; gives the time after them."""
    from muladd.compile.program import Loop, Run

    def touch(array: Array, at: int) -> None:
        array = array.root()
        if array.kind == "temporary":
            low, high = spans.get(array, (at, at))
            spans[array] = (min(low, at), max(high, at))

    for a in actions:
        if isinstance(a, Loop):
            start, outside = clock, set(spans)
            clock = _lived(a.body, clock, spans)
            for array in _crossing(a, outside):
                touch(array, start)
                touch(array, clock)
        else:
            for use in a.uses if isinstance(a, Run) else (a.to, a.source):
                touch(use.array, clock)
        clock += 1
    return clock


def _crossing(loop, outside: set) -> set:  # type: ignore[no-untyped-def, type-arg]
    """Arrays of a loop whose contents outlive a turn: used before, read first, or moving."""
    from muladd.compile.program import Run, walk

    crossing: set[Array] = set()
    written: set[Array] = set()
    for a in walk(loop.body):
        if isinstance(a, Run):
            writes = {u.array.root() for u, w in zip(a.uses, a.kernel.writes) if w}
            reads = {u.array.root() for u, w in zip(a.uses, a.kernel.writes) if not w}
            moving = {u.array.root() for u in a.uses if u.steps}
        else:
            writes, reads = {a.to.array.root()}, {a.source.array.root()}
            moving = {u.array.root() for u in (a.to, a.source) if u.steps}
        crossing |= (reads - written) | moving | ((reads | writes) & outside)
        written |= writes
    return crossing


def place(
    actions: list[Action], number: Callable[[Dim], int], order: Sequence[Array] = ()
) -> tuple[dict[Array, int], int]:
    """(offset of each temporary array, size of the arena), in bytes.

    Arrays are placed in this order (what it lacks comes last), without one in the best that is
    found. Any order is right; a good one wastes little, and serves for other sizes too.
    """
    spans = lifetimes(actions)
    order = order or arranged(actions, number)
    known = {a: None for a in order if a in spans}
    order = [*known, *(a for a in spans if a not in known)]
    return _fit(order, spans, _bytes(spans, number))[:2]


def arranged(actions: list[Action], number: Callable[[Dim], int]) -> list[Array]:
    """The order of temporary arrays that wastes the least memory, of those that are tried.

    Tries begin with an order by a rule; the first array that lies too high moves to the front.
    """
    spans = lifetimes(actions)
    sizes = _bytes(spans, number)
    least = _most_alive(spans, sizes)
    tries = max(4, min(_TRIES, _WORK // max(len(spans), 1) ** 2))
    best, total = list(spans), sum(sizes.values()) + 1
    for key in (_size, _area, _length, _start):
        order = sorted(spans, key=lambda a: key(sizes[a], *spans[a]))  # equal keys: by first use
        for _ in range(tries // 4):
            _, end, highest = _fit(order, spans, sizes, total)
            if end < total:
                best, total = order, end
            if total <= least * _ENOUGH:
                return best
            order = [*highest, *(a for a in order if a not in highest)]
    return best


def _bytes(spans: dict[Array, tuple[int, int]], number: Callable[[Dim], int]) -> dict[Array, int]:
    sizes = {a: max(number(a.size) * a.dtype.itemsize, 1) for a in spans}
    return {a: n + -n % _ALIGN for a, n in sizes.items()}


_TRIES = 160  # placements looked at
_WORK = 8_000_000  # pairs of arrays looked at, roughly: a second at most
_ENOUGH = 1.001  # times what any plan takes: no better one is looked for


def _size(size: int, first: int, last: int) -> tuple:
    return (-size,)


def _area(size: int, first: int, last: int) -> tuple:
    return (-size * (last - first + 1),)


def _length(size: int, first: int, last: int) -> tuple:
    return (first - last, -size)


def _start(size: int, first: int, last: int) -> tuple:
    return (first, -size)


def _fit(
    order: list[Array], spans: dict[Array, tuple[int, int]], sizes: dict[Array, int],
    enough: float = inf,
) -> tuple[dict[Array, int], int, list[Array]]:  # fmt: skip
    """Each array, in this order, into the lowest gap that is free while it lives.

    Gives the offsets, where the highest array ends, and which that is. The first array that ends
    at `enough` or above is the last.
    """
    offsets: dict[Array, int] = {}
    done: list[tuple[int, int, int, int]] = []  # begin, end, first, last; ascending
    total = 0
    highest: list[Array] = []
    for a in order:
        (first, last), size = spans[a], sizes[a]
        begin = 0
        for low, high, f, t in done:
            if f <= last and first <= t:
                if low - begin >= size:
                    break
                if high > begin:
                    begin = high
        end = begin + size
        offsets[a] = begin
        insort(done, (begin, end, first, last))
        if end > total:
            total, highest = end, [a]
        if end >= enough:
            break
    return offsets, total, highest


def lower_bound(actions: list[Action], number: Callable[[Dim], int]) -> int:
    """The most bytes that are alive at one time: no plan can need less."""
    spans = lifetimes(actions)
    return _most_alive(spans, {a: number(a.size) * a.dtype.itemsize for a in spans})


def _most_alive(spans: dict[Array, tuple[int, int]], sizes: dict[Array, int]) -> int:
    change: dict[int, int] = {}
    for a, (first, last) in spans.items():
        change[first] = change.get(first, 0) + sizes[a]
        change[last + 1] = change.get(last + 1, 0) - sizes[a]
    now = most = 0
    for t in sorted(change):
        now += change[t]
        most = max(most, now)
    return most
