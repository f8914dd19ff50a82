"""Compiled kernels: schedule, lower, render, compile, load; each distinct kernel once.

Kept twice: in this process by kernel and device, and on disk as objects, by the hash of kernel,
machine, compiler and tuned schedule (tuned.py), if there is one; an object from the disk needs
neither schedule nor lowering.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muladd import cache, config
from muladd.compile import backends, forked, tuned
from muladd.device import Device
from muladd.ir import Dim, Node, codec, ops, sym, toposort
from muladd.loop.bounds import prove
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.loop.statements import Lowered
from muladd.loop.validate import validate
from muladd.schedule.analysis import product, size


@dataclass(eq=False)
class CompiledKernel:
    """A kernel ready to launch, with everything about it that can be printed.

    made_of is the algorithm, or what finds it, if a whole program came from the disk (kept.py).
    """

    key: str
    made_of: Kernel | Callable[[str], Kernel]
    backend: backends.Backend
    variables: tuple[str, ...]
    name: str
    handle: Any
    grid: Dim
    scratch: int
    writes: tuple[bool, ...]
    seconds: float  # time spent making it
    tuned: tuned.Tuned | None = None  # what a search found for it

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The algorithm."""
        return self.made_of if isinstance(self.made_of, Kernel) else self.made_of(self.key)

    @functools.cached_property
    def plan(self) -> Plan:
        """How it is computed. Found anew when the object came from the disk: it is the same."""
        return _planned(self.kernel, self.backend, self.tuned)

    def lowered(self) -> Lowered:
        return lower(self.plan)

    @functools.cached_property
    def source(self) -> str:
        return self.backend.render(self.lowered(), _indices(self.variables)).source

    def assembly(self) -> str:
        """The machine code, as people read it (devices with a compiler of their own: source)."""
        return self.backend.assembly(self.source)


SECONDS = 4.0  # for each kernel and each plan of the beam that BEAM asks for
_made: dict[tuple, CompiledKernel] = {}


def compile_kernel(kernel: Kernel, device: Device, variables: tuple[str, ...]) -> CompiledKernel:
    """The kernel for a device, compiled at most once."""
    return compile_kernels([kernel], device, variables)[0]


def compile_kernels(
    kernels: Sequence[Kernel], device: Device, variables: tuple[str, ...]
) -> list[CompiledKernel]:
    """Kernels for a device, each distinct one compiled at most once, and several on all cores."""
    absent: dict[tuple, Kernel] = {}
    for kernel in kernels:
        key = _key(kernel.key(), device, variables)
        found = _made.get(key)
        if found is None:
            absent[key] = kernel
        elif not isinstance(found.made_of, Kernel):
            found.made_of = kernel
    if absent:
        made = _compiled(list(absent.values()), device, variables)
        _made.update(zip(absent, made))
    return [_made[_key(kernel.key(), device, variables)] for kernel in kernels]


def load_kernels(
    named: Mapping[str, tuple[str, tuple[bool, ...]]], device: Device,
    variables: tuple[str, ...], algorithm: Callable[[str], Kernel],
) -> dict[str, CompiledKernel]:  # fmt: skip
    """Kernels by their keys, given their names and which arguments they write.

    Raises KeyError if the disk lacks the object of one that this process has not made yet, or if
    one is still to be searched for.
    """
    start = time.perf_counter()
    backend = backends.of(device)
    absent = [key for key in named if _key(key, device, variables) not in _made]
    known = tuned.find(absent, device)
    if any(_to_search(known.get(key), device) for key in absent):
        raise KeyError("BEAM")
    missing = {key: _stored_key(key, device, variables, known.get(key)) for key in absent}
    records = cache.cache().get_many("objects", missing.values())
    for key, stored in missing.items():
        grid, scratch, blob = _unpack(records[stored])
        name, writes = named[key]
        _made[_key(key, device, variables)] = CompiledKernel(
            key, algorithm, backend, variables, name, backend.load(blob, scratch), grid, scratch,
            writes, (time.perf_counter() - start) / len(missing), known.get(key),
        )  # fmt: skip
    return {key: _made[_key(key, device, variables)] for key in named}


def _key(kernel: str, device: Device, variables: tuple[str, ...]) -> tuple:
    return (kernel, device.name, device.machine.key, variables, config.get("CHECK"))


def _stored_key(
    kernel: str, device: Device, variables: tuple[str, ...], found: tuned.Tuned | None
) -> bytes:
    """What the object of a kernel is kept under, on disk."""
    mark = found.mark if found else ""
    text = f"{compiler_version()}|{device.machine.key}|{variables}|{kernel}|{mark}"
    return hashlib.blake2b(text.encode(), digest_size=20).digest()


def _pack(grid: Dim, scratch: int, blob: bytes) -> bytes:
    """What is kept of a kernel: a symbolic grid stands as a graph's bytes before the object."""
    if isinstance(grid, int):
        return _HEADER.pack(grid, scratch) + blob
    size = codec.encode((grid,))
    return _HEADER.pack(-len(size), scratch) + size + blob


def _unpack(record: bytes) -> tuple[Dim, int, bytes]:
    """(grid, scratch, object)."""
    number, scratch = _HEADER.unpack_from(record)
    if number >= 0:
        return number, scratch, record[_HEADER.size :]
    end = _HEADER.size - number
    (grid,) = codec.decode(record[_HEADER.size : end])
    return grid, scratch, record[end:]


