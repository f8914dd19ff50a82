"""From a naive matrix product to a fast one: a kernel timed after each directive of its schedule.

    python benchmarks/matmul_steps.py                 1024 x 1024 x 1024 on one thread
    python benchmarks/matmul_steps.py 512 2           another size, two threads
    python benchmarks/matmul_steps.py --plans         with the plan after each directive

docs/performance.md explains each step. The kernel, what is computed, is the same object throughout;
only the text of the schedule grows, and in the end its plan is the one that the compiler chooses by
itself. The sizes of tiles and panels are taken from there: they depend on the machine.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from muladd import Tensor
from muladd import device as devices
from muladd.codegen import llvm, native
from muladd.compile import compile_graph, parameters
from muladd.compile.roofline import peaks
from muladd.device import Arg, Launch, Machine
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.schedule import heuristic
from muladd.schedule.primitives import apply

PAUSE = 0.02  # seconds between runs
LEAST, MOST = 3, 40  # runs of a schedule, of which the fastest counts
ENOUGH = 2.0  # seconds of running it


def directives(kernel: Kernel, machine: Machine) -> list[tuple[str, str]]:
    """(directive, the part of the way that it belongs to), in order."""
    plan = heuristic.schedule(kernel, machine)
    (tiles, rows), (panels, vectors, lanes) = (
        [x.loop.arg.extent for x in plan.leaves[axis][1:]] for axis in kernel.shared
    )
    return [
        (f"split p1 {panels} {vectors} {lanes}", "vectors"),
        ("outer p0 p1.0", "vectors"),
        ("vector p1.3", "vectors"),
        ("unroll s0 p1.2", "a tile in registers"),
        (f"split p0 {tiles} {rows}", "a tile in registers"),
        ("outer p0.0 p0.1 p1.0", "a tile in registers"),
        ("unroll s0 p0.2", "a tile in registers"),
        ("outer p1.0 p0.0 p0.1", "a panel for all rows"),
        ("parallel 2", "a panel for all rows"),
        ("nest s0 p1.1 r0 p0.2 p1.2 p1.3", "a panel for all rows"),
        ("copy s0 right c0", "packing"),
        ("at c0 2", "packing"),
        ("layout c0 p1.1 c0.r0 p1.2 p1.3", "packing"),
        ("nest c0 p1.1 c0.r0 p1.2 p1.3", "packing"),
        ("unroll c0 p1.2", "packing"),
        ("vector c0 p1.3", "packing"),
        *[(line, "packing") for line in plan.lines if line.startswith("ahead")],
        *[(line, "results past the caches") for line in plan.lines if line.startswith("claim")],
        *[("nontemporal s0", "results past the caches")][: "s0" in plan.nontemporal],
    ]


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


def fastest(call: Callable[[], None], threads: int) -> float:
    """Seconds of the fastest of some runs; of one thread, those it had a core to itself."""
    clock = time.perf_counter if threads > 1 else time.process_time
    taken: list[float] = []
    while len(taken) < LEAST or (len(taken) < MOST and sum(taken) < ENOUGH):
        time.sleep(PAUSE)
        start = clock()
        call()
        taken.append(clock() - start)
    return min(taken)


def main(size: int = 1024, threads: int = 1, plans: bool = False) -> Plan:
    """Prints a line for each directive; gives the last plan."""
    place: Any = devices.get("CPU")
    place.set_threads(threads)
    kernel, buffers, expected = product(size)
    steps = directives(kernel, place.machine)
    peak = peaks(threads).flops
    print(f"{kernel.text()}\npeak {peak / 1e9:.0f} GFLOP/s on {threads} threads\n")
    print(f"{'directive':34} {'GFLOP/s':>8} {'of peak':>8} {'gain':>6}")
    before, plan = 0.0, apply(kernel, ())
    for count in range(len(steps) + 1):
        plan = apply(kernel, tuple(line for line, _ in steps[:count]))
        call = ready(plan, buffers)
        rate = 2 * size**3 / fastest(call, threads)
        found = np.empty((size, size), np.float32)
        place.copy_out(buffers[-1], found)
        line, part = steps[count - 1] if count else ("(plain)", "")
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max(), line
        if count and (count == 1 or part != steps[count - 2][1]):
            print(f"-- {part}")
        gain = f"{rate / before:5.2f}x" if before else ""
        print(f"{line:34} {rate / 1e9:8.1f} {100 * rate / peak:7.0f}% {gain:>6}", flush=True)
        if plans:
            print("\n".join("      " + line for line in plan.text().splitlines()))
        before = rate
    print(f"\n{plan.text()}")
    return plan


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", nargs="?", type=int, default=1024)
    parser.add_argument("threads", nargs="?", type=int, default=1)
    parser.add_argument("--plans", action="store_true", help="print the plan after each directive")
    main(**vars(parser.parse_args()))
