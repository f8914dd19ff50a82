"""Maps whose sources lie along another axis than their results: which are turned, and rightly."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.device.machine import Machine
from muladd.loop.bounds import prove
from muladd.loop.lower import lower
from muladd.schedule.heuristic import schedule


def is_turned(t: Tensor, machine: str) -> bool:
    """Whether vectors run along an axis inside of the one that is stored along, written out."""
    (k,) = t.kernels()
    made = schedule(k.kernel, Machine.named(machine))
    prove(lower(made))
    (nest,) = (line for line in made.text().splitlines() if line.startswith("s0 at"))
    *_, last_but_one, last = nest.split()
    return last.endswith("*v") and last_but_one.endswith("*u") and \
        last.split(".")[0] != last_but_one.split(".")[0]  # fmt: skip


def zeros(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(np.zeros(shape, dtype))


@pytest.mark.parametrize("machine", ["sse", "avx2", "avx512", "neon"])
def test_which_maps_are_turned(machine):
    for t in (zeros(100, 77).transpose(0, 1).contiguous(),
              zeros(4, 64, 9, 9).permute(0, 2, 3, 1).contiguous(),
              zeros(40, 50, 60).permute(2, 1, 0).exp() + 1,
              zeros(64, 64).transpose(0, 1) * zeros(64) + zeros(64, 64).transpose(0, 1).abs(),
              zeros(64, 64, dtype="int32").transpose(0, 1).contiguous()):  # fmt: skip
        assert is_turned(t, machine)
    for t in (zeros(64, 64).exp(), zeros(8, 5, 6, 64).permute(0, 2, 1, 3).contiguous(),
              zeros(64, 64).transpose(0, 1) + zeros(64, 64),  # one of two lies along the results
              zeros(500, 3).transpose(0, 1).contiguous(),  # an axis too short for vectors
              zeros(40, 50).pad(((1, 3), (0, 0))).transpose(0, 1).contiguous(),  # guarded loads
              zeros(4000).unfold(0, 64, 1).contiguous(),  # both axes lie along the source
              zeros(64, 64, dtype="int8").transpose(0, 1).contiguous()):  # fmt: skip
        assert not is_turned(t, machine)


@pytest.mark.parametrize("shape, order", [
    ((1000, 777), (1, 0)), ((4, 64, 15, 15), (0, 2, 3, 1)), ((4, 15, 15, 64), (0, 3, 1, 2)),
    ((50, 20, 30), (2, 1, 0)), ((16, 16), (1, 0)), ((17, 33), (1, 0)),
    ((3, 31, 2, 47), (0, 3, 2, 1)),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["float32", "int32", "float64", "int8"])
def test_what_is_turned(shape, order, kind):
    a = np.random.default_rng(0).uniform(-100, 100, shape).astype(kind)
    t = Tensor(a).permute(*order)
    np.testing.assert_array_equal(t.contiguous().numpy(), a.transpose(order))
    part = Tensor(a)[1:].permute(*order)[1:]  # not whole, and not from the beginning
    wanted = a[1:].transpose(order)[1:] + np.array(1, kind)
    np.testing.assert_array_equal((part + 1).numpy(), wanted)


def test_few_long_rows_are_shared_by_all_threads():
    (k,) = zeros(16, 1 << 18).transpose(0, 1).contiguous().kernels()
    grid = schedule(k.kernel, Machine.named("avx512")).text().splitlines()[0]
    chunks = np.prod([int(loop.split("<")[1]) for loop in grid.split()[1:]])
    assert chunks >= 64


@pytest.mark.parametrize("pads", [((1, 3), (0, 0)), ((0, 3), (0, 0)), ((1, 3), (2, 5))])
def test_padded_and_transposed(pads):
    a = np.random.default_rng(0).normal(size=(40, 50)).astype("f")
    with config.context(CHECK=True):  # was refused: what is loaded in a corner was not proven
        made = Tensor(a).pad(pads).transpose(0, 1).contiguous().numpy()
    np.testing.assert_array_equal(made, np.pad(a, pads).T)


def test_stages_that_read_each_other_keep_no_rows():
    x = zeros(64, 100_000).transpose(0, 1).contiguous()
    assert all(k.scratch < 1 << 16 for k in x.kernels(x * 2))
