"""One program for graphs that differ in nothing but the order of outputs and Params' numbers.

A training step is met first as it stands and then traced, and gives the same values in another
order. So a graph is compiled in an order of its own: what is computed in fewer steps comes first,
and Params are numbered by first use. Its program serves the graph in any order, see `arranged`.
"""
from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from muladd.compile.donate import donatable
from muladd.compile.program import Array, Program
from muladd.ir import Node, Param, ops, param, rebuild, toposort


@dataclass(frozen=True)
class Ordered:
    """A graph in its own order."""

    graph: tuple[Node, ...]
    outputs: tuple[int, ...]  # where each output of the given graph is
    numbers: dict[int, int]  # the number of each Param, by the one it was given

    @classmethod
    def of(cls, outputs: Sequence[Node]) -> Ordered:
        known: dict[Node, tuple[int, int]] = {}
        for n in toposort(outputs):
            known[n] = _rank(n, [known[s] for s in n.srcs])
        sequence = sorted(range(len(outputs)), key=lambda i: known[outputs[i]])
        numbers: dict[int, int] = {}
        done: dict[Node, Node] = {}
        for n in toposort([outputs[i] for i in sequence]):
            if n.op is ops.INPUT and isinstance(n.arg, Param):
                number = numbers.setdefault(n.arg.index, len(numbers))
                done[n] = param(number, n.shape, n.dtype)
            else:
                srcs = tuple([done[s] for s in n.srcs])
                done[n] = n if srcs == n.srcs else rebuild(n, srcs)
        place = {i: at for at, i in enumerate(sequence)}
        where = tuple([place[i] for i in range(len(outputs))])
        return cls(tuple([done[outputs[i]] for i in sequence]), where, numbers)

    def arranged(self, program: Program) -> Program:
        """The program of the graph as it was given, from that of its own order."""
        place = {number: i for i, number in self.numbers.items()}
        found = program.over(
            _moved(program.inputs, place), [program.outputs[i] for i in self.outputs]
        )
        if program.held is not None:
            held = program.held
            found.held = held.over(_moved(held.inputs, place), held.outputs)
        pairs = donatable(program)
        found.donatable = {
            (o, i) for o, at in enumerate(self.outputs) for i, number in self.numbers.items()
            if (at, number) in pairs
        }  # fmt: skip
        return found


def _rank(n: Node, below: list[tuple[int, int]]) -> tuple[int, int]:
    """The steps to a value, and a hash of most of what is known of it without Params' numbers."""
    sizes = [size if isinstance(size, int) else 0 for size in n.shape]
    text = f"{n.op.name} {n.dtype.name} {sizes} {[mark for _, mark in below]}"
    return 1 + max([steps for steps, _ in below], default=0), zlib.crc32(text.encode())


def _moved(inputs: list[Array], place: dict[int, int]) -> list[Array]:
    """Inputs, each at another place, with empty ones at places between."""
    at = {place[number]: a for number, a in enumerate(inputs)}
    count = 1 + max(at, default=-1)
    return [at.get(i) or Array(inputs[0].dtype, 0, "input", i) for i in range(count)]
