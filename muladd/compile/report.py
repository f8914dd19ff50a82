"""Full sight: what every kernel costs, what it took, and how it looks at each stage.

    DEBUG=1   a line per program            DEBUG=3   also schedules
    DEBUG=2   a line per kernel             DEBUG=4   also generated source;  DEBUG=5 assembly
    GRAPH=1   each compiled graph as a DOT and an SVG file

Operations and bytes are counted from the kernel itself: operations as the language's table counts
them, bytes as if every argument were read or written once.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muladd import config
from muladd.device import LaunchTime
from muladd.ir import Node, dtype, ops, sym, toposort
from muladd.loop.kernel import Kernel

if TYPE_CHECKING:
    from muladd.compile.kernels import CompiledKernel
    from muladd.compile.program import Bound, Program


def flops(kernel: Kernel, sizes: dict[str, int]) -> int:
    """Floating-point (and integer) operations of one run; a multiply-add counts two.

    An operation counts once for each turn of the loops that it depends on; arithmetic of indices,
    and of conditions on them, does not count.
    """
    total = 0
    for s in kernel.stages:
        total += _count((*s.axes, *s.reduced), sizes) * (s.reduction is not None)
        loops: dict[Node, frozenset[Node]] = {}
        for n in toposort((s.value,)):
            own = (n,) if n.op is ops.RANGE else ()
            loops[n] = frozenset(own).union(*(loops[x] for x in n.srcs))
        data = {n for n in loops if n.op in (ops.LOAD, ops.READ)}
        for n in loops:
            if not data.isdisjoint(n.srcs):
                data.add(n)
            if n.op.flops and not _is_index(n) and (n in data or n.dtype is not dtype.bool_):
                total += n.op.flops * _count(loops[n], sizes)
    return total


def _count(loops: Iterable[Node], sizes: dict[str, int]) -> int:
    return sym.evaluate(sym.product([a.arg.extent for a in loops]), sizes)


def _is_index(n: Node) -> bool:
    return n.op in (ops.RANGE, ops.CONST) or (n.dtype.name == "int64" and not n.shape)


def nbytes(kernel: Kernel, sizes: dict[str, int]) -> int:
    """Bytes of all arguments, each element once; of a table only as many as are looked up."""
    touched = dict.fromkeys(kernel.arguments, 0)
    for s in kernel.stages:
        turns = sym.evaluate(sym.product([a.arg.extent for a in (*s.axes, *s.reduced)]), sizes)
        for load in s.loads():
            touched[kernel.arguments[load.arg]] += turns
        if s.argument is not None:
            touched[kernel.arguments[s.argument]] += turns
    return sum(min(sym.evaluate(a.size, sizes), n) * a.dtype.itemsize for a, n in touched.items())


def shapes(kernel: Kernel, sizes: dict[str, int]) -> str:
    """The result's sizes and what is reduced for them: `64x10 over 128`."""
    last = kernel.stages[-1]
    out = "x".join(str(sym.evaluate(a.arg.extent, sizes)) for a in last.axes) or "1"
    reduced = [s for s in kernel.stages if s.reduction is not None]
    if not reduced:
        return out
    most = max(reduced, key=lambda s: sym.evaluate(_turns(s.reduced), sizes))
    return f"{out} over " + "x".join(str(sym.evaluate(a.arg.extent, sizes)) for a in most.reduced)


def _turns(axes: Sequence[Node]) -> Any:
    return sym.product([a.arg.extent for a in axes])


@dataclass
class Row:
    """A kernel and what its runs took together."""

    kernel: CompiledKernel
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    nbytes: int = 0
    shapes: str = ""

    @property
    def name(self) -> str:
        return self.kernel.name