def _compiled(
    kernels: list[Kernel], device: Device, variables: tuple[str, ...]
) -> list[CompiledKernel]:
    """Kernels that this process has not made yet: found on disk, or made."""
    start = time.perf_counter()
    backend = backends.of(device)
    known = [_tuned(kernel, device) for kernel in kernels]
    stored = [_stored_key(k.key(), device, variables, t) for k, t in zip(kernels, known)]
    records = {} if config.get("CHECK") else cache.cache().get_many("objects", stored)
    todo = [i for i, key in enumerate(stored) if key not in records]
    todo.sort(key=lambda i: -_effort(kernels[i]))  # the longest first: the cores end together
    share = tuned.threads_of(device) if device.name == "CPU" and len(todo) >= _MANY else 1
    made = forked.results(
        len(todo), lambda i: _record(kernels[todo[i]], backend, variables, known[todo[i]]), share
    )
    if made:
        new = {stored[i]: record for i, record in zip(todo, made)}
        cache.cache().put_many("objects", new)
        records |= new
    out = []
    for kernel, found, key in zip(kernels, known, stored):
        grid, scratch, blob = _unpack(records[key])
        handle = backend.load(blob, scratch)
        written = tuple(a.written for a in kernel.arguments)
        seconds = (time.perf_counter() - start) / len(kernels)
        out.append(CompiledKernel(kernel.key(), kernel, backend, variables, name_of(kernel), handle,
                                  grid, scratch, written, seconds, found))  # fmt: skip
    return out


_MANY = 4  # kernels from which on a fork, which takes some ten milliseconds, is worth its while


def _effort(kernel: Kernel) -> int:
    """What compiling takes, roughly and without a unit: loops of reductions are unrolled."""
    return len(kernel.text()) * (1 + 2 * any(s.reduction is not None for s in kernel.stages))


def _record(
    kernel: Kernel, backend: backends.Backend, variables: tuple[str, ...],
    found: tuned.Tuned | None,
) -> bytes:  # fmt: skip
    """A kernel's object as it is kept."""
    lowered = lower(_planned(kernel, backend, found))
    if config.get("CHECK"):
        validate(lowered, name_of(kernel))
        prove(lowered, name_of(kernel))
    rendered = backend.render(lowered, _indices(variables))
    return _pack(lowered.grid, rendered.scratch, backend.build(rendered))


def _planned(kernel: Kernel, backend: backends.Backend, found: tuned.Tuned | None) -> Plan:
    """The heuristic's plan, or a tuned one that holds."""
    return tuned.plan_of(kernel, backend.schedule(kernel), found)


def _tuned(kernel: Kernel, device: Device) -> tuned.Tuned | None:
    """What is known of a kernel's schedule; with BEAM, after a search for it."""
    found = tuned.find([kernel.key()], device).get(kernel.key())
    if _to_search(None if _is_stale(found, kernel, device) else found, device):
        from muladd.compile.search import search

        width = config.get("BEAM")
        found = replace(search(kernel, device, SECONDS * width, width), width=width)
        tuned.keep(kernel.key(), found)
        if config.get("DEBUG"):
            print(f"BEAM={width}: {name_of(kernel)} takes {found.ratio:.0%} of the heuristic's "
                  "time", file=sys.stderr)  # fmt: skip
    return found


def _is_stale(found: tuned.Tuned | None, kernel: Kernel, device: Device) -> bool:
    """Whether the heuristic has changed since; asked for only where it could be searched anew."""
    if found is None or found.schedule is None or not config.get("BEAM"):
        return False
    return backends.of(device).schedule(kernel).lines != found.baseline


def _to_search(found: tuned.Tuned | None, device: Device) -> bool:
    """Whether BEAM asks for a search that is as wide as no earlier one."""
    searched = found.width if found else 0
    return config.get("BEAM") > searched and device.name in tuned.DEVICES


def forget() -> None:
    """Compile every kernel anew, or read it from the disk, when it is next asked for."""
    _made.clear()


_HEADER = struct.Struct("<qq")  # grid (or minus the length of its bytes), bytes of scratch


def _indices(variables: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(variables)}


@functools.cache
def compiler_version() -> str:
    """A hash of the compiler's own text: objects made by another compiler are not ours."""
    root = Path(__file__).parent.parent
    digest = hashlib.blake2b(digest_size=16)
    for room in ("ir", "loop", "schedule", "codegen", "rewrite", "transform", "compile"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def name_of(kernel: Kernel) -> str:
    """A short name for people: the kinds of its reductions, each once, and the result's sizes.

    Softmax is amax-sum, attention matmul-amax-sum, what reduces nothing is map.
    """
    kinds = dict.fromkeys(_kind(kernel, s) for s in kernel.stages if s.reduction is not None)
    extents = [a.arg.extent for a in kernel.stages[-1].axes]
    sizes = "x".join(str(n) if isinstance(n, int) else "?" for n in extents)
    return f"{'-'.join(kinds) or 'map'}_{sizes or 1}"


def _kind(kernel: Kernel, s: Stage) -> str:
    """matmul, conv, scatter, sum or amax."""
    assert s.reduction is not None
    if s.scatter:
        return "scatter"
    found = product(kernel, s)
    if found is None or size(s.reduced) == 1:
        return s.reduction.name.lower()
    return "conv" if any(_overlaps(kernel, x) for x in (found.left, found.right)) else "matmul"


def _overlaps(kernel: Kernel, operand: Node) -> bool:
    """Whether neighbouring results share loaded elements, as the windows of a convolution do."""
    for n in toposort((operand,)):
        if n.op is ops.LOAD:
            loops = [x for x in toposort((n.srcs[0],)) if x.op is ops.RANGE]
            if size(loops) > sym.bounds(kernel.arguments[n.arg].size)[1]:
                return True
    return False
