"""A compiled graph: its kernels, its steps, where its arrays lie, and how to run it.

Sizes may be symbolic. Kernels are compiled once. The steps are made into a table, in which offsets
are plain numbers, for memory is planned for sizes up to some; and grids and counts are variables.
"""
from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from muladd import config
from muladd.compile import report
from muladd.compile.kernels import CompiledKernel
from muladd.compile.memory import arranged, lower_bound, place
from muladd.device import Arg, Buffer, Copy, Device, Executable, Launch, Repeat, Step
from muladd.device.base import Quantity, Variable
from muladd.ir import Dim, DType, Node, sym

# bytes of temporary arrays that stay in a core's second cache: so many may a plan for sizes to come
# take, whose arrays lie further apart
_LITTLE = 1 << 17


@dataclass(eq=False)
class Array:
    """An array of a program: an input, an output, or memory of its own."""

    dtype: DType
    size: Dim  # elements
    kind: str = "temporary"  # input | output | held | temporary
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
class Table:
    """A program as a device takes it, for all sizes whose arrays fit into its plan of memory.

    What depends on sizes (how many chunks a kernel has, how often a loop turns) stands in the table
    as variables, which follow those of the sizes: the numbers are given with each call.
    """

    executable: Executable
    launched: tuple[CompiledKernel | None, ...]  # per launch or copy, in order
    arena: int  # bytes
    derived: tuple[Dim, ...]  # the numbers that are given after the sizes
    room: dict[Node, int]  # symbolic sizes of temporary arrays, and what is planned for them

    def fits(self, number: Callable[[Dim], int]) -> bool:
        return all(number(size) <= most for size, most in self.room.items())


@dataclass(eq=False)
class Bound:
    """A program for given sizes: its table, the variables of a call, and the bytes of outputs."""

    table: Table
    variables: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def executable(self) -> Executable:
        return self.table.executable


