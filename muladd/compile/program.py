"""A compiled graph: its kernels, its steps, where its arrays lie, and how to run it.

Sizes may be symbolic. Kernels are compiled once; for each set of sizes the steps are made into a
table with plain numbers (offsets, grids, counts), and that table is kept.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from muladd import config
from muladd.compile import report
from muladd.compile.kernels import CompiledKernel
from muladd.compile.memory import arranged, place
from muladd.device import Arg, Buffer, Copy, Device, Executable, Repeat, Step
from muladd.ir import Dim, DType, sym


@dataclass(eq=False)
class Array:
    """An array of a program: an input, an output, or memory of its own."""

    dtype: DType
    size: Dim  # elements
    kind: str = "temporary"  # input | output | temporary
    number: int = 0  # which input or output
    view: Array | None = None  # an array whose memory this one shares

    def root(self) -> Array:
        return self if self.view is None else self.view.root()


@dataclass(frozen=True, eq=False)
class Use:
    """An array as a kernel sees it: moved by the indices of the enclosing loops (elements)."""

    array: Array
    steps: tuple[tuple[int, Dim], ...] = ()


@dataclass(eq=False)
class Run:
    """Run a kernel over arrays."""

    kernel: CompiledKernel
    uses: tuple[Use, ...]


@dataclass(eq=False)
class Move:
    """Copy one array (or slice) onto another."""

    to: Use
    source: Use
    size: Dim
    itemsize: int


@dataclass(eq=False)
class Loop:
    """Actions repeated; a depth's index moves the uses inside."""

    count: Dim
    body: list[Action]
    reverse: bool = False


Action = Run | Move | Loop


def walk(actions: Sequence[Action]) -> Iterator[Run | Move]:
    for a in actions:
        if isinstance(a, Loop):
            yield from walk(a.body)
        else:
            yield a


@dataclass(eq=False)
class Bound:
    """A program for given sizes: the table, and the sizes of what it needs."""

    executable: Executable
    outputs: tuple[int, ...]  # bytes
    arena: int  # bytes
    steps: tuple[Step, ...]
    launched: tuple[CompiledKernel | None, ...] = ()  # per launch or copy, in order
    memory: Any = None


@dataclass(eq=False)
class Program:
    """Everything needed to run a graph on a device, any number of times."""

    device: Device
    actions: list[Action]
    inputs: list[Array]
    outputs: list[Array]
    variables: tuple[str, ...]
    bound: dict[tuple[int, ...], Bound] = field(default_factory=dict)
    donatable: set[tuple[int, int]] | None = None  # see donate.py; None until it is known
    order: list[Array] | None = None  # of placing temporary arrays; None until it is searched for
    lock: Any = field(default_factory=threading.Lock)  # the arena serves one run at a time

    def bind(self, values: Sequence[int] = ()) -> Bound:
        """The table for these values of the symbolic sizes."""
        key = tuple(values)
        found = self.bound.get(key)
        if found is None:
            found = self.bound[key] = self._build(dict(zip(self.variables, key)))
        return found

    def run(self, inputs: Sequence[Any], values: Sequence[int] = (),
            outputs: Sequence[Any] | None = None) -> list[Any]:  # fmt: skip
        """Run over device buffers; gives the output buffers (new ones unless given)."""
        bound = self.bind(values)
        if outputs is None:
            outputs = [self.device.allocate(n) for n in bound.outputs]
        arena = bound.memory
        if arena is None:
            arena = bound.memory = self.device.allocate(bound.arena)
        with self.lock:
            bound.executable.run([*inputs, *outputs, arena], values)
            if config.get("DEBUG"):
                report.after_run(self, bound, values)
        return list(outputs)

    def timing(self, wanted: bool) -> None:
        """Time every launch from now on, or no longer."""
        for bound in self.bound.values():
            bound.executable.timing = wanted
            if wanted:
                bound.executable.times()

    def peak_bytes(self, values: Sequence[int] = ()) -> int:
        """Memory the program itself takes beside its inputs: outputs and the arena."""
        bound = self.bind(values)
        return sum(bound.outputs) + bound.arena

    def arrangement(self) -> list[Array]:
        """The order in which temporary arrays are placed: one for all sizes, searched for at the
        largest, so that another size costs no search."""
        if self.order is None:
            self.order = arranged(self.actions, lambda size: sym.bounds(size)[1])
        return self.order

    def kernels(self) -> list[CompiledKernel]:
        """The kernels in the order in which they run."""
        return [a.kernel for a in walk(self.actions) if isinstance(a, Run)]

    def _build(self, values: dict[str, int]) -> Bound:
        def number(x: Dim) -> int:
            return sym.evaluate(x, values)

        placed, arena = place(self.actions, number, self.arrangement())
        slots: dict[Array, tuple[int, int]] = {}
        for a in self.inputs:
            slots[a] = (a.number, 0)
        for a in self.outputs:
            slots.setdefault(a, (len(self.inputs) + a.number, 0))
        own = len(self.inputs) + len(self.outputs)
        slots.update({a: (own, offset) for a, offset in placed.items()})

        def arg(use: Use) -> Arg:
            slot, offset = slots[use.array.root()]
            d = use.array.dtype.itemsize
            return Arg(slot, offset, tuple((depth, number(s) * d) for depth, s in use.steps))

        launched: list[CompiledKernel | None] = []
        table = _steps(self.actions, arg, number, launched)
        scratch = max((k.scratch for k in self.kernels()), default=0)
        executable = self.device.program(table, own + 1, scratch, len(self.variables))
        sizes = tuple(number(a.size) * a.dtype.itemsize for a in self.outputs)
        executable.timing = report.wanted()
        return Bound(executable, sizes, max(arena, 64), table, tuple(launched))


def _steps(
    actions: list[Action], arg: Callable[[Use], Arg], number: Callable[[Dim], int],
    launched: list[CompiledKernel | None],
) -> tuple[Step, ...]:  # fmt: skip
    """Actions as a device takes them; the kernel of each launch is added to `launched`."""
    out: list[Step] = []
    for a in actions:
        if isinstance(a, Run):
            launch = a.kernel.launch(tuple(map(arg, a.uses)), number)
            if launch.grid != 0:
                out.append(launch)
                launched.append(a.kernel)
        elif isinstance(a, Move):
            launched.append(None)
            out.append(Copy(arg(a.to), arg(a.source), number(a.size) * a.itemsize))
        else:
            out.append(Repeat(number(a.count), _steps(a.body, arg, number, launched), a.reverse))
    return tuple(out)


__all__ = ["Action", "Array", "Bound", "Buffer", "Loop", "Move", "Program", "Run", "Use", "walk"]
