"""Where a kernel's own arrays may share memory: none needs what another one holds at the time.

A chain of stages over a row then takes the memory of two rows, whatever its length, and that stays
in the cache.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from muladd.ir import Node, ops, toposort
from muladd.loop.kernel import Kernel
from muladd.loop.statements import For, Grid, If, Lowered, Prefetch, Statement, Store

_LINE = 64  # bytes that all arrays are aligned to
Span = tuple[int, int]  # the first and the last of numbered statements


@dataclass
class _Walk:
    """Statements numbered in order; the accesses of each array with the loops around them."""

    count: int = 0
    spans: dict[int, Span] = field(default_factory=dict)  # of loops, by their number
    accesses: dict[str, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)

    def body(self, statements: list[Statement], loops: tuple[int, ...]) -> None:
        for s in statements:
            self.count += 1
            number = self.count
            if isinstance(s, Store):
                self.needs((s.index, s.value, s.guard), loops)
                if isinstance(s.place, str):
                    self.accesses.setdefault(s.place, []).append((number, loops))
            elif isinstance(s, If):
                self.needs((s.condition,), loops)
                self.body(s.body, loops)
                self.body(s.orelse, loops)
            elif isinstance(s, For | Grid):
                if isinstance(s, For):
                    self.needs((s.start, s.stop), loops)
                self.body(s.body, (*loops, number))
                self.count += 1
                self.spans[number] = (number, self.count)
            elif isinstance(s, Prefetch):
                self.needs((s.index,), loops)

    def needs(self, values: Iterable[object], loops: tuple[int, ...]) -> None:
        """What is loaded now, or before: it is there from its store on."""
        roots = tuple(v for v in values if isinstance(v, Node))
        for n in toposort(roots):
            if n.op is ops.LOAD and isinstance(n.arg, str):
                self.accesses.setdefault(n.arg, []).append((self.count, loops))


def lifetimes(lowered: Lowered) -> dict[str, Span]:
    """From when to when each array of the kernel's own is needed, as numbers of statements.

    A loop that some accesses stand in and others do not counts as a whole: its next turn may need
    what this one left.
    """
    walk = _Walk()
    walk.body(lowered.body, ())
    found: dict[str, Span] = {}
    for name, accesses in walk.accesses.items():
        common = accesses[0][1]
        for _, loops in accesses:
            while loops[: len(common)] != common:
                common = common[:-1]
        ends: list[int] = []
        for number, loops in accesses:
            inner = loops[len(common) :]
            ends += walk.spans[inner[0]] if inner else (number, number)
        found[name] = (min(ends), max(ends))
    return found


def offsets(lowered: Lowered, names: Iterable[str]) -> tuple[dict[str, int], int]:
    """Where each of these arrays begins in memory they share, and the bytes of it all."""
    spans = lifetimes(lowered)
    sizes: dict[str, int] = {}
    for name in names:
        size = lowered.arrays[name].count * lowered.arrays[name].dtype.itemsize
        sizes[name] = size + -size % _LINE
    placed: dict[str, int] = {}
    for name in sizes:
        first, last = spans.get(name, (0, 0))
        taken = sorted((start, start + sizes[other]) for other, start in placed.items()
                       if other in spans and spans[other][0] <= last
                       and first <= spans[other][1])  # fmt: skip
        place = 0
        for start, end in taken:
            if place + sizes[name] <= start:
                break
            place = max(place, end)
        placed[name] = place
    total = max((placed[name] + sizes[name] for name in sizes), default=0)
    return placed, total


def waiting(kernel: Kernel) -> set[str]:
    """The sums whose results wait until other sums are done."""
    found = set()
    for i, s in enumerate(kernel.stages):
        readers = [j for j, t in enumerate(kernel.stages)
                   if any(r.arg[0] == s.name for r in t.reads())]  # fmt: skip
        last = max(readers, default=i)
        if s.reduction is not None and any(t.reduction for t in kernel.stages[i + 1 : last]):
            found.add(s.name)
    return found


__all__ = ["lifetimes", "offsets", "waiting"]
