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
    """A graph in its own order, which it keeps when it is put in order again."""

    graph: tuple[Node, ...]
    outputs: tuple[int, ...]  # which output of the given graph each one is
    params: tuple[int, ...]  # the number that each Param was given

    @classmethod
    def of(cls, outputs: Sequence[Node]) -> Ordered:
        ranks = _ranks(toposort(outputs))
        sequence = sorted(range(len(outputs)), key=lambda i: ranks[outputs[i]])
        graph = tuple([outputs[i] for i in sequence])
        params = [n for n in toposort(graph) if n.op is ops.INPUT and isinstance(n.arg, Param)]
        renamed = {n: param(i, n.shape, n.dtype) for i, n in enumerate(params) if n.arg.index != i}
        given = tuple([n.arg.index for n in params])
        return cls(substitute(graph, renamed) if renamed else graph, tuple(sequence), given)

    def renumbered(self, numbers: Iterable[int]) -> frozenset[int]:
        """The numbers of Params in this order, of those that the graph has."""
        wanted = set(numbers)
        return frozenset([i for i, given in enumerate(self.params) if given in wanted])

    def arranged(self, program: Program) -> Program:
        """The program of the graph as it was given, from that of its own order."""
        outputs = dict(zip(self.outputs, program.outputs))
        found = program.over(self._places(program.inputs), [outputs[i] for i in sorted(outputs)])
        if program.held is not None:
            held = program.held
            found.held = held.over(self._places(held.inputs), held.outputs)
        found.donatable = {(self.outputs[o], self.params[i]) for o, i in donatable(program)}
        return found

    def _places(self, inputs: list[Array]) -> list[Array]:
        """Inputs at the places that they were given, with empty ones between."""
        at = dict(zip(self.params, inputs))
        count = 1 + max(at, default=-1)
        return [at.get(i) or Array(inputs[0].dtype, 0, "input", i) for i in range(count)]


def _ranks(order: list[Node]) -> dict[Node, tuple[int, int]]:
    """Of each value the steps to it, and a hash of the operations it takes; the same in every
    process, as hashes of whole numbers are. Equal ranks keep the order in which they were given: a
    program more, at worst."""
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
