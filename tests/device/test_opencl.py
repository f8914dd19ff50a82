"""OpenCL: buffers, kernels, loops, copies, errors. Skipped where no driver is installed."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.codegen import c_prelude
from muladd.device import Arg, Copy, Launch, Repeat, Variable
from muladd.errors import DeviceError, OutOfMemory

# OpenCL C's own functions are declared by the renderer, as PoCL is slow at reading its header
ADD = c_prelude.OPENCL.encode() + b"""
kernel void add(global char *a, long ao, global char *b, long bo, long n) {
  global long *x = (global long *)(a + ao);
  global long *y = (global long *)(b + bo);
  long i = get_global_id(0);
  if (i < n) x[i] += y[i];
}
"""


def filled(opencl, values):
    array = np.asarray(values, np.int64)
    buffer = opencl.allocate(array.nbytes)
    opencl.copy_in(buffer, array)
    return buffer


def read(opencl, buffer):
    array = np.empty(buffer.nbytes // 8, np.int64)
    opencl.copy_out(buffer, array)
    return array


def test_launch_with_variables(opencl):
    a, b = filled(opencl, range(10)), filled(opencl, range(10))
    kernel = opencl.load(ADD, "add")
    step = Launch(kernel, (Arg(0), Arg(1)), 16, "add")
    program = opencl.program([step], 2)
    program.timing = True
    program.run([a, b], [7])
    expected = np.arange(10)
    expected[:7] *= 2
    assert (read(opencl, a) == expected).all()
    (time,) = program.times()
    assert time.name == "add" and time.calls == 1 and time.seconds > 0


def test_repeat_moves_arguments_and_copies(opencl):
    a, b = filled(opencl, [0] * 4), filled(opencl, range(12))
    kernel = opencl.load(ADD, "add")
    program = opencl.program(
        [
            Repeat(Variable(1), (Launch(kernel, (Arg(0), Arg(1, 0, ((0, 32),))), 4, "add"),)),
            Copy(Arg(1, 8), Arg(1), 16),  # overlapping
        ],
        2,
    )
    program.run([a, b], [4, 3])
    assert (read(opencl, a) == np.arange(12).reshape(3, 4).sum(0)).all()
    assert (read(opencl, b)[:4] == [0, 0, 1, 3]).all()


def test_errors(opencl):
    with pytest.raises(DeviceError, match="compiling"):
        kernel = opencl.load(b"kernel void broken(", "broken")
        opencl.program([Launch(kernel, (), 1, "broken")], 0)
    with pytest.raises(OutOfMemory):
        opencl.allocate(1 << 60)
    assert isinstance(opencl.has_float64, bool)
