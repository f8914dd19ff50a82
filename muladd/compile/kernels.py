"""Compiled kernels: schedule, lower, render, compile, load; each distinct kernel once.

Kept twice: in this process by kernel and device, and on disk as objects, by the hash of kernel,
plan and machine.
"""
from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from muladd import config
from muladd.codegen import llvm, native
from muladd.compile import cache
from muladd.device import Arg, Device, Launch
from muladd.ir import Dim, Node
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.loop.statements import Lowered
from muladd.rewrite.transcendental import expand_all
from muladd.schedule.heuristic import schedule


@dataclass(eq=False)
class CompiledKernel:
    """A kernel ready to launch, with everything about it that can be printed."""

    kernel: Kernel
    plan: Plan
    name: str
    handle: Any
    grid: Dim
    scratch: int
    writes: tuple[bool, ...]
    source: str
    seconds: float  # time spent compiling it

    def launch(self, args: tuple[Arg, ...], number: Callable[[Dim], int]) -> Launch:
        return Launch(self.handle, args, number(self.grid), self.name)

    def lowered(self) -> Lowered:
        return lower(self.plan)


_VERSION = "1"  # change it when generated code changes without its inputs changing
_made: dict[tuple, CompiledKernel] = {}


def compile_kernel(kernel: Kernel, device: Device, variables: tuple[str, ...]) -> CompiledKernel:
    """The kernel for a device, compiled at most once."""
    key = (kernel.key(), device.name, device.machine.key, variables, config.get("CHECK"))
    found = _made.get(key)
    if found is None:
        found = _made[key] = _compile(kernel, device, variables)
    return found


def _compile(kernel: Kernel, device: Device, variables: tuple[str, ...]) -> CompiledKernel:
    start = time.perf_counter()
    expanded = expand(kernel)
    plan = schedule(expanded, device.machine)
    index = {name: i for i, name in enumerate(variables)}
    lowered = lower(plan)
    rendered = llvm.render(lowered, index)
    blob = _object(rendered.source, device)
    handle = device.load(blob, rendered.name)
    return CompiledKernel(
        kernel, plan, name_of(kernel), handle, lowered.grid, rendered.scratch,
        tuple(a.written for a in kernel.arguments), rendered.source, time.perf_counter() - start,
    )  # fmt: skip


def _object(source: str, device: Device) -> bytes:
    text = f"{_VERSION}|{device.machine.key}|{source}"
    key = hashlib.blake2b(text.encode(), digest_size=20).digest()
    kept = cache.cache()
    blob = kept.get("objects", key)
    if blob is None:
        blob = native.compile_object(source, device.machine)
        kept.put("objects", key, blob)
    return blob


def expand(kernel: Kernel) -> Kernel:
    """The kernel with EXP2, LOG2 and SIN written out."""
    from dataclasses import replace

    values: tuple[Node, ...] = tuple(s.value for s in kernel.stages)
    new = expand_all(values)
    stages = tuple(replace(s, value=v) for s, v in zip(kernel.stages, new))
    return replace(kernel, stages=stages, _memo={})


def name_of(kernel: Kernel) -> str:
    """A short name for people: what kind of work, and its sizes."""
    last = kernel.stages[-1]
    kinds = [s.reduction.name.lower() for s in kernel.stages if s.reduction is not None]
    products = sum(s.contracted for s in kernel.stages)
    word = "scatter" if last.scatter else "matmul" if products else "-".join(dict.fromkeys(kinds)) or "map"
    if products and len(kinds) > products:
        word = "attention" if products > 1 else "matmul-" + kinds[-1]
    sizes = "x".join(str(a.arg.extent) if isinstance(a.arg.extent, int) else "?" for a in last.axes)
    return f"{word}_{sizes or 1}"
