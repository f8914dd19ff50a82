"""A device that accepts everything and computes nothing: what remains is the compiler's time."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from muladd.device.base import Buffer, Device, Executable, LaunchTime, Step, leaves
from muladd.device.machine import Machine


class NullProgram(Executable):
    """Checks nothing, runs nothing, took no time."""

    def __init__(self, steps: Sequence[Step], slots: int) -> None:
        self.slots = slots
        self.names = [getattr(step, "name", "copy") for step in leaves(steps)]

    def run(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> None:
        pass

    def times(self) -> list[LaunchTime]:
        return [LaunchTime(name, 0.0, 0) for name in self.names]


class Null(Device):
    """Buffers without memory; copying out gives zeros."""

    name = "NULL"

    def __init__(self) -> None:
        self.machine = Machine.host()

    def allocate(self, nbytes: int) -> Buffer:
        return Buffer(self, nbytes)

    def copy_in(self, buffer: Buffer, data: np.ndarray | memoryview | bytes) -> None:
        pass

    def copy_out(self, buffer: Buffer, into: np.ndarray) -> None:
        into[...] = 0

    def load(self, blob: bytes, entry: str, grid_entry: str | None = None) -> Any:
        return entry

    def program(
        self, steps: Sequence[Step], slots: int, scratch: int = 0, variables: int = 0
    ) -> NullProgram:
        return NullProgram(steps, slots)


def open_device() -> Null:
    return Null()
