"""Compiled programs against the interpreter: random graphs, and the graphs that once failed."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.compile.fuzzing import PROFILES, run, runner
from muladd.interp.differential import check
from muladd.ir import (
    Body,
    Node,
    ScanArg,
    Storage,
    const,
    iota,
    make,
    ops,
    param,
    sym,
    var,
)
from muladd.ir import dtype as dt
from muladd.rewrite.transcendental import expand

SECONDS = 6  # for each profile


def leaf(*shape, d=dt.float32) -> Node:
    return make(ops.INPUT, (), Storage(shape, d))


def holds(outputs, inputs=None, variables=None, profiles=PROFILES) -> None:
    """The compiled results are the interpreter's, in both profiles."""
    for profile in profiles:
        check(outputs, inputs or {}, variables or {}, runner("CPU", profile), profile=profile,
              expand=expand if profile == "exact" else None)  # fmt: skip


def test_random_graphs():
    report = run(2 * SECONDS / 60, seed=20261, most_graphs=120)
    assert not report.failures, str(report)
    assert report.graphs > 40


# --- structure -----------------------------------------------------------------------------------


def test_a_kernel_never_waits_for_a_scan_that_waits_for_it():
    x, y = leaf(3), leaf(4, 3)
    start = make(ops.ADD, (x, x))
    p, q = param(0, (3,), dt.float32), param(1, (3,), dt.float32)
    body = Body((make(ops.ADD, (p, q)),), (p, q), "step")
    scan = make(ops.SCAN, (start, y), ScanArg(body, 4, 1, 1, False, 0))
    both = make(ops.MUL, (scan, make(ops.ADD, (start, x))))
    rng = np.random.default_rng(0)
    holds([both, start], {x: rng.random(3, np.float32), y: rng.random((4, 3), np.float32)})


def test_a_kernel_that_reads_a_diagonal_shares_one_axis_with_its_producer():
    x = leaf(1, 2, 2, 1, d=dt.float64)
    wide = make(ops.EXPAND, (x,), (2, 2, 2, 17))
    rows = make(ops.RESHAPE, (make(ops.MUL, (wide, wide)),), (2, 1, 4, 17))
    corners = make(ops.SLICE, (rows,), ((0, 2, 1), (0, 1, 1), (0, 2, 3), (6, 5, 2)))
    holds([corners, wide], {x: np.arange(1, 5, dtype=float).reshape(1, 2, 2, 1)})


def test_sizes_multiplied_out_stay_in_bounds():
    n = var("n", 2, 4)
    less = sym.add(n, -1)
    x = leaf(n, 1, n, n, d=dt.int64)
    largest = make(ops.AMAX, (x,), (0, 1, 2, 3))
    wide = make(ops.EXPAND, (largest,), (n, 1, less, less))
    inner = make(ops.SLICE, (x,), ((less, n, -1), (0, 1, 2), (1, less, 1), (1, less, 1)))
    values = np.arange(27).reshape(3, 1, 3, 3) % 7
    holds([wide, inner], {x: values}, {"n": 3})


def test_lanes_that_overhang_stay_inside_a_buffer():
    n = var("n", 3, 9)
    x, y = leaf(n, 3, n, n, d=dt.uint64), leaf(3, n, n, d=dt.uint64)
    largest = make(ops.EXPAND, (make(ops.AMAX, (x,), (0, 1, 2, 3)),), (3, n, n))
    product = make(ops.MUL, (largest, y))
    total = make(ops.SUM, (product,), (1, 2))
    values = np.arange(6 * 3 * 6 * 6, dtype=np.uint64).reshape(6, 3, 6, 6) % 11
    holds([total, product], {x: values, y: values[0]}, {"n": 6})


def test_outputs_may_be_inputs_constants_duplicates_and_views():
    x = leaf(2, 3)
    values = {x: np.arange(6, dtype=np.float32).reshape(2, 3)}
    view = make(ops.PERMUTE, (x,), (1, 0))
    five = const(5.0, dt.float32, (2,))
    twice = make(ops.ADD, (x, x))
    holds([x, x, view, five, twice, twice, make(ops.RESHAPE, (x,), (6,)), const(True, dt.bool_)],
          values)  # fmt: skip


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 0)])
def test_arrays_without_elements(shape):
    x = leaf(*shape)
    axes = tuple(range(len(shape)))
    outputs = [
        make(ops.ADD, (x, x)), make(ops.SUM, (x,), axes), make(ops.AMAX, (x,), (0,)),
        make(ops.SUM, (x,), (len(shape) - 1,)), make(ops.EXPAND, (x,), (2, *shape)),
        make(ops.PAD, (x,), (((1, 1, 0),) * len(shape), 3.0)),
        make(ops.PERMUTE, (x,), axes[::-1]),
    ]  # fmt: skip
    holds(outputs, {x: np.zeros(shape, np.float32)})


