"""Schedules near a schedule: what a search tries next.

`starts` gives the plans that the recipes make of a kernel for machines a little unlike this one;
`near` changes one thing about a schedule: a factor, an order, what is written out, where a stage is
computed, what is copied. Most of what it gives is slower and some of it fits no kernel: both are
found out by whoever tries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.schedule.heuristic import collapse_all
from muladd.schedule.recipes.rows import rows

Lines = tuple[str, ...]
_FEW = 8  # turns of a loop that may be written out


def starts(
    kernel: Kernel, machine: Machine, schedule: Callable[[Kernel, Machine], Plan]
) -> Iterator[Lines]:
    """The schedule for this machine and for others, and those of the simpler recipe."""
    machines = [machine]
    for factor in (0.25, 0.5, 2, 4):
        machines.append(replace(machine, l1=int(machine.l1 * factor)))
        machines.append(replace(machine, l2=int(machine.l2 * factor)))
        machines.append(replace(machine, cores=max(1, int(machine.cores * factor))))
    for registers in (machine.vector_registers // 2, machine.vector_registers * 3 // 2):
        machines.append(replace(machine, vector_registers=registers))
    for bits in (machine.vector_bits // 2, machine.vector_bits * 2):
        if 128 <= bits <= 512:
            machines.append(replace(machine, vector_bits=bits))
    for one in machines:
        yield schedule(kernel, one).lines
    for one in machines if not any(s.scatter for s in kernel.stages) else ():
        try:
            yield rows(collapse_all(kernel), one).lines
        except ScheduleError:
            continue


def near(plan: Plan) -> Iterator[Lines]:
    """The schedules that differ from a plan's own in one thing."""
    lines = plan.lines
    for k, line in enumerate(lines):
        name, *words = line.split()
        for changed in _CHANGES.get(name, _nothing)(words, lines):
            text = " ".join([name, *changed])
            if name == "split":  # an axis and its copies are split alike
                yield tuple(text.replace(words[0], x.split()[1], 1) if _alike(x, line) else x
                            for x in lines)  # fmt: skip
            else:
                yield (*lines[:k], text, *lines[k + 1 :])
        if name in ("unroll", "nontemporal", "ahead"):
            yield (*lines[:k], *lines[k + 1 :])
        if name == "copy":
            yield _without(lines, words[-1])
    for s in plan.kernel.stages:
        for x in plan.nests[s.name]:
            few = isinstance(x.arg.extent, int) and 1 < x.arg.extent <= _FEW
            if few and not plan.unrolls(s, x) and not plan.spreads(s, x):
                yield (*lines, f"unroll {s.name} {x.arg.name}")
        if s.argument is not None and s.name not in plan.nontemporal:
            yield (*lines, f"nontemporal {s.name}")


def _alike(other: str, line: str) -> bool:
    (a, loop, *factors), (b, same, *wanted) = other.split(), line.split()
    return a == b and factors == wanted and (loop == same or loop.endswith(f".{same}"))


def _without(lines: Lines, copy: str) -> Lines:
    """The schedule that reads an operand as it lies."""
    mine = lambda word: word == copy or word.startswith(f"{copy}.")  # noqa: E731
    return tuple(x for x in lines if not any(map(mine, x.split())))


def _nothing(words: list[str], lines: Lines) -> Iterator[list[str]]:
    yield from ()


def _factors(words: list[str], lines: Lines) -> Iterator[list[str]]:
    loop, *given = words
    lanes = {word for x in lines if x.startswith("vector") for word in x.split()[1:]}
    for k, text in enumerate(given):
        f = int(text)
        wanted = [f * 2, f // 2] + ([] if f"{loop}.{k + 1}" in lanes else [f + 1, f - 1, f * 4])
        for new in dict.fromkeys(wanted):
            if new >= 1 and new != f:
                yield [loop, *given[:k], str(new), *given[k + 1 :]]
    for k, (a, b) in enumerate(pairwise(map(int, given))):  # the same tile, cut elsewhere
        for new, rest in ((a * 2, b // 2), (a // 2, b * 2)):
            if new >= 1 and new * rest == a * b:
                yield [loop, *given[:k], str(new), str(rest), *given[k + 2 :]]


def _swapped(first: int) -> Callable[[list[str], Lines], Iterator[list[str]]]:
    """Two neighbours of the words from `first` on change places, unless they are of one axis."""

    def changes(words: list[str], lines: Lines) -> Iterator[list[str]]:
        for k in range(first, len(words) - 1):
            a, b = words[k], words[k + 1]
            if a.rsplit(".", 1)[0] != b.rsplit(".", 1)[0]:
                yield [*words[:k], b, a, *words[k + 2 :]]

    return changes


def _counted(words: list[str], lines: Lines) -> Iterator[list[str]]:
    """The last word one more, and one less, where it is a number."""
    if words[-1].isdigit():
        for n in (int(words[-1]) + 1, int(words[-1]) - 1):
            if n >= 0:
                yield [*words[:-1], str(n)]


def _fewer(words: list[str], lines: Lines) -> Iterator[list[str]]:
    for k in range(1, len(words)):
        yield [*words[:k], *words[k + 1 :]]


_CHANGES: dict[str, Callable[[list[str], Lines], Iterator[list[str]]]] = {
    "split": _factors, "outer": _swapped(0), "nest": _swapped(1), "parallel": _counted,
    "at": _counted, "unroll": _fewer, "layout": _swapped(1),
}  # fmt: skip
