"""Devices with an OpenCL driver: memory, kernels from source, programs as enqueued commands.

A kernel's parameters are, for each Arg, a pointer and a byte offset, then the variables it uses:

    kernel void f(global char *slot0, long offset0, global char *slot1, long offset1, long n)

The n-th `long` at the end is the program's n-th variable. Launches give `groups` and `group_size`;
with neither, `grid` is the number of work items, or of chunks where the kernel says how many
a group does (`Kernel.chunks`). A kernel with scratch gets a pointer to it before all else, maybe
run by fewer items than there are chunks. Commands run in order; copy_out and synchronize wait for
them, run() does not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from muladd.device.base import (
    Arg,
    Buffer,
    Copy,
    Device,
    Executable,
    Launch,
    LaunchTime,
    Quantity,
    Repeat,
    Step,
    Variable,
    host_bytes,
    leaves,
)
from muladd.device.machine import Machine
from muladd.errors import DeviceError, OutOfMemory

try:
    import pyopencl as cl
    import pyopencl.tools
except ImportError as error:
    raise DeviceError(f"OPENCL needs pyopencl ({error}); pip install 'pyopencl[pocl]', which "
                      "brings a driver for CPUs") from None  # fmt: skip


@contextmanager
def _driver(doing: str) -> Any:
    """The driver's errors as ours, with its message."""
    try:
        yield
    except cl.MemoryError as error:
        raise OutOfMemory(f"OPENCL: no memory while {doing}: {error}") from error
    except cl.Error as error:
        raise DeviceError(f"OPENCL: the driver failed while {doing}: {error}") from error


_ITEMS_WITH_SCRATCH = 1 << 14  # work items at once, at most, where each needs memory of its own


