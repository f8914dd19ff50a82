"""A program as one table of 64-bit words, which the native walker reads. See layout.py.

Numbers known only at the call are written (register, factor): the registers are the call's
variables, then the constant 1, then the index of each enclosing Repeat.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from muladd.device.base import (
    Arg,
    Copy,
    Launch,
    Quantity,
    Repeat,
    Step,
    Variable,
    variables_of,
)
from muladd.device.native import layout
from muladd.errors import DeviceError


@dataclass
class Table:
    """The words of a program after its header, and what the header must know."""

    words: list[int]
    names: list[str]  # of each Launch and Copy, by its number
    kernels: list[Any]  # kept alive with the program
    variables: int
    most_args: int
    depth: int


def build(
    steps: Sequence[Step], slots: int, variables: int, address: Callable[[Any], tuple[int, int]]
) -> Table:
    """Encode steps. `address` gives a kernel's entry and its grid function (0 if it has none)."""
    variables = max(variables, variables_of(steps))
    encoder = _Encoder(slots, variables, address)
    encoder.steps(steps, 0)
    encoder.words.append(layout.END)
    return Table(encoder.words, encoder.names, encoder.kernels, variables,
                 max(encoder.most_args, 3), encoder.deepest)  # fmt: skip


@dataclass
class _Encoder:
    slots: int
    variables: int
    address: Callable[[Any], tuple[int, int]]
    words: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    kernels: list[Any] = field(default_factory=list)
    most_args: int = 0
    deepest: int = 0

    def steps(self, steps: Sequence[Step], depth: int) -> None:
        self.deepest = max(self.deepest, depth)
        for step in steps:
            if isinstance(step, Launch):
                self.launch(step, depth)
            elif isinstance(step, Copy):
                self.copy(step, depth)
            else:
                self.repeat(step, depth)

    def launch(self, step: Launch, depth: int) -> None:
        entry, grid_function = self.address(step.kernel)
        if step.grid is None and not grid_function:
            raise DeviceError(f"program: launch of {step.name!r} has no grid and its kernel has no "
                              "grid function; give grid, or grid_entry to load()")  # fmt: skip
        grid = (0, 0) if step.grid is None else self.quantity(step.grid)
        asked = grid_function if step.grid is None else 0
        self.words += [layout.LAUNCH, len(self.names), entry, asked, *grid, len(step.args)]
        for arg in step.args:
            self.arg(arg, depth)
        self.names.append(step.name)
        self.kernels.append(step.kernel)
        self.most_args = max(self.most_args, len(step.args))

    def copy(self, step: Copy, depth: int) -> None:
        self.words += [layout.COPY, len(self.names), *self.quantity(step.nbytes)]
        self.arg(step.to, depth)
        self.arg(step.source, depth)
        self.names.append("copy")

    def repeat(self, step: Repeat, depth: int) -> None:
        index = -1 if step.index_var is None else step.index_var
        start = len(self.words)
        count = self.quantity(step.count)
        self.words += [layout.REPEAT, depth, *count, index, int(step.reverse), 0]
        body = len(self.words)
        self.steps(step.body, depth + 1)
        back = body - len(self.words)
        self.words += [layout.NEXT, depth, index, -1 if step.reverse else 1, back]
        self.words[body - 1] = len(self.words) - start

    def quantity(self, value: Quantity) -> tuple[int, int]:
        if isinstance(value, Variable):
            return value.index, value.scale
        return self.variables, int(value)

    def arg(self, arg: Arg, depth: int) -> None:
        if not 0 <= arg.slot < self.slots:
            raise DeviceError(f"program: an argument names slot {arg.slot}, expected a slot below "
                              f"{self.slots}")  # fmt: skip
        constant, terms = 0, []
        if isinstance(arg.offset, Variable):
            terms.append((self.variables, *self.quantity(arg.offset)))
        else:
            constant = arg.offset
        for level, stride in arg.steps:
            if not 0 <= level < depth:
                raise DeviceError(f"program: an argument moves with the loop at depth {level}, "
                                  f"but stands inside {depth} loops")  # fmt: skip
            terms.append((self.variables + 1 + level, *self.quantity(stride)))
        self.words += [arg.slot, constant, len(terms)]
        for term in terms:
            self.words += term
