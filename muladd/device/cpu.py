"""The CPU: memory from the operating system, programs walked by native code on native threads.

A kernel is an object file with `void kernel(ptr args, ptr variables, i64 low, i64 high, ptr
scratch)`, which computes the chunks low <= c < high, and perhaps `i64 kernel_grid(ptr variables)`.
args points to addresses, variables to int64.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite
import numpy as np

from muladd import config
from muladd.cache import cache
from muladd.device.base import Buffer, Device, Executable, LaunchTime, Step, host_bytes
from muladd.device.machine import Machine, memory_bytes
from muladd.device.native import jit, layout, linker, table, walker
from muladd.device.native.memory import Block, Memory
from muladd.device.native.pool import Pool
from muladd.errors import DeviceError, OutOfMemory

_RUNTIME = ("muladd_call", "muladd_worker", "muladd_try_lock", "muladd_unlock", "muladd_stop")
Library = linker.Linked | jit.Linked


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel. Holding it keeps its code in memory."""

    name: str
    address: int
    grid_address: int
    library: Library


def _linked(blob: bytes, entries: Sequence[str]) -> Library:
    """Machine code of an object file in memory. Raises DeviceError."""
    try:
        if sys.platform == "linux":
            with contextlib.suppress(linker.NotKnown):
                library = linker.Linked(blob)
                if missing := [e for e in entries if e not in library.addresses]:
                    raise DeviceError(f"there is no entry {missing[0]!r}")
                return library
        return jit.Linked(blob, entries)
    except DeviceError as error:
        raise DeviceError(
            f"CPU.load: {len(blob)} bytes with entry {entries[0]!r} cannot be linked: {error}; "
            "expected an object file for this machine"
        ) from None


class HostBuffer(Buffer):
    """Host memory. numpy.asarray(buffer) is a view of its bytes that keeps it alive."""

    __slots__ = ("block",)
    block: Block | None
    device: Cpu

    def __del__(self) -> None:
        block = self.block
        if block is not None:
            self.device.memory.give_back(block)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3, "typestr": "|u1", "shape": (self.nbytes,),
            "data": (self.address, not self.writable),
        }  # fmt: skip


