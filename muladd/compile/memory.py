"""Where temporary arrays lie: one arena, planned from lifetimes before anything runs.

Time is the order of actions. An array lives from its first to its last use; one that a loop reads
from outside, or that carries a value from turn to turn, lives throughout the loop. Arrays lie
largest first, each in the lowest gap between those that live at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from muladd.ir import Dim

if TYPE_CHECKING:
    from muladd.compile.program import Action, Array

_ALIGN = 64


def lifetimes(actions: list[Action]) -> dict[Array, tuple[int, int]]:
    """(first, last) action of each temporary array."""
    from muladd.compile.program import Loop, Run

    spans: dict[Array, tuple[int, int]] = {}
    clock = 0

    def touch(array: Array, at: int) -> None:
        array = array.root()
        if array.kind == "temporary":
            low, high = spans.get(array, (at, at))
            spans[array] = (min(low, at), max(high, at))

    def visit(body: list[Action]) -> None:
        nonlocal clock
        for a in body:
            if isinstance(a, Loop):
                start, outside = clock, set(spans)
                visit(a.body)
                for array in _crossing(a, outside):
                    touch(array, start)
                    touch(array, clock)
                clock += 1
                continue
            for use in a.uses if isinstance(a, Run) else (a.to, a.source):
                touch(use.array, clock)
            clock += 1

    visit(actions)
    return spans


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


def place(actions: list[Action], number: Callable[[Dim], int]) -> tuple[dict[Array, int], int]:
    """(offset of each temporary array, size of the arena), in bytes."""
    spans = lifetimes(actions)
    sizes = {a: max(number(a.size) * a.dtype.itemsize, 1) for a in spans}
    offsets: dict[Array, int] = {}
    done: list[tuple[int, int, int, int]] = []  # first, last, begin, end
    total = 0
    order = {a: i for i, a in enumerate(spans)}
    for a in sorted(spans, key=lambda a: (-sizes[a], order[a])):
        first, last = spans[a]
        size = sizes[a] + -sizes[a] % _ALIGN
        begin = 0
        for low, high in sorted((b, e) for f, t, b, e in done if f <= last and first <= t):
            if low - begin >= size:
                break
            begin = max(begin, high)
        offsets[a] = begin
        done.append((first, last, begin, begin + size))
        total = max(total, begin + size)
    return offsets, total


def lower_bound(actions: list[Action], number: Callable[[Dim], int]) -> int:
    """The most bytes that are alive at one time: no plan can need less."""
    spans = lifetimes(actions)
    change: dict[int, int] = {}
    for a, (first, last) in spans.items():
        size = number(a.size) * a.dtype.itemsize
        change[first] = change.get(first, 0) + size
        change[last + 1] = change.get(last + 1, 0) - size
    now = most = 0
    for t in sorted(change):
        now += change[t]
        most = max(most, now)
    return most
