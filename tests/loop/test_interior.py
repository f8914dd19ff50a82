"""Chunks that lie inside load without guards, which one question before their loops tells."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import compare

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.ir import ops, toposort
from muladd.loop.lower import lower
from muladd.loop.statements import For, Grid, If, Store


def lowered(t):
    with config.context(CHECK=0):
        graph, _ = parameters((t.node,))
        return [lower(k.plan) for k in compile_graph(graph, "NULL").kernels()]


def zeros(*shape):
    return Tensor.zeros(*shape, device="NULL").realize()


def guards(body):
    """How many guarded loads the stores of some statements have."""
    count = 0
    for s in body:
        if isinstance(s, Store):
            count += sum(n.op is ops.LOAD and len(n.srcs) > 1 for n in toposort((s.value,)))
        elif isinstance(s, For | Grid):
            count += guards(s.body)
        elif isinstance(s, If):
            count += guards(s.body) + guards(s.orelse)
    return count


def choices(body):
    """The Ifs of a kernel, wherever they stand."""
    for s in body:
        if isinstance(s, If):
            yield s
        if isinstance(s, For | Grid):
            yield from choices(s.body)


def test_rows_that_are_there_ask_once():
    """A running sum of a length that is no whole number of rows took ten times as long."""
    found = [c for k in lowered(zeros(100_003).cumsum(0)) for c in choices(k.body)]
    assert found
    for c in found:
        assert guards(c.body) < guards(c.orelse)


def test_what_data_says_is_asked_each_time():
    t = zeros(50, 8)
    index = Tensor.zeros(4096, dtype="int64", device="NULL").realize()
    for kernel in lowered(t[index] * 2):
        assert not list(choices(kernel.body)) and guards(kernel.body)


@pytest.mark.parametrize("n", [1025, 5000, 16_385])
def test_running_sums(n, device, rng):
    compare(lambda t: t.cumsum(0), rng.integers(-9, 9, n))
    compare(lambda t: t.cumsum(1), rng.standard_normal((3, n)).astype(np.float32), rtol=1e-4,
            atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("size", [5, 16, 17, 24])
def test_windows(size, device, rng):
    x = rng.standard_normal((2, 3, size, size)).astype(np.float32)
    compare(lambda t: t.max_pool2d(3, stride=2, padding=1), x,
            oracle=lambda t: torch.nn.functional.max_pool2d(t, 3, 2, 1))  # fmt: skip
    compare(lambda t: t.avg_pool2d(3, stride=1, padding=1), x,
            oracle=lambda t: torch.nn.functional.avg_pool2d(t, 3, 1, 1))  # fmt: skip


@pytest.mark.parametrize("by", [1, 7, 300])
def test_shifts(by, device, rng):
    x = rng.standard_normal((301, 67)).astype(np.float32)
    compare(lambda t: t.roll(by, 0) * 2 + t.roll(-by, 1), x)


def test_rows_that_are_put_together_are_told_by_their_loop():
    """Each row read both arrays under masks; one took three times as long as copying it."""
    parts = [zeros(n, 64) for n in (300, 200, 100)]
    for kernel in lowered(Tensor.cat(*parts)):
        found = list(choices(kernel.body))
        assert found and not any(guards(c.body) + guards(c.orelse) for c in found)


@pytest.mark.parametrize("sizes", [(3, 5), (1, 1, 1), (40, 1, 70), (16, 16, 16, 16)])
def test_arrays_that_are_put_together(sizes, device, rng):
    parts = [rng.normal(size=(n, 37)) for n in sizes]
    cat = lambda t: Tensor.cat(*t) if isinstance(t[0], Tensor) else torch.cat(t)  # noqa: E731
    compare(lambda *t: cat(t) * 2, *parts)
    compare(lambda *t: cat(t)[2:-1].flip((0,)), *parts)
