"""What turns a kernel into something a device can launch: a small class per kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from muladd.codegen import Rendered, cstyle, llvm, native
from muladd.device import Device, Machine
from muladd.errors import DeviceError
from muladd.ir import dtype, toposort
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan
from muladd.loop.statements import Lowered
from muladd.schedule import groups, heuristic


@dataclass(frozen=True)
class Backend:
    """Objects from LLVM IR: for the CPU, and for devices that only count launches."""

    device: Device

    def schedule(self, kernel: Kernel, machine: Machine | None = None) -> Plan:
        """The heuristic's plan, for another machine if a search asks."""
        return heuristic.schedule(kernel, machine or self.device.machine)

    def render(self, lowered: Lowered, variables: dict[str, int]) -> Rendered:
        machine = self.device.machine
        return llvm.render(lowered, variables, masked=machine.masked, dot=machine.dot)

    def build(self, rendered: Rendered) -> bytes:
        return native.compile_object(rendered.source, self.device.machine)

    def load(self, blob: bytes, scratch: int) -> Any:
        return self.device.load(blob, "kernel")

    def assembly(self, source: str) -> str:
        return native.assembly(source, self.device.machine)


class OpenCL(Backend):
    """OpenCL C, which the driver compiles. A work item, or a group of them, does a chunk."""

    def schedule(self, kernel: Kernel, machine: Machine | None = None) -> Plan:
        return groups.schedule(kernel, machine or self.device.machine)

    def render(self, lowered: Lowered, variables: dict[str, int]) -> Rendered:
        values = toposort(tuple(s.value for s in lowered.kernel.stages))
        has_float64: bool = self.device.has_float64  # type: ignore[attr-defined]
        if not has_float64 and any(n.dtype is dtype.float64 for n in values):
            raise DeviceError(f"OPENCL: {self.device.machine.cpu} has no float64; cast to "
                              "float32, or use another device")  # fmt: skip
        return cstyle.render(lowered, variables, self.device.machine.l1)

    def build(self, rendered: Rendered) -> bytes:
        return rendered.source.encode()

    def assembly(self, source: str) -> str:
        return source

    def load(self, blob: bytes, scratch: int) -> Any:
        handle = self.device.load(blob, "f")
        handle.scratch = scratch
        return handle


_BY_NAME: dict[str, type[Backend]] = {"OPENCL": OpenCL}


def of(device: Device) -> Backend:
    return _BY_NAME.get(device.name, Backend)(device)
