"""What a device is: memory, and a list of launches that one call runs. Knows bytes, not ops.

A compiled program is plain data:

    Launch(kernel, args, grid, name)      run kernel chunks 0 <= c < grid, in any order, in parallel
    Copy(to, source, nbytes)              move bytes
    Repeat(count, body)                   the body, count times; args may move with the iteration

Steps run in order, each seeing all that earlier ones wrote. An `Arg` says where an argument lies:
a numbered slot, given anew in each call, plus an offset, plus the indices of the enclosing loops
times strides. A device turns such a list into an `Executable` once; a call binds slots and
variables.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from muladd.device.machine import Machine
from muladd.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Variable:
    """`scale` times the variable with this index in the call's `variables`."""

    index: int
    scale: int = 1


Quantity = Union[int, Variable]  # a number known now, or at the call


@dataclass(frozen=True, slots=True)
class Arg:
    """The address slots[slot] + offset + sum(loop index at depth * stride), offset and strides in
    bytes. Depth 0 is the outermost Repeat."""

    slot: int
    offset: Quantity = 0
    steps: tuple[tuple[int, Quantity], ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel. `grid` is its number of chunks; None asks the kernel's own grid function."""

    kernel: Any
    args: tuple[Arg, ...]
    grid: Quantity | None
    name: str


@dataclass(frozen=True, slots=True)
class Copy:
    """Move nbytes from `source` to `to`; the two may overlap."""

    to: Arg
    source: Arg
    nbytes: Quantity


@dataclass(frozen=True, slots=True)
class Repeat:
    """The body `count` times. The loop index counts 0 .. count-1 (count-1 .. 0 if reverse); it
    moves Args by their steps and is written to variables[index_var] if index_var is given."""

    count: Quantity
    body: tuple[Step, ...]
    reverse: bool = False
    index_var: int | None = None


Step = Union[Launch, Copy, Repeat]


def variables_of(steps: Sequence[Step]) -> int:
    """One more than the highest index of a variable that the steps read or write."""
    highest = -1
    for step in steps:
        if isinstance(step, Repeat):
            values: list[Quantity | None] = [step.count]
            highest = max(highest, variables_of(step.body) - 1,
                          -1 if step.index_var is None else step.index_var)  # fmt: skip
            args: tuple[Arg, ...] = ()
        elif isinstance(step, Copy):
            values, args = [step.nbytes], (step.to, step.source)
        elif isinstance(step, Launch):
            values, args = [step.grid], step.args
        else:
            raise DeviceError(f"program: given {type(step).__name__}, expected Launch, Copy or "
                              "Repeat")  # fmt: skip
        for arg in args:
            values += [arg.offset, *(stride for _, stride in arg.steps)]
        highest = max(highest, *(v.index for v in values if isinstance(v, Variable)), -1)
    return highest + 1


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """What one Launch or Copy of a program took: seconds summed over `calls` executions."""

    name: str
    seconds: float
    calls: int


def leaves(steps: Sequence[Step]) -> Iterator[Launch | Copy]:
    """The Launches and Copies of a program in the order in which they stand."""
    for step in steps:
        if isinstance(step, Repeat):
            yield from leaves(step.body)
        else:
            yield step


class Buffer:
    """Bytes on a device. They go back to the device when the last reference to this is gone.

    address is an int on the CPU; handle is the driver's own object elsewhere. Fresh contents are
    undefined.
    """

    __slots__ = ("nbytes", "device", "address", "handle", "writable", "owner", "__weakref__")

    def __init__(
        self, device: Device, nbytes: int, address: int = 0, handle: Any = None,
        owner: Any = None, writable: bool = True,
    ) -> None:  # fmt: skip
        self.device, self.nbytes, self.address, self.handle = device, nbytes, address, handle
        self.owner, self.writable = owner, writable

    def __repr__(self) -> str:
        return f"<Buffer {self.nbytes} bytes on {self.device.name}>"


class Executable(ABC):
    """A program made ready for a device. Several threads may run it at once."""

    slots: int

    @abstractmethod
    def run(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> None:
        """Run once. The caller keeps the buffers alive until it returns."""

    @abstractmethod
    def times(self) -> list[LaunchTime]:
        """What each Launch and Copy took since the last call of times(), if `timing` is set."""

    timing: bool = False


class Device(ABC):
    """A place with memory that runs programs."""

    name: str
    machine: Machine

    @abstractmethod
    def allocate(self, nbytes: int) -> Buffer:
        """A buffer of nbytes with undefined contents; OutOfMemory if there is no room."""

    def zeros(self, nbytes: int) -> Buffer:
        """A buffer of nbytes that are 0. Large ones may take no memory until they are written."""
        buffer = self.allocate(nbytes)
        if nbytes:
            self.copy_in(buffer, np.zeros(nbytes, np.uint8))
        return buffer

    @abstractmethod
    def copy_in(self, buffer: Buffer, data: np.ndarray | memoryview | bytes) -> None:
        """Fill the buffer from contiguous host memory of exactly its size."""

    @abstractmethod
    def copy_out(self, buffer: Buffer, into: np.ndarray) -> None:
        """Fill a contiguous host array of exactly the buffer's size."""

    @abstractmethod
    def load(self, blob: bytes, entry: str, grid_entry: str | None = None) -> Any:
        """A kernel from compiled bytes. Equal bytes are loaded once."""

    @abstractmethod
    def program(
        self, steps: Sequence[Step], slots: int, scratch: int = 0, variables: int = 0
    ) -> Executable:
        """Make steps ready to run. Kernels get `scratch` bytes private to their thread.

        A call gives `variables` numbers, or as many as the steps themselves name if that is more.
        """

    def synchronize(self) -> None:
        """Wait until all that was started has finished (nothing to do where calls return then)."""


def host_bytes(data: np.ndarray | memoryview | bytes, nbytes: int, who: str) -> np.ndarray:
    """The same memory as flat uint8, checked to be contiguous and of nbytes bytes."""
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous:
            raise DeviceError(f"{who}: given an array with strides {data.strides}, expected "
                              "contiguous memory; use numpy.ascontiguousarray")  # fmt: skip
        flat = data.reshape(-1).view(np.uint8)
    else:
        flat = np.frombuffer(data, np.uint8)
    if flat.nbytes != nbytes:
        raise DeviceError(f"{who}: given {flat.nbytes} bytes for a buffer of {nbytes}")
    return flat