@dataclass
class Profile:
    """The kernels that ran, by name; `table()` prints them, the slowest first."""

    rows: dict[int, Row] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, kernel: CompiledKernel, taken: LaunchTime, sizes: dict[str, int]) -> None:
        row = self.rows.setdefault(id(kernel), Row(kernel))
        row.shapes = shapes(kernel.kernel, sizes)
        row.calls += taken.calls
        row.seconds += taken.seconds
        row.flops += taken.calls * flops(kernel.kernel, sizes)
        row.nbytes += taken.calls * nbytes(kernel.kernel, sizes)

    def sorted(self) -> list[Row]:
        return sorted(self.rows.values(), key=lambda r: -r.seconds)

    def table(self, most: int = 20) -> str:
        """One aligned line per kernel: name, runs, time, rates, share of the machine's ceiling."""
        rows = self.sorted()
        whole = sum(r.seconds for r in rows) or 1.0
        lines = [
            f"{'kernel':36} {'runs':>6} {'ms':>9} {'%':>5} {'GFLOP/s':>8} {'GB/s':>7} {'roof':>5}"
        ]
        for r in rows[:most]:
            lines.append(_line(r.name, r.calls, r.seconds, r.flops, r.nbytes, r.seconds / whole))
        rest = rows[most:]
        if rest:
            lines.append(_line(f"{len(rest)} more", sum(r.calls for r in rest),
                               sum(r.seconds for r in rest), sum(r.flops for r in rest),
                               sum(r.nbytes for r in rest),
                               sum(r.seconds for r in rest) / whole))  # fmt: skip
        lines.append(_line("all", sum(r.calls for r in rows), sum(r.seconds for r in rows),
                           sum(r.flops for r in rows), sum(r.nbytes for r in rows),
                           1.0))  # fmt: skip
        return "\n".join(lines)


def _line(name: str, calls: int, seconds: float, work: int, moved: int, part: float) -> str:
    rate = max(seconds, 1e-12)
    return (f"{name[:36]:36} {calls:6d} {seconds * 1e3:9.3f} {part:5.0%} {work / rate / 1e9:8.1f} "
            f"{moved / rate / 1e9:7.1f} {_roof(work, moved, seconds):5.0%}")  # fmt: skip


def _roof(work: int, moved: int, seconds: float) -> float:
    """The least time that the machine's ceilings allow, as a part of the time taken."""
    return ceilings().seconds(work, moved) / max(seconds, 1e-12)


def ceilings() -> Any:
    """This machine's measured peaks, for the threads in use: measured once, kept on disk."""
    from muladd import cache
    from muladd import device as devices
    from muladd.compile import roofline

    place: Any = devices.get("CPU")
    place.pool.ready()  # before it, nobody has said how many threads there are
    threads = place.pool.threads
    if ("CPU", threads) not in roofline._measured:
        key = hashlib.blake2b(f"peaks {place.machine.key} {threads}".encode(), digest_size=20)
        kept = cache.cache().get("tuned", key.digest())
        if kept is not None and len(kept) == _PEAKS.size:
            roofline._measured["CPU", threads] = roofline.Peaks(*_PEAKS.unpack(kept))
        else:
            with config.context(DEBUG=0):
                found = roofline.peaks(threads, 9)
            blob = _PEAKS.pack(found.flops, found.bandwidth)
            cache.cache().put("tuned", key.digest(), blob)
    return roofline._measured["CPU", threads]


_PEAKS = struct.Struct("<dd")
_profiles: list[Profile] = []


@contextmanager
def profile() -> Iterator[Profile]:
    """Time every kernel that runs inside: `with profile() as p: ...; print(p.table())`."""
    from muladd.compile.pipeline import compiled

    found = Profile()
    start = time.perf_counter()
    _settle()  # what ran before is that of profiles around this one
    for program in compiled():
        program.timing(True)
    _profiles.append(found)
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        _settle()
        _profiles[:] = [x for x in _profiles if x is not found]
        for program in compiled():
            program.timing(bool(_profiles))


def _settle() -> None:
    """Count what has run since the last look in every profile that is being made."""
    from muladd.compile.pipeline import compiled

    for program in compiled() if _profiles else ():
        for values, bound in program.bound.items():
            for one in collect(program, bound, values):
                for each in _profiles:
                    each.add(*one)


def wanted() -> bool:
    """Whether programs made now are to be timed."""
    return bool(_profiles) or config.get("DEBUG") >= 2