@dataclass(frozen=True)
class Kernel:
    name: str
    handle: Any
    parameters: int
    chunks: int = 0  # of the grid that a group does: 1, or any number up to this
    group: int = 0  # work items in a group, if the source requires a number
    scratch: int = 0  # bytes for each group (chunks == 1), or each work item, at work

    def sizes(self, grid: int, cores: int) -> tuple[int, tuple[int, ...] | None]:
        """Work items in all, and in a group, for a grid of so many chunks."""
        if not self.chunks:
            return grid, None
        chunks = max(1, min(self.chunks, grid // cores))
        group = self.group or chunks
        groups = -(-grid // chunks)
        if self.scratch:
            groups = min(groups, max(cores, _ITEMS_WITH_SCRATCH // group))
        return groups * group, (group,)


@dataclass
class _Run:
    """One run's state: buffers by slot, variables, the index of each enclosing loop."""

    handles: list[Any]
    variables: list[int]
    loops: list[int]

    def quantity(self, value: Quantity) -> int:
        return value.scale * self.variables[value.index] if isinstance(value, Variable) else value

    def place(self, arg: Arg) -> tuple[Any, int]:
        moved = sum(self.loops[depth] * self.quantity(stride) for depth, stride in arg.steps)
        return self.handles[arg.slot], self.quantity(arg.offset) + moved


class Program(Executable):
    """Enqueues its steps, one after the other."""

    def __init__(self, device: OpenCL, steps: Sequence[Step], slots: int) -> None:
        self.device, self.steps, self.slots = device, tuple(steps), slots
        self._order = list(leaves(self.steps))
        self._events: list[tuple[int, Any]] = []
        self._numbers = {id(step): number for number, step in enumerate(self._order)}

    def run(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> None:
        handles = [a.handle for a in addresses if isinstance(a, Buffer)]
        if len(handles) != self.slots:
            raise DeviceError(f"OPENCL.run: given {len(handles)} buffers, expected {self.slots}")
        with self.device.lock, _driver("running a program"):
            self._steps(self.steps, _Run(handles, list(variables), []))
            self.device.queue.flush()

    def _steps(self, steps: Sequence[Step], run: _Run) -> None:
        for step in steps:
            if isinstance(step, Repeat):
                count = run.quantity(step.count)
                run.loops.append(0)
                for index in reversed(range(count)) if step.reverse else range(count):
                    run.loops[-1] = index
                    if step.index_var is not None:
                        run.variables[step.index_var] = index
                    self._steps(step.body, run)
                run.loops.pop()
                continue
            event = self._launch(step, run) if isinstance(step, Launch) else self._copy(step, run)
            if self.timing and event is not None:
                self._events.append((self._numbers[id(step)], event))

    def _launch(self, step: Launch, run: _Run) -> Any:
        local: tuple[int, ...] | None = step.group_size or None
        size: tuple[int, ...]
        if step.groups:
            groups = [run.quantity(size) for size in step.groups]
            local = local or (1,) * len(groups)
            size = tuple(g * s for g, s in zip(groups, local, strict=True))
        elif step.grid is not None:
            items, chosen = step.kernel.sizes(run.quantity(step.grid), self.device.machine.cores)
            size, local = (items,), local or chosen
        else:
            raise DeviceError(f"OPENCL.run: {step.name!r} has neither groups nor grid")
        if 0 in size:
            return None
        values: list[Any] = []
        if step.kernel.scratch:
            slots = size[0] // (step.kernel.group or 1)
            values.append(self.device.scratch(slots * step.kernel.scratch))
        for arg in step.args:
            handle, offset = run.place(arg)
            values += [handle, np.int64(offset)]
        used = step.kernel.parameters - len(values)
        if not 0 <= used <= len(run.variables):
            raise DeviceError(f"OPENCL.run: {step.name!r} takes {step.kernel.parameters} "
                              f"parameters, given {len(step.args)} arguments (two each) and "
                              f"{len(run.variables)} variables")  # fmt: skip
        values += [np.int64(value) for value in run.variables[:used]]
        step.kernel.handle.set_args(*values)
        return cl.enqueue_nd_range_kernel(self.device.queue, step.kernel.handle, size, local)

    def _copy(self, step: Copy, run: _Run) -> Any:
        nbytes = run.quantity(step.nbytes)
        (to, to_offset), (source, offset) = run.place(step.to), run.place(step.source)
        if nbytes <= 0 or (to is source and to_offset == offset):
            return None
        if to is source and abs(to_offset - offset) < nbytes:  # OpenCL forbids overlap
            between = self.device.allocate(nbytes).handle
            cl.enqueue_copy(self.device.queue, between, source, byte_count=nbytes,
                            src_offset=offset)  # fmt: skip
            source, offset = between, 0
        return cl.enqueue_copy(self.device.queue, to, source, byte_count=nbytes,
                               src_offset=offset, dst_offset=to_offset)  # fmt: skip

    def times(self) -> list[LaunchTime]:
        seconds, calls = [0.0] * len(self._order), [0] * len(self._order)
        with self.device.lock, _driver("reading times"):
            for number, event in self._events:
                event.wait()
                seconds[number] += (event.profile.end - event.profile.start) * 1e-9
                calls[number] += 1
            self._events.clear()
        names = [getattr(step, "name", "copy") for step in self._order]
        return [LaunchTime(*row) for row in zip(names, seconds, calls, strict=True)]


class OpenCL(Device):
    """One OpenCL device with an in-order queue."""

    name = "OPENCL"

    def __init__(self, driver: Any) -> None:
        with _driver("opening the device"):
            self.context = cl.Context([driver])
            profiling = cl.command_queue_properties.PROFILING_ENABLE
            self.queue = cl.CommandQueue(self.context, driver, profiling)
            self.pool = cl.tools.MemoryPool(cl.tools.ImmediateAllocator(self.queue))
        self.driver = driver
        self.machine = replace(
            Machine.host(), triple="opencl", cpu=driver.name.strip(), features=driver.version,
            cores=driver.max_compute_units, float16=self.has_float16, l1=driver.local_mem_size,
        )  # fmt: skip
        self.lock = threading.RLock()  # a kernel's parameters are set and used in two calls
        self._programs: dict[bytes, Any] = {}
        self._scratch: Any = None
        exact = driver.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        self._options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if exact else []

    def scratch(self, nbytes: int) -> Any:
        """Memory for one kernel at a time; the queue is in order, so that is all who need it."""
        if self._scratch is None or self._scratch.size < nbytes:
            self._scratch = self.allocate(nbytes).handle
        return self._scratch

    @property
    def has_float16(self) -> bool:
        return "cl_khr_fp16" in self.driver.extensions.split()

    @property
    def has_float64(self) -> bool:
        return "cl_khr_fp64" in self.driver.extensions.split()

    def allocate(self, nbytes: int) -> Buffer:
        if nbytes > self.driver.max_mem_alloc_size:
            raise OutOfMemory(f"OPENCL: asked for {nbytes:,} bytes; this driver gives at most "
                              f"{self.driver.max_mem_alloc_size:,} in one piece")  # fmt: skip
        with _driver(f"allocating {nbytes:,} bytes"):
            return Buffer(self, nbytes, handle=self.pool.allocate(max(1, nbytes)))

    def copy_in(self, buffer: Buffer, data: np.ndarray | memoryview | bytes) -> None:
        source = host_bytes(data, buffer.nbytes, "OPENCL.copy_in")
        self._transfer(buffer.nbytes, lambda: (buffer.handle, source))

    def copy_out(self, buffer: Buffer, into: np.ndarray) -> None:
        target = host_bytes(into, buffer.nbytes, "OPENCL.copy_out")
        self._transfer(buffer.nbytes, lambda: (target, buffer.handle))

    def _transfer(self, nbytes: int, ends: Callable[[], tuple[Any, Any]]) -> None:
        with self.lock, _driver(f"copying {nbytes:,} bytes"):
            if nbytes:
                cl.enqueue_copy(self.queue, *ends(), is_blocking=True)

    def load(self, blob: bytes, entry: str, grid_entry: str | None = None) -> Kernel:
        """A kernel from OpenCL C source."""
        key = hashlib.sha256(blob).digest()
        with self.lock, _driver(f"compiling {entry!r}"):
            if key not in self._programs:
                source = cl.Program(self.context, blob.decode())
                # without pyopencl's own cache on disk, which holds pickles
                build: Any = source.build
                self._programs[key] = build(self._options, cache_dir=False)
            handle = cl.Kernel(self._programs[key], entry)
            query = cl.kernel_work_group_info.COMPILE_WORK_GROUP_SIZE
            sizes: Any = handle.get_work_group_info(query, self.driver)
            group = sizes[0]
            return Kernel(entry, handle, handle.num_args, group=group)

    def program(
        self, steps: Sequence[Step], slots: int, scratch: int = 0, variables: int = 0
    ) -> Program:
        return Program(self, steps, slots)

    def synchronize(self) -> None:
        with _driver("waiting"):
            self.queue.finish()


def open_device() -> OpenCL:
    """The first GPU, or else the first device of any kind."""
    try:
        drivers = [device for platform in cl.get_platforms() for device in platform.get_devices()]
    except cl.Error:
        drivers = []
    if not drivers:
        raise DeviceError("OPENCL: no driver is installed; pip install 'pyopencl[pocl]' brings one "
                          "for CPUs, a GPU's maker has the one for the GPU")  # fmt: skip
    graphics = [device for device in drivers if device.type & cl.device_type.GPU]
    return OpenCL((graphics or drivers)[0])