class Program(Executable):
    """A table the native walker reads. Several threads may run it at once.

    call(packed) is the fast path: packed is the bytes of all slots' addresses, then of all
    variables, as int64 (see pack). It is a builtin function; an empty program costs 0.1 µs.
    """

    call: Callable[[bytes], None]

    def __init__(
        self, device: Cpu, steps: Sequence[Step], slots: int, scratch: int, variables: int
    ) -> None:
        made = table.build(steps, slots, variables, device.kernel_addresses)
        self.slots, self.variables, self.names = slots, made.variables, made.names
        scratch = (scratch + 63) & -64
        trouble = _Trouble(device.pool, slots, made.variables, scratch)
        header = [device.pool.address, 0, made.variables, made.most_args, scratch, made.depth,
                  slots, id(trouble)]  # fmt: skip
        self._words = (ctypes.c_int64 * (len(header) + len(made.words)))(*header, *made.words)
        self._times = (ctypes.c_int64 * max(1, 2 * len(self.names)))()
        self.call = device.door.function(
            ctypes.addressof(self._words), (self._words, self._times, made.kernels, trouble)
        )
        trouble.call = weakref.ref(self.call)
        self._pack = struct.Struct(f"={slots + made.variables}q").pack
        self.packed = self._pack  # what `call` takes, from plain numbers and without questions

    @property
    def timing(self) -> bool:  # type: ignore[override]
        """Whether each launch is timed (two clock reads, about 50 ns, for each)."""
        return bool(self._words[layout.P_TIMES])

    @timing.setter
    def timing(self, wanted: bool) -> None:
        self._words[layout.P_TIMES] = ctypes.addressof(self._times) if wanted else 0

    def pack(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> bytes:
        """What call() takes. It holds addresses, so whoever keeps it must keep the buffers."""
        try:
            return self._pack(
                *[a if isinstance(a, int) else a.address for a in addresses], *variables
            )
        except (struct.error, AttributeError, TypeError) as error:
            raise DeviceError(
                f"CPU.run: given {len(addresses)} buffers and variables {tuple(variables)}, "
                f"expected {self.slots} buffers or addresses and {self.variables} whole numbers"
            ) from error

    def run(self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()) -> None:
        self.call(self.pack(addresses, variables))

    def bind(
        self, addresses: Sequence[Buffer | int], variables: Sequence[int] = ()
    ) -> Callable[[], None]:
        """A function of no arguments that runs with these buffers, which it keeps alive."""
        bound = functools.partial(self.call, self.pack(addresses, variables))
        bound.held = list(addresses)  # type: ignore[attr-defined]
        return bound

    def times(self) -> list[LaunchTime]:
        taken = [
            LaunchTime(name, self._times[2 * i] * 1e-9, self._times[2 * i + 1])
            for i, name in enumerate(self.names)
        ]
        ctypes.memset(self._times, 0, ctypes.sizeof(self._times))
        return taken


class _Trouble:
    """What native code calls when a walk did not simply succeed."""

    call: Callable[[], Any]  # a weak reference, so that a dropped program goes at once

    def __init__(self, pool: Pool, slots: int, variables: int, scratch: int) -> None:
        self.pool, self.slots, self.variables, self.scratch = pool, slots, variables, scratch

    def __call__(self, status: int, packed: bytes) -> None:
        if status == layout.NOT_READY:  # first use, or the first after a fork
            self.pool.ready()
            self.call()(packed)
            return
        if status == layout.NO_MEMORY:
            raise OutOfMemory(f"CPU: no room for {self.scratch:,} bytes of scratch in each of "
                              f"{self.pool.threads} threads; lower THREADS")  # fmt: skip
        if status == layout.MISFIT:
            raise DeviceError(f"CPU.call: given {len(packed)} bytes, expected {self.slots} "
                              f"addresses and {self.variables} variables of 8 bytes each")
        raise self.pool.take_interruption() or DeviceError("CPU: the program was interrupted")


class _Door:
    """Makes builtin Python functions of native code (PyMethodDef: name, code, flags, doc)."""

    _METHOD_ONE_ARGUMENT = 0x0008

    def __init__(self, address: int) -> None:
        self._name = ctypes.create_string_buffer(b"call")
        self._definition = (ctypes.c_void_p * 4)(
            ctypes.addressof(self._name), address, self._METHOD_ONE_ARGUMENT, None
        )
        self._make = ctypes.pythonapi.PyCFunction_NewEx
        self._make.restype = ctypes.py_object
        self._make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.py_object]

    def function(self, program: int, kept: Any) -> Callable[[bytes], None]:
        """The function that runs the program at this address and keeps `kept` alive."""
        made: Callable[[bytes], None] = self._make(self._definition, program, (self, kept))
        return made