def collect(
    program: Program, bound: Bound, values: Sequence[int]
) -> Iterator[tuple[CompiledKernel, LaunchTime, dict[str, int]]]:
    """What a program's launches took since the last look, with the sizes they ran at."""
    sizes = dict(zip(program.variables, values))
    if not bound.executable.timing:
        return
    for kernel, taken in zip(bound.table.launched, bound.executable.times()):
        if kernel is not None and taken.calls:
            yield kernel, taken, sizes


def after_run(program: Program, bound: Bound, values: Sequence[int]) -> None:
    """What DEBUG asks for, after a program has run: from level 2 on a line per kernel launched."""
    if config.get("DEBUG") < 2:
        return
    if not bound.executable.timing:
        bound.executable.timing = True  # from the next run on
        return
    sizes = dict(zip(program.variables, values))
    print(HEADER, file=sys.stderr)
    for kernel, taken in zip(bound.table.launched, bound.executable.times()):
        if kernel is not None and taken.calls:
            print(launch_line(kernel, taken, sizes), file=sys.stderr)


HEADER = (f"{'kernel':28} {'shapes':24} {'runs':>5} {'us':>10} {'predicted':>10} {'MFLOP':>10} "
          f"{'MB':>9} {'GFLOP/s':>8} {'GB/s':>7} {'roof':>5}")  # fmt: skip


def launch_line(kernel: CompiledKernel, taken: LaunchTime, sizes: dict[str, int]) -> str:
    """One launch: what it is, what it took, what the machine could have done it in."""
    work, moved = taken.calls * flops(kernel.kernel, sizes), taken.calls * nbytes(
        kernel.kernel, sizes)  # fmt: skip
    seconds, least = max(taken.seconds, 1e-12), ceilings().seconds(work, moved)
    return (
        f"{kernel.name[:28]:28} {shapes(kernel.kernel, sizes)[:24]:24} {taken.calls:5d} "
        f"{seconds * 1e6:10.1f} {least * 1e6:10.1f} {work / 1e6:10.3f} {moved / 1e6:9.3f} "
        f"{work / seconds / 1e9:8.1f} {moved / seconds / 1e9:7.1f} {least / seconds:5.0%}"
    )


def compiled_program(program: Program, outputs: Sequence[Node], seconds: float) -> None:
    """What DEBUG and GRAPH ask for, when a program has been compiled."""
    level = config.get("DEBUG")
    if level >= 1:
        kernels = program.kernels()
        print(f"program of {len(kernels)} kernels, {len({k.kernel.key() for k in kernels})} "
              f"distinct, compiled in {seconds * 1e3:.0f} ms", file=sys.stderr)  # fmt: skip
    if level >= 3:
        for k in dict.fromkeys(program.kernels()):
            print(kernel_text(k, level), file=sys.stderr)
    if config.get("GRAPH"):
        from muladd.compile.draw import write

        print(f"graph: {write(outputs)}", file=sys.stderr)


def kernel_text(kernel: CompiledKernel, level: int = 3) -> str:
    """A kernel as text: what (3), and how (3), generated source (4), assembly (5)."""
    parts = [f"--- {kernel.name}", kernel.kernel.text(), kernel.plan.text()]
    if level >= 4:
        parts.append(kernel.source)
    if level >= 5:
        parts.append(kernel.assembly())
    return "\n".join(parts)


def explain(program: Program, values: Sequence[int] = ()) -> str:
    """A program as text: each kernel's algorithm, schedule, operations and bytes; the memory."""
    sizes = dict(zip(program.variables, values))
    parts = []
    for k in program.kernels():
        work, moved = flops(k.kernel, sizes), nbytes(k.kernel, sizes)
        parts.append(f"{k.name}: {work:,} operations, {moved:,} bytes\n{k.kernel.text()}\n"
                     f"{k.plan.text()}")  # fmt: skip
    parts.append(f"{len(program.kernels())} kernels, {program.peak_bytes(values):,} bytes at most")
    return "\n\n".join(parts)
