"""Programs for devices that are told each command: the host walks the steps and fills in numbers.

What a device of this kind (OpenCL, Metal, CUDA) must add is how one launch and one copy are put in
its queue, how long a finished one took, and how source becomes kernels. Drivers take long to begin
with a source, so all kernels that a program needs first are one source.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from muladd.device import base
from muladd.errors import DeviceError

Place = tuple[Any, int]  # a buffer's handle, and a byte in it
_ITEMS = 64  # work items of a group that have nothing to do with each other
_MOST_WITH_SCRATCH = 1 << 14  # work items at once where each needs memory of its own


class Kernel:
    """Source, and from the first program on that launches it the driver's kernel."""

    def __init__(self, source: str, entry: str) -> None:
        self.source, self.entry = source, entry
        self.handle: Any = None
        self.group = 0  # work items in a group, if the source requires a number
        self.scratch = 0  # bytes for each group or, without groups, each work item at work

    def parts(self, grid: int, cores: int) -> Iterator[tuple[int, int, int]]:
        """The launches for a grid: the first chunk, work items in all, and in a group.

        One launch is enough unless scratch for all at once would be much.
        """
        group = self.group or max(1, min(_ITEMS, grid // cores))
        groups = grid if self.group else -(-grid // group)
        most = max(cores, _MOST_WITH_SCRATCH // group) if self.scratch else groups
        for begin in range(0, groups, most):
            first = begin if self.group else begin * group
            yield first, min(most, groups - begin) * group, group


def together(kernels: Sequence[Kernel]) -> tuple[str, list[str]]:
    """Kernels as one source, in which each has a name of its own; and these names."""
    names = [f"{k.entry}_{i}" for i, k in enumerate(kernels)]
    parts = (f"#define {k.entry} {name}\n{k.source}\n#undef {k.entry}"
             for k, name in zip(kernels, names))  # fmt: skip
    return "\n".join(parts), names


@dataclass
class _Run:
    """One run's state: buffers by slot, variables, the index of each enclosing loop."""

    handles: list[Any]
    variables: list[int]
    loops: list[int]

    def quantity(self, value: base.Quantity) -> int:
        if isinstance(value, base.Variable):
            return value.scale * self.variables[value.index]
        return value

    def place(self, arg: base.Arg) -> Place:
        moved = sum(self.loops[depth] * self.quantity(stride) for depth, stride in arg.steps)
        return self.handles[arg.slot], self.quantity(arg.offset) + moved


class Queued(base.Executable):
    """Enqueues its steps, one after the other."""

    def __init__(self, name: str, steps: Sequence[base.Step], slots: int) -> None:
        self.name, self.steps, self.slots = name, tuple(steps), slots
        self._order = list(base.leaves(self.steps))
        self._numbers = {id(step): number for number, step in enumerate(self._order)}
        self._events: list[tuple[int, Any]] = []

    @abstractmethod
    def launch(self, kernel: Any, grid: int, places: list[Place], variables: list[int]) -> Any:
        """Enqueue a kernel, perhaps in `Kernel.parts`; gives what `seconds` takes."""

    @abstractmethod
    def copy(self, to: Place, source: Place, nbytes: int) -> Any:
        """Enqueue a copy of bytes that may overlap; gives what `seconds` takes."""

    @abstractmethod
    def seconds(self, event: Any) -> float:
        """What a launch or copy took, once it has ended."""

    def run(self, addresses: Sequence[base.Buffer | int], variables: Sequence[int] = ()) -> None:
        handles = [a.handle for a in addresses if isinstance(a, base.Buffer)]
        if len(handles) != self.slots:
            raise DeviceError(f"{self.name}.run: given {len(handles)} buffers, expected "
                              f"{self.slots}")  # fmt: skip
        self._walk(self.steps, _Run(handles, list(variables), []))

    def _walk(self, steps: Sequence[base.Step], run: _Run) -> None:
        for step in steps:
            if isinstance(step, base.Repeat):
                self._repeat(step, run)
                continue
            event = None
            if isinstance(step, base.Copy):
                to, source, nbytes = run.place(step.to), run.place(step.source), step.nbytes
                if (count := run.quantity(nbytes)) > 0 and to != source:
                    event = self.copy(to, source, count)
            elif grid := run.quantity(_grid(step)):
                places = [run.place(arg) for arg in step.args]
                event = self.launch(step.kernel, grid, places, run.variables)
            if self.timing and event is not None:
                self._events.append((self._numbers[id(step)], event))

    def _repeat(self, step: base.Repeat, run: _Run) -> None:
        count = run.quantity(step.count)
        run.loops.append(0)
        for index in reversed(range(count)) if step.reverse else range(count):
            run.loops[-1] = index
            if step.index_var is not None:
                run.variables[step.index_var] = index
            self._walk(step.body, run)
        run.loops.pop()

    def times(self) -> list[base.LaunchTime]:
        seconds, calls = [0.0] * len(self._order), [0] * len(self._order)
        for number, event in self._events:
            seconds[number] += self.seconds(event)
            calls[number] += 1
        self._events.clear()
        names = [getattr(step, "name", "copy") for step in self._order]
        return [base.LaunchTime(*row) for row in zip(names, seconds, calls, strict=True)]


def _grid(step: base.Launch) -> base.Quantity:
    if step.grid is None:
        raise DeviceError(f"launch of {step.name!r}: no grid given, expected the number of chunks")
    return step.grid