class Cpu(Device):
    """This machine's processor."""

    name = "CPU"

    def __init__(self) -> None:
        self.machine = Machine.host()
        self._libraries: weakref.WeakValueDictionary[bytes, Library] = weakref.WeakValueDictionary()
        self._loading = threading.Lock()
        self._runtime = _linked(_runtime_object(self.machine), _RUNTIME)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runtime))  # threads run it to the end
        self.door = _Door(self._runtime.addresses["muladd_call"])
        self.pool = Pool(self._runtime.addresses)
        self.memory = Memory(config.get("MEMORY") or memory_bytes())
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._loading = threading.Lock()
        self.memory.reset_lock()

    def set_threads(self, count: int) -> None:
        """Compute on this many threads from now on (the calling one included)."""
        self.pool.set_threads(count)

    def allocate(self, nbytes: int) -> HostBuffer:
        buffer = self._buffer(self.memory.allocate(nbytes), nbytes)
        if config.get("CHECK"):
            ctypes.memset(buffer.address, 0xFF, nbytes)  # NaN to every float
        return buffer

    def zeros(self, nbytes: int) -> HostBuffer:
        block = self.memory.allocate(nbytes)
        if not block.fresh:
            ctypes.memset(block.address, 0, nbytes)
        return self._buffer(block, nbytes)

    def _buffer(self, block: Block, nbytes: int) -> HostBuffer:
        buffer = HostBuffer(self, nbytes, block.address)
        buffer.block = block
        return buffer

    def wrap(self, array: np.ndarray) -> HostBuffer | None:
        """The array's own memory as a buffer, without copying; None if it is not contiguous or
        not aligned to its elements. Writing to it is allowed only if the array allows it."""
        address = array.ctypes.data
        if not array.flags.c_contiguous or address % max(1, array.itemsize):
            return None
        buffer = HostBuffer(self, array.nbytes, address, owner=array,
                            writable=bool(array.flags.writeable))  # fmt: skip
        buffer.block = None
        return buffer

    def part(self, buffer: HostBuffer, offset: int, nbytes: int) -> HostBuffer:
        """Some bytes of a buffer as a buffer, which keeps that alive."""
        if offset < 0 or nbytes < 0 or offset + nbytes > buffer.nbytes:
            raise DeviceError(f"CPU.part: {nbytes} bytes from byte {offset} are not within "
                              f"{buffer.nbytes} bytes")  # fmt: skip
        part = HostBuffer(self, nbytes, buffer.address + offset, owner=buffer,
                          writable=buffer.writable)  # fmt: skip
        part.block = None
        return part

    def view(self, buffer: Buffer, dtype: Any, shape: Sequence[int], offset: int = 0) -> np.ndarray:
        """The buffer's memory as an array, without copying; the array keeps the buffer alive."""
        kind = np.dtype(dtype)
        if offset < 0 or offset + math.prod(shape) * kind.itemsize > buffer.nbytes:
            raise DeviceError(f"CPU.view: {kind}{list(shape)} from byte {offset} does not fit in "
                              f"{buffer.nbytes} bytes")  # fmt: skip
        return np.ndarray(tuple(shape), kind, np.asarray(buffer), offset)

    def copy_in(self, buffer: Buffer, data: np.ndarray | memoryview | bytes) -> None:
        np.copyto(np.asarray(buffer), host_bytes(data, buffer.nbytes, "CPU.copy_in"))

    def copy_out(self, buffer: Buffer, into: np.ndarray) -> None:
        np.copyto(host_bytes(into, buffer.nbytes, "CPU.copy_out"), np.asarray(buffer))

    def load(self, blob: bytes, entry: str, grid_entry: str | None = None) -> Kernel:
        wanted = [entry] if grid_entry is None else [entry, grid_entry]
        key = hashlib.sha256(" ".join(wanted).encode() + blob).digest()
        with self._loading:
            library = self._libraries.get(key)
            if library is None:
                if blob[:4] != b"\x7fELF" and blob[:4] not in (b"\xcf\xfa\xed\xfe",):
                    raise DeviceError(f"CPU.load: {len(blob)} bytes for {entry!r} are no object "
                                      "file; expected ELF or Mach-O")  # fmt: skip
                self._libraries[key] = library = _linked(blob, wanted)
            addresses = [library.addresses[one] for one in wanted]
        return Kernel(entry, addresses[0], addresses[1] if grid_entry else 0, library)

    def kernel_addresses(self, kernel: Any) -> tuple[int, int]:
        if not isinstance(kernel, Kernel):
            raise DeviceError(f"CPU.program: given a kernel of type {type(kernel).__name__}, "
                              "expected what CPU.load returned")  # fmt: skip
        return kernel.address, kernel.grid_address

    def program(
        self, steps: Sequence[Step], slots: int, scratch: int = 0, variables: int = 0
    ) -> Program:
        return Program(self, steps, slots, scratch, variables)


def _runtime_object(machine: Machine) -> bytes:
    """The native runtime as an object file; compiling it anew costs about 35 ms."""
    text = walker.source(machine.triple)
    key = hashlib.sha256((machine.key + llvmlite.__version__ + text).encode()).digest()
    found = cache().get("objects", key)
    if found is not None:
        return found
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, reloc="pic", codemodel="small"
    )
    module = llvm.parse_assembly(text)
    module.verify()
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=1))
    passes.run(module, builder)
    made = target.emit_object(module)
    cache().put("objects", key, made)
    return made


def open_device() -> Cpu:
    return Cpu()
