"""From a naive matrix product to a fast one: the same kernel under five schedules, each timed.

    python benchmarks/matmul_steps.py            512 x 512 x 512 on all cores
    python benchmarks/matmul_steps.py 1024 1     another size, one thread

docs/performance.md explains each step. The kernel, what is computed, is the same object in all of
them; only the text of the schedule grows.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from muladd import Tensor
from muladd import device as devices
from muladd.bench.measure import Effort, alternate
from muladd.codegen import llvm, native
from muladd.compile import compile_graph, parameters
from muladd.compile.roofline import peaks
from muladd.device import Arg, Launch, Machine
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.schedule.primitives import apply


def schedules(machine: Machine, size: int) -> dict[str, tuple[str, ...]]:
    """Steps by name. Vectors have `lanes` columns; the tile fills three quarters of registers."""
    lanes = machine.float_lanes
    rows, vectors = (8, 3) if machine.vector_registers >= 32 else (6, 2)
    tiled = (
        f"split p0 {rows}", f"split p1 {vectors} {lanes}", "outer p0.0 p1.0", "parallel 1",
        "nest s0 r0 p0.1 p1.1 p1.2", "unroll s0 p0.1 p1.1", "vector p1.2",
    )  # fmt: skip
    packed = (
        "copy s0 right c0", f"split p0 8 {rows}", f"split p1 {vectors} {lanes}",
        "outer p1.0 p0.0 p0.1", "parallel 2", "nest s0 r0 p0.2 p1.1 p1.2", "unroll s0 p0.2 p1.1",
        "at c0 1", "layout c0 c0.r0 p1.1 p1.2", "nest c0 c0.r0 p1.1 p1.2", "unroll c0 p1.1",
        "vector p1.2",
    )  # fmt: skip
    panels = (
        "copy s0 right c0", f"split p0 {-(-size // rows // 2)} {rows}",
        f"split p1 4 {vectors} {lanes}",
        "outer p1.0 p0.0 p0.1", "parallel 2", "nest s0 p1.1 r0 p0.2 p1.2 p1.3",
        "unroll s0 p0.2 p1.2", "at c0 2", "layout c0 p1.1 c0.r0 p1.2 p1.3",
        "nest c0 p1.1 c0.r0 p1.2 p1.3", "unroll c0 p1.2", "vector p1.3",
    )  # fmt: skip
    return {
        "plain": (),
        "vectors": (f"split p1 {lanes}", "outer p0 p1.0", "parallel 1", "vector p1.1"),
        "tile in registers": tiled,
        "packed columns": packed,
        "packed panels": panels,
    }


def product(size: int) -> tuple[Kernel, list[Any], np.ndarray]:
    """(the kernel of a product, its buffers with room for the result, the expected result)."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    graph, storages = parameters(((Tensor(a, device="CPU") @ Tensor(b, device="CPU")).node,))
    (compiled,) = compile_graph(graph, "CPU").kernels()
    place = devices.get("CPU")
    return compiled.kernel, [*(s.buffer for s in storages), place.allocate(4 * size * size)], a @ b


def ready(plan: Plan, buffers: list[Any]) -> Callable[[], None]:
    """A call that runs the kernel under a plan."""
    place = devices.get("CPU")
    lowered = lower(plan)
    rendered = llvm.render(lowered, {}, masked=place.machine.masked)
    handle = place.load(native.compile_object(rendered.source, place.machine), rendered.name)
    grid = lowered.grid
    assert isinstance(grid, int)
    launch = Launch(handle, tuple(Arg(i) for i in range(len(buffers))), grid, "matmul")
    program = place.program((launch,), len(buffers), rendered.scratch)
    return lambda: program.run(buffers)


def main(size: int = 512, threads: int = 0) -> None:
    place: Any = devices.get("CPU")
    threads = threads or place.machine.cores
    place.set_threads(threads)
    kernel, buffers, expected = product(size)
    peak = peaks(threads).flops
    print(f"{kernel.text()}\n\npeak {peak / 1e9:.0f} GFLOP/s on {threads} threads")
    before = 0.0
    for name, schedule in schedules(place.machine, size).items():
        plan = apply(kernel, schedule)
        call = ready(plan, buffers)
        call()
        found = np.empty((size, size), np.float32)
        place.copy_out(buffers[-1], found)
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max(), name
        seconds = alternate({"": call}, Effort(repeat=15, seconds=4.0))[""].least
        rate = 2 * size**3 / seconds
        gain = f"  {rate / before:5.2f}x" if before else ""
        print(f"\n== {name}: {rate / 1e9:.1f} GFLOP/s, {100 * rate / peak:.0f}% of peak{gain}")
        print("\n".join("  " + line for line in (*schedule, "", *plan.text().splitlines())))
        before = rate


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
