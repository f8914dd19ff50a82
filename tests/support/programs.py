"""Runs a compiled program over float32 arrays, one per input; gives its outputs, flat."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from muladd.compile.program import Program
from muladd.ir import sym


def run(
    program: Program, arrays: Sequence[np.ndarray], sizes: Sequence[int] = ()
) -> list[np.ndarray]:
    """sizes: the values of the program's symbolic sizes, in the order of their names."""
    device, given = program.device, []
    for values in arrays:
        given.append(device.allocate(values.nbytes))
        device.copy_in(given[-1], values)
    known = dict(zip(program.variables, sizes))
    found = []
    for buffer, a in zip(program.run(given, sizes), program.outputs):
        found.append(np.empty(sym.evaluate(a.size, known), np.float32))
        device.copy_out(buffer, found[-1])
    return found
