"""Products of bytes: whichever instruction a machine has for them, the sums are exact."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor
from muladd.codegen import llvm, native
from muladd.compile import compile_graph, parameters
from muladd.device import Machine
from muladd.errors import ScheduleError
from muladd.ir import const, dtype, make, ops, sym
from muladd.loop.dots import side_by_side
from muladd.loop.lower import lower
from muladd.loop.values import whole_numbers as bounds
from muladd.schedule import heuristic

LANES = Machine.host().float_lanes
EXTREME = {"int8": (-128, 127), "uint8": (0, 255), "nibbles": (0, 255), "sevens": (0, 255)}


def grouped(w: Tensor, lanes: int) -> Tensor:
    """(n / lanes, terms, lanes, group), as bytes lie, to (n, terms, group)."""
    panels, terms, _, group = w.shape
    return w.permute(0, 2, 1, 3).reshape(panels * lanes, terms, group)


def product(x: Tensor, w: Tensor, kind: str, lanes: int = LANES) -> Tensor:
    """int32 (m, n): x int8 (m, terms, group), with nibbles (m, 2, terms, group)."""
    w = grouped(w, lanes)
    if kind == "nibbles":
        x = x.cast("int32").unsqueeze(1)
        value = x[:, :, 0] * (w & 15).cast("int32") + x[:, :, 1] * (w >> 4).cast("int32")
    else:
        w = w & 127 if kind == "sevens" else w
        value = x.cast("int32").unsqueeze(1) * w.cast("int32")
    return value.sum((-2, -1), dtype="int32")


def given(chance, kind: str, m: int, panels: int, terms: int, group: int, lanes: int = LANES):
    def numbers(shape, kind):
        low, high = EXTREME[kind]
        if chance.integers(2):  # nothing but the extremes, where 16 bits would overflow
            return chance.choice([low, high], shape)
        return chance.integers(low, high + 1, shape)

    halves = (2,) if kind == "nibbles" else ()
    x = numbers((m, *halves, terms, group), "int8").astype(np.int8)
    w = numbers((panels, terms, lanes, group), kind)
    return x, w.astype(np.int8 if kind == "int8" else np.uint8)


def expected(x: np.ndarray, w: np.ndarray, kind: str) -> np.ndarray:
    panels, terms, lanes, group = w.shape
    w = w.transpose(0, 2, 1, 3).reshape(panels * lanes, -1).astype(np.int64)
    x = x.reshape(len(x), -1).astype(np.int64)
    if kind == "nibbles":
        w = np.concatenate([w & 15, w >> 4], 1)
    return (x @ (w & 127 if kind == "sevens" else w).T).astype(np.int32)


@pytest.mark.parametrize("kind", EXTREME)
@pytest.mark.parametrize("m, panels, terms, group", [
    (1, 4, 4, 4), (1, 3, 8, 4), (7, 2, 4, 4), (16, 5, 3, 4), (9, 1, 40, 4), (2, 2, 5, 2),
])  # fmt: skip
def test_sums_are_exact(kind, m, panels, terms, group):
    chance = np.random.default_rng(m + terms)
    for _ in range(3):
        x, w = given(chance, kind, m, panels, terms, group)
        got = product(Tensor(x, device="CPU").realize(), Tensor(w, device="CPU").realize(), kind)
        graph, _ = parameters((got.node,))
        (kernel,) = compile_graph(graph, "CPU").kernels()
        assert kernel.plan.text().count("*d") == 1
        np.testing.assert_array_equal(got.numpy(), expected(x, w, kind))
        again = product(Tensor(x, device="INTERP"), Tensor(w, device="INTERP"), kind)
        np.testing.assert_array_equal(got.numpy(), again.numpy())


def test_bytes_made_of_floats_as_they_are_read():
    x, w = given(np.random.default_rng(0), "int8", 3, 2, 4, 4)
    made = Tensor(x.astype("float32")).realize().cast("int8")
    got = product(made, Tensor(w).realize(), "int8")
    (kernel,) = got.kernels()
    assert kernel.plan.text().count("*d") == 1
    np.testing.assert_array_equal(got.numpy(), expected(x, w, "int8"))


@pytest.mark.parametrize("name, wanted", [
    ("sse", "pmaddubsw"), ("avx2", "vpmaddubsw"), ("avx512", "vpdpbusd"), ("zen4", "vpdpbusd"),
    ("neon", "sdot"), ("apple", "sdot"), ("sve", ""),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["nibbles", "int8"])
def test_each_machine_has_its_instruction(kind, name, wanted):
    machine = Machine.named(name)
    lanes = machine.float_lanes
    w = Tensor.zeros(4, 4, lanes, 4, dtype="int8" if kind == "int8" else "uint8", device="NULL")
    x = Tensor.zeros(3, *((2,) if kind == "nibbles" else ()), 4, 4, dtype="int8", device="NULL")
    graph, _ = parameters((product(x.realize(), w.realize(), kind, lanes).node,))
    (compiled,) = compile_graph(graph, "NULL").kernels()
    plan = heuristic.schedule(compiled.kernel, machine)
    assert "*d" in plan.text()
    source = llvm.render(lower(plan), {}, masked=machine.masked, dot=machine.dot).source
    text = native.assembly(source, machine)
    if kind == "int8" and not machine.dot == "sdot":
        wanted = "pmaddwd" if machine.dot in ("sse", "ssse3", "avx2") else ""
    assert wanted in text


def test_bytes_that_lie_otherwise_are_refused():
    i, k = sym.axis("i", 8), sym.axis("k", 4)
    apart = make(ops.LOAD, (sym.add(i, sym.mul(k, 8)),), 0, dtype.int8)
    with pytest.raises(ScheduleError, match="the bytes of an operand lie 1 apart"):
        side_by_side(apart, i, k)
    x = Tensor(np.ones((4, 6), np.int8)).realize().cast("int32")
    y = Tensor(np.ones((6, 8), np.int8)).realize().cast("int32")
    np.testing.assert_array_equal((x @ y).numpy(), np.full((4, 8), 6))


def test_bounds_of_bytes():
    byte = make(ops.LOAD, (sym.as_node(0),), 0, dtype.uint8)
    small = make(ops.LOAD, (sym.as_node(0),), 0, dtype.int8)
    by = {n: const(n, dtype.uint8) for n in (15, 16)}
    assert bounds(byte) == (0, 255) and bounds(small) == (-128, 127)
    assert bounds(make(ops.AND, (byte, by[15]))) == (0, 15)
    assert bounds(make(ops.DIV, (byte, by[16]))) == (0, 15)
    assert bounds(make(ops.MOD, (byte, by[16]))) == (0, 15)
    assert bounds(make(ops.DIV, (small, const(16, dtype.int8)))) == (-8, 7)
    assert bounds(make(ops.ADD, (byte, byte))) == (0, 255)


def test_rows_of_bytes_with_padding():
    """What is loaded under a condition is no pair of bytes, but a product all the same."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-9, 9, s).astype("i1") for s in ((64, 64), (64, 48)))
    padded = Tensor(x, device="CPU").pad((0, 0, 3, 2))
    found = (padded.int() @ Tensor(y, device="CPU").int()).numpy()
    np.testing.assert_array_equal(found, np.pad(x.astype("i4"), ((3, 2), (0, 0))) @ y.astype("i4"))