def test_symbolic_sizes_that_happen_to_be_zero():
    n = var("n", 0, 9)
    x = make(ops.INPUT, (), Storage((n, 3), dt.float32))
    outputs = [make(ops.SUM, (x,), (0,)), make(ops.MUL, (x, x)), make(ops.SUM, (x,), (0, 1))]
    for size in (0, 1, 9):
        values = {x: np.arange(size * 3, dtype=np.float32).reshape(size, 3)}
        holds(outputs, values, {"n": size})


def test_a_program_that_only_moves_takes_its_sizes():
    n = var("n", 2, 9)
    x = make(ops.INPUT, (), Storage((n, 2), dt.float32))
    moved = make(ops.RESHAPE, (x,), (n, 2, 1))
    holds([moved, x], {x: np.ones((4, 2), np.float32)}, {"n": 4})


# --- arithmetic ----------------------------------------------------------------------------------


def test_int64_values_are_no_indices():
    """A user's MOD by a negative number is not within 0 and the divisor, and his sums wrap."""
    a, b = leaf(1, 5, d=dt.int64), leaf(1, 5, d=dt.int64)
    rest = make(ops.MOD, (a, b))
    top = const(2**63 - 1, dt.int64, (1, 5))
    big = make(ops.ADD, (iota(5, dt.int64), const(2**63 - 2, dt.int64, (5,))))
    far = make(ops.MUL, (iota(5, dt.int64), const(2**62, dt.int64, (5,))))
    three = const(3, dt.int64, (5,))
    back = make(ops.ADD, (iota(5, dt.int64), const(-3, dt.int64, (5,))))
    outputs = [
        make(ops.MAX, (rest, b)), make(ops.LT, (rest, b)),
        make(ops.LT, (make(ops.ADD, (a, top)), a)),
        make(ops.LT, (big, three)), make(ops.DIV, (far, three)), make(ops.MOD, (big, three)),
        make(ops.DIV, (iota(5, dt.int64), back)), make(ops.MOD, (iota(5, dt.int64), back)),
        make(ops.DIV, (make(ops.MUL, (a, const(4, dt.int64, (1, 5)))), const(4, dt.int64, (1, 5)))),
    ]  # fmt: skip
    values = {a: np.array([[7, -7, 2**62, 3, -(2**63)]]), b: np.array([[-4, 4, 3, 0, -1]])}
    holds(outputs, values)


def test_a_gather_by_wild_int64_arithmetic_loads_nothing():
    table, i = leaf(6), leaf(5, d=dt.int64)
    product = make(ops.MUL, (i, const(3, dt.int64, (5,))))
    wild = make(ops.MOD, (product, const(-4, dt.int64, (5,))))
    place = make(ops.EXPAND, (make(ops.RESHAPE, (wild,), (5, 1)),), (5, 6))
    same = make(ops.NE, (make(ops.NE, (place, make(ops.EXPAND, (iota(6, dt.int64),), (5, 6)))),
                         const(True, dt.bool_, (5, 6))))  # fmt: skip
    rows = make(ops.EXPAND, (make(ops.RESHAPE, (table,), (1, 6)),), (5, 6))
    picked = make(ops.SUM, (make(ops.WHERE, (same, rows, const(0.0, dt.float32, (5, 6)))),), (1,))
    values = {table: np.arange(1, 7, dtype=np.float32),
              i: np.array([0, 1, -(2**62), 2**63 - 1, 5])}  # fmt: skip
    holds([picked], values)


@pytest.mark.parametrize("d", [dt.float16, dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2],
                         ids=lambda d: d.name)  # fmt: skip
def test_wide_numbers_become_narrow_floats_with_one_rounding(d):
    rng = np.random.default_rng(1)
    scale = 2.0 ** rng.integers(-30, 20, 400)
    ties = (1 + rng.integers(0, 512, 400) / 512 + rng.choice([-1, 0, 1], 400) * 2.0**-40) * scale
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 1e-300, 65520.0, 3.4e38, 3.5e38]
    x = leaf(411, d=dt.float64)
    values = {x: np.concatenate([ties, special])}
    outputs = [make(ops.CAST, (x,), None, d)]
    for source in (dt.int64, dt.uint64, dt.int32, dt.uint32):
        y = leaf(600, d=source)
        bits = rng.integers(0, 2**64, 600, np.uint64) >> rng.integers(0, 64, 600).astype(np.uint64)
        bits[:200] += np.uint64(1) << np.uint64(30)  # near ties of bfloat16
        values[y] = bits.astype(source.numpy)
        outputs.append(make(ops.CAST, (y,), None, d))
    holds(outputs, values)


# --- size ----------------------------------------------------------------------------------------


def test_long_chains_many_arguments_and_many_outputs():
    xs = [leaf(9) for _ in range(60)]
    rng = np.random.default_rng(2)
    values = {x: rng.integers(-3, 4, 9).astype(np.float32) for x in xs}
    total = xs[0]
    for x in xs[1:]:
        total = make(ops.ADD, (total, x))
    chain = xs[0]
    for i in range(2100):
        chain = make((ops.MAX, ops.ADD)[i % 2], (chain, xs[i % 60]))
    many = [make(ops.ADD, (x, y)) for x, y in zip(xs, xs[1:])]
    holds([total, chain, *many], values)
