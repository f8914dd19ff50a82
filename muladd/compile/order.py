"""One program for graphs that differ in nothing but the order of outputs and Params' numbers.

A training step is met first as it stands and then traced, and gives the same values in another
order. So a graph is compiled in an order of its own: what is computed in fewer steps comes first,
and Params are numbered by first use. Its program serves the graph in any order, see `arranged`.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muladd.compile.donate import donatable
from muladd.compile.program import Array, Program
from muladd.ir import Node, Param, ops, param, substitute, toposort


@dataclass(frozen=True)
class Ordered:
    """A graph in its own order."""

    graph: tuple[Node, ...]
    outputs: tuple[int, ...]  # where each output of the given graph is
    numbers: dict[int, int]  # the number of each Param, by the one it was given

    @classmethod
    def of(cls, outputs: Sequence[Node]) -> Ordered:
        order = toposort(outputs)
        sequence = list(range(len(outputs)))
        if len(outputs) > 1:
            ranks = _ranks(order)
            sequence.sort(key=lambda i: ranks[outputs[i]])
            order = toposort([outputs[i] for i in sequence])
        params = [n for n in order if n.op is ops.INPUT and isinstance(n.arg, Param)]
        numbers = {n.arg.index: number for number, n in enumerate(params)}
        renamed = {n: param(i, n.shape, n.dtype) for i, n in enumerate(params) if n.arg.index != i}
        graph = tuple([outputs[i] for i in sequence])
        places = {i: at for at, i in enumerate(sequence)}
        where = tuple([places[i] for i in range(len(outputs))])
        return cls(substitute(graph, renamed) if renamed else graph, where, numbers)

    def renumbered(self, numbers: Iterable[int]) -> frozenset[int]:
        """The numbers of Params in this order, of those that the graph has."""
        return frozenset([self.numbers[i] for i in numbers if i in self.numbers])

    def arranged(self, program: Program) -> Program:
        """The program of the graph as it was given, from that of its own order."""
        place = {number: i for i, number in self.numbers.items()}
        found = program.over(
            _moved(program.inputs, place), [program.outputs[i] for i in self.outputs]
        )
        if program.held is not None:
            held = program.held
            found.held = held.over(_moved(held.inputs, place), held.outputs)
        wanted = {at: o for o, at in enumerate(self.outputs)}
        found.donatable = {(wanted[at], place[number]) for at, number in donatable(program)}
        return found


def _ranks(order: list[Node]) -> dict[Node, tuple[int, int]]:
    """Of each value the steps to it, and a hash of most of what is known of it without the numbers
    of Params; the same in every process."""
    steps: dict[Node, int] = {}
    marks: dict[Node, int] = {}
    for n in order:
        srcs = n.srcs
        if srcs:
            steps[n] = 1 + max([steps[s] for s in srcs])
            marks[n] = hash((_NUMBERS[n.op], *[marks[s] for s in srcs]))
        else:
            known = tuple([size for size in n.shape if isinstance(size, int)])
            steps[n], marks[n] = 0, hash((_NUMBERS[n.op], n.dtype.bits, known))
    return {n: (steps[n], marks[n]) for n in order}


_NUMBERS = {op: number for number, op in enumerate((*ops.OPS, *ops.KERNEL_OPS))}


def _moved(inputs: list[Array], place: dict[int, int]) -> list[Array]:
    """Inputs, each at another place, with empty ones at places between."""
    at = {place[number]: a for number, a in enumerate(inputs)}
    count = 1 + max(at, default=-1)
    return [at.get(i) or Array(inputs[0].dtype, 0, "input", i) for i in range(count)]
