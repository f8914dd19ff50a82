"""C-like source: what it says, and that every operation means what the table says, to the bit."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from muladd.codegen import cstyle, llvm
from muladd.compile import backends
from muladd.compile.fuzzing import runner
from muladd.errors import DeviceError, ScheduleError
from muladd.interp.differential import check
from muladd.ir import Node, Storage, dtype, make, ops, sym
from muladd.loop.kernel import Argument, Kernel, Stage
from muladd.loop.lower import lower
from muladd.loop.plan import plain
from muladd.rewrite.transcendental import expand
from muladd.schedule import groups
from muladd.schedule.primitives import apply

FLOAT = dtype.float32


pytestmark = pytest.mark.usefixtures("opencl")


# --- what operations mean ------------------------------------------------------------------------


def edges(d: dtype.DType) -> np.ndarray:
    """Values of a dtype at which something goes wrong."""
    if d is dtype.bool_:
        return np.array([False, True])
    if not d.is_float:
        info = np.iinfo(d.numpy)
        found = [0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1, info.max // 3]
        return np.array([*found, *(-x for x in found[1:5] if info.min < 0)], d.numpy)
    near = [1 + 2.0**-11, 1 + 2.0**-9, 2.0**31, 2.0**63, 2.0**64, 65519.0, 65520.0, 448.0, 465.0]
    near += [127.5, 128.0, 255.9, 2.0**-24, 2.0**-25, 2.0**-149, 1 / 3, 3e38, 57344.0, 61440.0]
    near += [np.inf, 0.0, 0.1, 5.0, 2.0**-9, 2.0**-10]
    with np.errstate(all="ignore"):
        values = np.array([*near, *(-x for x in near), np.nan], np.float64)
        if d.storage != d.numpy:
            return dtype.round_to(values.astype(np.float32), d)
        return values.astype(d.numpy)


def pairs(d: dtype.DType) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.meshgrid(edges(d), edges(d))
    return a.ravel().copy(), b.ravel().copy()


def leaf(values: np.ndarray, d: dtype.DType) -> Node:
    return make(ops.INPUT, (), Storage(values.shape, d))


def holds(outputs: list[Node], inputs: dict[Node, np.ndarray]) -> None:
    check(outputs, inputs, {}, runner("OPENCL", "exact"), profile="exact", expand=expand)


@pytest.mark.parametrize("source", dtype.ALL, ids=lambda d: d.name)
def test_casts(source):
    values = edges(source)
    if source.is_int and source.bits == 64:  # more bits than float64 has
        near = [1 << 40, (1 << 53) + 1, (1 << 62) + 1, (1 << 24) + 1, (1 << 12) + 1, (1 << 9) + 1]
        values = np.append(values, np.array(near, source.numpy))
    x = leaf(values, source)
    holds([make(ops.CAST, (x,), None, d) for d in dtype.ALL], {x: values})


@pytest.mark.parametrize("d", dtype.ALL, ids=lambda d: d.name)
def test_binary_operations(d):
    a, b = pairs(d)
    x, y = leaf(a, d), leaf(b, d)
    rows = [ops.ADD, ops.MUL, ops.MAX, ops.LT, ops.NE]
    rows += [ops.DIV] * (d is not dtype.bool_) + [ops.MOD] * d.is_int
    rows += [ops.AND, ops.XOR] * (not d.is_float) + [ops.SQRT] * d.is_float
    holds([make(op, (x, y)[: op.arity]) for op in rows], {x: a, y: b})


@pytest.mark.parametrize("d", dtype.ALL, ids=lambda d: d.name)
def test_sums_and_maxima(d):
    values = np.resize(edges(d), (3, 130))
    x = leaf(values, d)
    reductions = [ops.AMAX] + [ops.SUM] * (d is not dtype.bool_)
    holds([make(op, (x,), axes) for op in reductions for axes in ((1,), (0,), (0, 1))],
          {x: values})  # fmt: skip


def test_every_narrow_float_survives_memory():
    outputs, inputs = [], {}
    for d in dtype.ALL:
        if d.is_float and d.bits <= 16:
            stored = np.arange(1 << d.bits).astype(f"uint{d.bits}")
            plain_bits = stored if d.storage.kind == "u" else stored.view(d.storage)
            values = dtype.decode(plain_bits, d)
            x = leaf(values, d)
            inputs[x] = values
            wide = make(ops.CAST, (x,), None, FLOAT)
            outputs += [wide, make(ops.CAST, (wide,), None, d), make(ops.ADD, (x, x))]
    holds(outputs, inputs)


# --- what the source says ------------------------------------------------------------------------


def summed(rows: int = 4, columns: int = 1000, lanes: int = 1) -> Kernel:
    """out[i] = sum over k of a[i, k]."""
    i, k = sym.axis("p0", rows), sym.axis("r0", columns)
    value = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(i, columns), k)),), 0, FLOAT)
    stage = Stage("s0", (i,), value, ops.SUM, (k,), 1, i, lanes=lanes)
    arguments = (Argument(0, FLOAT, rows * columns), Argument(1, FLOAT, rows, True))
    return Kernel((stage,), (i,), arguments)


def test_one_work_item_for_each_result():
    source = cstyle.render(lower(plain(summed())), {}).source
    assert "if (chunk < 4L)" in source and "get_global_id(0)" in source
    assert "MEET;" not in source and "local" not in source.split("kernel void")[1]


def test_a_group_for_each_row(opencl):
    rendered = cstyle.render(lower(groups.schedule(summed(), opencl.machine)), {})
    assert "GROUP_OF(64) void" in rendered.source
    assert rendered.source.count("MEET;") == 7 and "local float" in rendered.source
    assert rendered.scratch == 0


def test_what_is_too_large_for_the_group_lies_in_scratch(opencl):
    lowered = lower(groups.schedule(summed(), opencl.machine))
    rendered = cstyle.render(lowered, {}, local_bytes=64)
    assert rendered.scratch > 64 and "global char *scratch" in rendered.source
    assert "chunk = first + get_group_id(0)" in rendered.source  # it may be launched in parts


def test_one_thread_of_a_cpu_cannot_be_a_group(opencl):
    lowered = lower(groups.schedule(summed(), opencl.machine))
    with pytest.raises(ScheduleError, match="wait for each other"):
        llvm.render(lowered, {})


def test_vectors_are_refused():
    plan = apply(summed(), ("split r0 8", "vector r0.1"))
    with pytest.raises(DeviceError, match="without vectors"):
        cstyle.render(lower(plan), {})


@dataclass(frozen=True)
class WithoutFloat64:
    machine: object
    has_float64: bool = False
    name: str = "OPENCL"


def test_a_device_without_float64_says_so(opencl):
    machine = replace(opencl.machine, cpu="small device")
    kernel = summed()
    value = make(ops.CAST, (kernel.stages[0].value,), None, dtype.float64)
    stage = replace(kernel.stages[0], value=value)
    arguments = (kernel.arguments[0], Argument(1, dtype.float64, 4, True))
    kernel = replace(kernel, stages=(stage,), arguments=arguments, _memo={})
    backend = backends.of(WithoutFloat64(machine))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="small device has no float64"):
        backend.render(lower(plain(kernel)), {})
