"""What this machine can do at most: multiply-adds and bytes copied per second, measured.

Both are measured with kernels of our own on the device's own threads: a loop of independent fused
multiply-adds that stays in registers, and a pass that reads one large array and writes another.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from muladd import device as devices
from muladd.codegen import native
from muladd.codegen.llvm import ATTRIBUTES
from muladd.compile.pipeline import compile_graph
from muladd.device import Arg, Device, Launch, Machine
from muladd.ir import const, dtype, make, ops, param

_TURNS = 20_000
_COPIED = 16 << 20  # float32 elements, far beyond the caches


@dataclass(frozen=True)
class Peaks:
    """The ceilings of this machine, for the threads in use."""

    flops: float  # float32 operations a second, a multiply-add counting two
    bandwidth: float  # bytes a second, read and written, of a pass like a copy

    def seconds(self, flops: float, nbytes: float) -> float:
        """The least time that work of so many operations and bytes can take here."""
        return max(flops / self.flops, nbytes / self.bandwidth)


_measured: dict[tuple[str, int], Peaks] = {}


def peaks(threads: int, repeat: int = 25, name: str = "CPU") -> Peaks:
    """The ceilings of a device with this many threads, measured once in a process."""
    key = (name, threads)
    if key not in _measured:
        place = devices.get(name)
        _measured[key] = Peaks(_fma(place, threads, repeat), _copy(place, repeat))
    return _measured[key]


def _chains(machine: Machine) -> int:
    """Independent accumulators: enough to hide the latency, few enough to stay in registers."""
    return machine.vector_registers * 3 // 4


def _fma_source(lanes: int, chains: int) -> str:
    """A kernel whose chunks each run _TURNS rounds of vector multiply-adds, one in each chain."""
    vector = f"<{lanes} x float>"
    fma = f"call {vector} @llvm.fma.v{lanes}f32"
    each = range(chains)
    phis = [f"  %a{i} = phi {vector} [%start, %entry], [%b{i}, %loop]" for i in each]
    steps = [f"  %b{i} = {fma}({vector} %a{i}, {vector} %start, {vector} %start)" for i in each]
    sums = [f"  %s{i} = fadd {vector} {f'%s{i - 1}' if i else '%b0'}, %b{i}" for i in each]
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @multiply_add(ptr %args, ptr %vars, i64 %low, i64 %high, ptr %scratch) #0 {{
entry:
  %out = load ptr, ptr %args
  %start = load {vector}, ptr %out, align 64
  %chunks = sub i64 %high, %low
  %turns = mul i64 {_TURNS}, %chunks
  br label %loop
loop:
  %turn = phi i64 [0, %entry], [%next, %loop]
{_lines(phis)}
{_lines(steps)}
  %next = add i64 %turn, 1
  %more = icmp slt i64 %next, %turns
  br i1 %more, label %loop, label %end
end:
{_lines(sums)}
  %place = add i64 %low, 1
  %to = getelementptr {vector}, ptr %out, i64 %place
  store {vector} %s{chains - 1}, ptr %to, align 16
  ret void
}}
{ATTRIBUTES} }}
"""


def _lines(lines: list[str]) -> str:
    return "\n".join(lines)


def _fma(place: Device, threads: int, repeat: int) -> float:
    """Operations a second of multiply-adds that touch no memory."""
    lanes = place.machine.float_lanes
    each = _chains(place.machine)
    source = _fma_source(lanes, each)
    kernel = place.load(native.compile_object(source, place.machine), "multiply_add")
    chunks = 8 * threads
    buffer = place.allocate((chunks + 1) * lanes * 4)
    place.copy_in(buffer, bytes(buffer.nbytes))
    run = place.program((Launch(kernel, (Arg(0),), chunks, "multiply_add"),), 1)
    seconds = _best(lambda: run.run([buffer]), repeat)
    return 2.0 * lanes * each * _TURNS * chunks / seconds


def _copy(place: Device, repeat: int) -> float:
    """Bytes a second, read and written, of y = 2 * x over an array far beyond the caches."""
    x = param(0, (_COPIED,), dtype.float32)
    doubled = make(ops.MUL, (x, const(2.0, dtype.float32, (_COPIED,))))
    program = compile_graph((doubled,), place.name)
    source, out = place.allocate(4 * _COPIED), place.allocate(4 * _COPIED)
    place.copy_in(source, bytes(4 * _COPIED))
    seconds = _best(lambda: program.run([source], (), [out]), repeat)
    return 8.0 * _COPIED / seconds


def _best(run: Callable[[], object], repeat: int) -> float:
    """Seconds of the fastest of several runs: whatever slows one down is not the ceiling."""
    run()
    taken = []
    for _ in range(max(repeat, 2)):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
