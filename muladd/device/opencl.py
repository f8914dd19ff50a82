"""Devices with an OpenCL driver: memory, kernels from source, programs as enqueued commands.

A kernel's parameters are, for each Arg, a pointer and a byte offset, then the variables it uses:

    kernel void f(global char *slot0, long offset0, global char *slot1, long offset1, long n)

The n-th `long` at the end is the program's n-th variable. A chunk of the grid is a work item, or a
group of them where the source requires a group's size. A kernel with `scratch` gets a pointer to it
and its first chunk before all else, as it may be launched in parts. Commands run in order; copy_out
and synchronize wait for them, run() does not.
"""
from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from muladd.device.base import Buffer, Device, Launch, Step, host_bytes, leaves
from muladd.device.machine import Machine
from muladd.device.queue import Kernel, Place, Queued, together
from muladd.errors import DeviceError, OutOfMemory

try:
    import pyopencl as cl
    import pyopencl.tools
except ImportError as error:
    raise DeviceError(f"OPENCL needs pyopencl ({error}); pip install 'pyopencl[pocl]', which "
                      "brings a driver for CPUs") from None  # fmt: skip

# PoCL reads clang's header of 19,000 lines for each source; who defines its guard is spared that
_SHORT = "-D_OPENCL_H_ -DDECLARE_BUILTINS"


@contextmanager
def _driver(doing: str) -> Any:
    """The driver's errors as ours, with its message."""
    try:
        yield
    except cl.MemoryError as error:
        raise OutOfMemory(f"OPENCL: no memory while {doing}: {error}") from error
    except cl.Error as error:
        raise DeviceError(f"OPENCL: the driver failed while {doing}: {error}") from error


class Program(Queued):
    def __init__(self, device: OpenCL, steps: Sequence[Step], slots: int) -> None:
        super().__init__(device.name, steps, slots)
        self.device = device

    def run(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> None:
        with self.device.lock, _driver("running a program"):
            super().run(addresses, variables)
            self.device.queue.flush()

    def launch(
        self, kernel: Kernel, grid: int, places: list[Place], variables: list[int]
    ) -> list[Any]:
        return [self._part(kernel, *part, places, variables)
                for part in kernel.parts(grid, self.device.machine.cores)]  # fmt: skip

    def _part(
        self, kernel: Kernel, first: int, items: int, group: int, places: list[Place],
        variables: list[int],
    ) -> Any:  # fmt: skip
        values: list[Any] = []
        if kernel.scratch:
            room = self.device.scratch(items // (kernel.group or 1) * kernel.scratch)
            values += [room, np.int64(first)]
        for handle, offset in places:
            values += [handle, np.int64(offset)]
        values += map(np.int64, variables[: kernel.handle.num_args - len(values)])
        kernel.handle.set_args(*values)
        return cl.enqueue_nd_range_kernel(self.device.queue, kernel.handle, (items,), (group,))

    def copy(self, to: Place, source: Place, nbytes: int) -> list[Any]:
        if to[0] is source[0] and abs(to[1] - source[1]) < nbytes:  # OpenCL forbids overlap
            between = (self.device.allocate(nbytes).handle, 0)
            self.copy(between, source, nbytes)
            source = between
        return [cl.enqueue_copy(self.device.queue, to[0], source[0], byte_count=nbytes,
                                src_offset=source[1], dst_offset=to[1])]  # fmt: skip

    def seconds(self, events: list[Any]) -> float:
        with _driver("reading times"):
            cl.wait_for_events(events)
            return sum(e.profile.end - e.profile.start for e in events) * 1e-9


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
        extensions = driver.extensions.split()
        self.has_float64 = "cl_khr_fp64" in extensions
        self.machine = replace(
            Machine.host(), triple="opencl", cpu=driver.name.strip(), features=driver.version,
            cores=driver.max_compute_units, float16="cl_khr_fp16" in extensions,
            l1=driver.local_mem_size,
        )  # fmt: skip
        self.lock = threading.RLock()  # a kernel's parameters are set and used in two calls
        self._kernels: dict[bytes, Kernel] = {}
        self._scratch: Any = None
        exact = driver.single_fp_config & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
        self._options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if exact else []
        self._options += _SHORT.split() if "PoCL" in driver.platform.version else []

    def scratch(self, nbytes: int) -> Any:
        """Memory for one kernel at a time; the queue is in order, so that is all who need it."""
        if self._scratch is None or self._scratch.size < nbytes:
            self._scratch = self.allocate(nbytes).handle
        return self._scratch

    def allocate(self, nbytes: int) -> Buffer:
        if nbytes > self.driver.max_mem_alloc_size:
            raise OutOfMemory(f"OPENCL: asked for {nbytes:,} bytes; this driver gives at most "
                              f"{self.driver.max_mem_alloc_size:,} in one piece")  # fmt: skip
        with _driver(f"allocating {nbytes:,} bytes"):
            return Buffer(self, nbytes, handle=self.pool.allocate(max(1, nbytes)))

    def copy_in(self, buffer: Buffer, data: np.ndarray | memoryview | bytes) -> None:
        self._transfer(buffer.handle, host_bytes(data, buffer.nbytes, "OPENCL.copy_in"))

    def copy_out(self, buffer: Buffer, into: np.ndarray) -> None:
        self._transfer(host_bytes(into, buffer.nbytes, "OPENCL.copy_out"), buffer.handle)

    def _transfer(self, to: Any, source: Any) -> None:
        with self.lock, _driver("copying"):
            if min(getattr(x, "nbytes", 1) for x in (to, source)):
                cl.enqueue_copy(self.queue, to, source, is_blocking=True)

    def load(self, blob: bytes, entry: str, grid_entry: str | None = None) -> Kernel:
        """A kernel from OpenCL C source, compiled with others when a program needs it."""
        key = hashlib.sha256(blob + entry.encode()).digest()
        return self._kernels.setdefault(key, Kernel(blob.decode(), entry))

    def program(
        self, steps: Sequence[Step], slots: int, scratch: int = 0, variables: int = 0
    ) -> Program:
        needed = dict.fromkeys(s.kernel for s in leaves(steps) if isinstance(s, Launch))
        with self.lock:
            if new := [kernel for kernel in needed if kernel.handle is None]:
                self._build(new)
        return Program(self, steps, slots)

    def _build(self, kernels: list[Kernel]) -> None:
        source, names = together(kernels)
        with _driver("compiling " + ", ".join(k.entry for k in kernels)):
            made: Any = cl.Program(self.context, source)
            # without pyopencl's own cache on disk, which holds pickles
            made.build(self._options, cache_dir=False)
            query: Any = cl.kernel_work_group_info.COMPILE_WORK_GROUP_SIZE
            for kernel, name in zip(kernels, names):
                kernel.handle = cl.Kernel(made, name)
                kernel.group = kernel.handle.get_work_group_info(query, self.driver)[0]

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
