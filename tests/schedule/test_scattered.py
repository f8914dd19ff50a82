"""Sums at places that are looked up: by whole vectors, in the order of the terms, and right."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from muladd import Tensor, config, jit
from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.loop.bounds import prove
from muladd.loop.lower import lower
from muladd.schedule import heuristic
from muladd.schedule.primitives import step
from muladd.schedule.recipes.scattered import scattered

MACHINES = ["sse", "avx2", "avx512", "neon", "sve"]


def gradient(shape: tuple[int, ...], at: np.ndarray, dim: int) -> tuple[Tensor, np.ndarray]:
    """The derivative by a table of what is taken from it, and what it should be."""
    rng = np.random.default_rng(len(at))
    table = Tensor.zeros(*shape).realize()
    table.requires_grad_()
    taken = table[at] if dim == 0 else table[:, at]
    weights = rng.normal(size=taken.shape).astype("f")
    (taken * Tensor(weights)).sum().backward()
    assert table.grad is not None
    wanted = np.zeros(shape, "f")
    np.add.at(wanted, at if dim == 0 else (slice(None), at), weights)
    return table.grad, wanted


def scatter_of(grad: Tensor):
    (k,) = [k for k in grad.kernels() if any(s.scatter for s in k.kernel.stages)]
    return k.kernel


@pytest.mark.parametrize("count", [2, 37, 900])
@pytest.mark.parametrize("shape, dim", [
    ((50, 1), 0), ((50, 5), 0), ((9, 16), 0), ((7, 64), 0), ((50, 100), 0), ((11, 387), 0),
    ((30, 3, 20), 0), ((3, 40, 33), 1), ((6, 40), 1),
])  # fmt: skip
def test_what_a_table_is_told(shape, dim, count):
    at = np.random.default_rng(count).integers(0, shape[dim], count)
    grad, wanted = gradient(shape, at, dim)
    kernel = scatter_of(grad)
    for machine in MACHINES:
        prove(lower(heuristic.schedule(kernel, Machine.named(machine))))
    np.testing.assert_allclose(grad.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_terms_are_added_in_their_order():
    at = np.random.default_rng(3).integers(0, 4, 5000)
    with config.context(PROFILE="exact"):
        grad, wanted = gradient((4, 70), at, 0)
        assert np.array_equal(grad.numpy(), wanted)


@pytest.mark.parametrize("columns, grid, lanes", [
    (384, 2, 16), (64, 2, 16), (20, 2, 16), (6, 1, 8),
])  # fmt: skip
def test_each_thread_has_columns_of_its_own(columns, grid, lanes):
    grad, _ = gradient((1000, columns), np.arange(5000) % 1000, 0)
    machine = replace(Machine.named("avx512"), cores=2)
    plan = heuristic.schedule(scatter_of(grad), machine)
    (s,) = plan.kernel.stages
    *rest, row, turns, beside, vector = plan.nests[s.name]
    assert not rest and plan.owner(row) in s.reduced
    assert plan.spreads(s, vector) and vector.arg.extent == lanes
    assert [x.arg.extent for x in plan.outer] == [grid] and plan.parallel == 1
    assert grid * turns.arg.extent * beside.arg.extent * lanes >= columns


def test_places_outside_of_the_table_are_left_alone():
    """Indices of a compiled function, which nobody looks at."""
    table = Tensor.zeros(50, 50).realize()
    add = jit(lambda at, rows: table.index_add(0, at, rows))
    rows = np.random.default_rng(0).normal(size=(9, 50)).astype("f")
    for _ in range(3):
        add(Tensor(np.arange(9)), Tensor(rows))
    at = np.array([3, -60, 70, 2, 3, 2**40, -1, -51, 50])
    wanted = np.zeros((50, 50), "f")
    for k, row in zip(at, rows):
        if -50 <= k < 50:
            wanted[k] += row
    np.testing.assert_allclose(add(Tensor(at), Tensor(rows)).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_lanes_that_may_add_to_one_place_are_refused():
    grad, _ = gradient((50, 16), np.arange(64) % 50, 0)
    plan = heuristic.collapse_all(scatter_of(grad))
    (s,) = plan.kernel.stages
    plan = step(plan, f"split {s.reduced[0].arg.name} 8")
    plan = step(plan, f"vector {s.reduced[0].arg.name}.1")
    with pytest.raises(ScheduleError, match="lanes that may add to one place"):
        lower(plan)


def test_terms_written_out_side_by_side_are_added_one_after_the_other(monkeypatch):
    made = []

    def beside(plan, machine):
        plan = step(scattered(plan, machine), "split r0 4")
        made.append(step(plan, f"unroll {plan.kernel.stages[0].name} r0.1"))
        prove(lower(made[-1]))
        return made[-1]

    monkeypatch.setattr(heuristic, "scattered", beside)
    with config.context(NOCACHE=1):
        grad, wanted = gradient((3, 19), np.arange(37) % 3, 0)
        np.testing.assert_allclose(grad.numpy(), wanted, rtol=1e-5, atol=1e-6)
    (plan,) = made
    assert plan.overhangs(plan.kernel.stages[0].reduced[0])
