"""Whole programs with and without tuned schedules: faster alone is not always faster together."""

from __future__ import annotations

import time

import numpy as np

from muladd.compile.kernels import compile_kernel
from muladd.compile.program import Action, Loop, Program, Run
from muladd.compile.search.worker import filling
from muladd.ir import sym

_TURNS = 7


def again(program: Program) -> Program:
    """The program with its kernels as they are compiled now."""
    return Program(program.device, _again(program.actions, program), program.inputs,
                   program.outputs, program.variables)  # fmt: skip


def _again(actions: list[Action], program: Program) -> list[Action]:
    out: list[Action] = []
    for a in actions:
        if isinstance(a, Run):
            kernel = compile_kernel(a.kernel.kernel, program.device, program.variables)
            out.append(Run(kernel, a.uses))
        elif isinstance(a, Loop):
            out.append(Loop(a.count, _again(a.body, program), a.reverse))
        else:
            out.append(a)
    return out


def ratio(new: Program, old: Program) -> float:
    """The least time of one program by the least of the other, on the same random data, in turns.

    Both are of plain sizes, and have the same inputs.
    """
    device, random = old.device, np.random.default_rng(0)
    buffers = []
    for a in old.inputs:
        count = sym.evaluate(a.size, {})
        buffers.append(device.allocate(count * a.dtype.itemsize))
        device.copy_in(buffers[-1], filling(random, a.dtype, count))
    least = {id(new): float("inf"), id(old): float("inf")}
    for turn in range(_TURNS + 1):
        for program in (new, old) if turn % 2 else (old, new):
            start = time.perf_counter()
            program.run(buffers)
            device.synchronize()
            if turn:  # the first runs touch memory
                least[id(program)] = min(least[id(program)], time.perf_counter() - start)
    return least[id(new)] / max(least[id(old)], 1e-9)