@dataclass(eq=False)
class Program:
    """Everything needed to run a graph on a device, any number of times."""

    device: Device
    actions: list[Action]
    inputs: list[Array]
    outputs: list[Array]
    variables: tuple[str, ...]
    given: list[Array] = field(default_factory=list)  # what `held` computes, before the inputs
    held: Program | None = None  # from the same inputs, for as long as some of them stay
    bound: dict[tuple[int, ...], Bound] = field(default_factory=dict)
    tables: dict[tuple[int, ...], Table] = field(default_factory=dict)
    donatable: set[tuple[int, int]] | None = None  # see donate.py; None until it is known
    order: list[Array] | None = None  # of placing temporary arrays; None until it is searched for
    lock: Any = field(default_factory=threading.Lock)  # the arena serves one run at a time
    memory: Any = None  # the arena; see `room`
    timed: bool = field(default_factory=report.wanted)

    def bind(self, values: Sequence[int] = ()) -> Bound:
        """What these values of the symbolic sizes need: mostly a few numbers, for there is a table
        already."""
        key = tuple(values)
        found = self.bound.get(key)
        if found is None:
            found = self.bound[key] = self._bind(key)
        return found

    def over(self, inputs: list[Array], outputs: list[Array]) -> Program:
        """The same work, over these arrays of it in this order."""
        return Program(
            self.device, self.actions, inputs, outputs, self.variables, self.given,
            order=self.arrangement(),
        )  # fmt: skip

    def room(self, bound: Bound) -> Any:
        """The arena: one for all sizes, as large as the largest so far has asked for. Whoever runs
        with it holds the lock."""
        if self.memory is None or self.memory.nbytes < bound.table.arena:
            self.memory = None
            self.memory = self.device.allocate(bound.table.arena)
        return self.memory

    def run(
        self, inputs: Sequence[Any], values: Sequence[int] = (),
        outputs: Sequence[Any] | None = None, given: Sequence[Any] | None = None,
    ) -> list[Any]:  # fmt: skip
        """Run over device buffers; gives the output buffers (new ones unless given). `given` are
        those which `held` gave for these inputs, if that was run before."""
        if given is None:
            given = self.held.run(inputs) if self.held is not None else ()
        bound = self.bind(values)
        if outputs is None:
            outputs = [self.device.allocate(n) for n in bound.outputs]
        with self.lock:
            buffers = [*given, *inputs, *outputs, self.room(bound)]
            bound.executable.run(buffers, bound.variables)
            if config.get("DEBUG"):
                report.after_run(self, bound, values)
        return list(outputs)

    def timing(self, wanted: bool) -> None:
        """Time every launch from now on, or no longer. While it is timed, a program has a table for
        each size, so that it is known which sizes a time belongs to."""
        if wanted != self.timed:
            self.timed = wanted
            if self.variables:
                self.bound, self.tables = {}, {}
        for table in self.tables.values():
            table.executable.timing = wanted
            if wanted:
                table.executable.times()

    def peak_bytes(self, values: Sequence[int] = ()) -> int:
        """Memory the program itself takes beside its inputs: outputs and the arena."""
        bound = self.bind(values)
        return sum(bound.outputs) + bound.table.arena

    def arrangement(self) -> list[Array]:
        """The order in which temporary arrays are placed: one for all sizes, searched for at the
        largest, so that another size costs no search."""
        if self.order is None:
            self.order = arranged(self.actions, lambda size: sym.bounds(size)[1])
        return self.order

    def kernels(self) -> list[CompiledKernel]:
        """The kernels in the order in which they run."""
        return [a.kernel for a in walk(self.actions) if isinstance(a, Run)]

    def _bind(self, key: tuple[int, ...]) -> Bound:
        values = dict(zip(self.variables, key))
        known: dict[Dim, int] = {}

        def number(x: Dim) -> int:
            if x not in known:
                known[x] = sym.evaluate(x, values)
            return known[x]

        fitting = [t for t in self.tables.values() if not self.timed and t.fits(number)]
        table = min(fitting, key=lambda t: t.arena, default=None)
        if table is None:
            top = key if self.timed else self._ahead(key)
            table = self.tables[top] = self._table(top)
            if not table.fits(number):  # something grows where a size shrinks
                table = self.tables[key] = self._table(key)
        sizes = tuple(number(a.size) * a.dtype.itemsize for a in self.outputs)
        return Bound(table, (*key, *map(number, table.derived)), sizes)

    def _ahead(self, key: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes that a table is made for when these are wanted: many times as large where that
        takes little memory, else half as large again, for texts grow."""
        tops = [tuple(size * factor for size in key) for factor in (64, 16, 4)] if key else []
        for top in tops:
            values = dict(zip(self.variables, top))
            number = functools.partial(sym.evaluate, values=values)
            if lower_bound(self.actions, number) <= _LITTLE:
                return top
        return tuple(size + size // 2 for size in key)

    def _table(self, key: tuple[int, ...]) -> Table:
        """The table whose memory is planned for these sizes."""
        values = dict(zip(self.variables, key))
        number = functools.partial(sym.evaluate, values=values)
        placed, arena = place(self.actions, number, self.arrangement())
        slots: dict[Array, tuple[int, int]] = {}
        for i, a in enumerate((*self.given, *self.inputs, *self.outputs)):
            slots.setdefault(a, (i, 0))
        own = len(self.given) + len(self.inputs) + len(self.outputs)
        slots.update({a: (own, offset) for a, offset in placed.items()})
        derived: dict[Dim, int] = {}

        def quantity(x: Dim, factor: int = 1) -> Quantity:
            if isinstance(x, int):
                return x * factor
            return Variable(len(key) + derived.setdefault(x, len(derived)), factor)

        def arg(use: Use) -> Arg:
            slot, offset = slots[use.array.root()]
            d = use.array.dtype.itemsize
            return Arg(slot, offset, tuple((depth, quantity(s, d)) for depth, s in use.steps))

        launched: list[CompiledKernel | None] = []
        steps = _steps(self.actions, arg, quantity, launched)
        scratch = max((k.scratch for k in self.kernels()), default=0)
        executable = self.device.program(steps, own + 1, scratch, len(key) + len(derived))
        executable.timing = report.wanted()
        symbolic = {a.size for a in placed if not isinstance(a.size, int)}
        room = {size: number(size) for size in symbolic}
        return Table(executable, tuple(launched), max(arena, 64), tuple(derived), room)


def _steps(
    actions: list[Action], arg: Callable[[Use], Arg], quantity: Callable[..., Quantity],
    launched: list[CompiledKernel | None],
) -> tuple[Step, ...]:  # fmt: skip
    """Actions as a device takes them; the kernel of each launch is added to `launched`."""
    out: list[Step] = []
    for a in actions:
        if isinstance(a, Run):
            grid = quantity(a.kernel.grid)
            if grid != 0:
                k = a.kernel
                out.append(Launch(k.handle, tuple(map(arg, a.uses)), grid, k.name))
                launched.append(k)
        elif isinstance(a, Move):
            launched.append(None)
            out.append(Copy(arg(a.to), arg(a.source), quantity(a.size, a.itemsize)))
        else:
            body = _steps(a.body, arg, quantity, launched)
            out.append(Repeat(quantity(a.count), body, a.reverse))
    return tuple(out)


__all__ = ["Action", "Array", "Bound", "Buffer", "Loop", "Move", "Program", "Run", "Table",
           "Use", "walk"]
