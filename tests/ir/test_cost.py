"""Static cost equals what the interpreter counts; peak memory follows its model."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.interp import evaluate
from muladd.interp.generate import generate
from muladd.ir import Body, CallArg, ScanArg, Storage, const, make, ops, param, sym, var
from muladd.ir import dtype as dt
from muladd.ir.cost import cost


def array(shape, d=dt.float32):
    return make(ops.INPUT, (), Storage(shape, d))


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_cost_is_what_the_interpreter_counts(seed, profile):
    outputs, inputs, variables = generate(np.random.default_rng(seed), 25)
    counted: dict[str, int] = {}
    evaluate(outputs, inputs, variables=variables, profile=profile, count=counted,
             expand=lambda node: node.srcs[0])  # fmt: skip
    assert cost(outputs, variables).flops_by_op == counted
    symbolic = cost(outputs).flops_by_op
    bound = {k: sym.evaluate(v, variables) for k, v in symbolic.items()}
    assert {k: v for k, v in bound.items() if v} == counted


def product(m, k, n):
    a, b = array((m, k)), array((k, n))
    left = make(ops.EXPAND, (make(ops.RESHAPE, (a,), (m, k, 1)),), (m, k, n))
    return make(ops.SUM, (make(ops.MUL, (left, make(ops.EXPAND, (b,), (m, k, n)))),), (1,))


def test_a_matrix_product():
    price = cost([product(32, 64, 16)])
    assert price.flops_by_op == {"MUL": 32 * 64 * 16, "SUM": 32 * 64 * 16}
    assert price.flops == 2 * 32 * 64 * 16
    assert price.bytes_read == 4 * (32 * 64 + 64 * 16)
    assert price.bytes_written == price.peak_bytes == 4 * 32 * 16  # the products are not stored


def test_a_body_is_counted_once_per_application_and_a_scan_length_times():
    p = param(0, (8,), dt.float32)
    body = Body((make(ops.SQRT, (p,)), make(ops.SUM, (p,), (0,))), (p,))
    x, y = array((8,)), array((8,))
    both = [make(ops.CALL, (x,), CallArg(body, out)) for out in (0, 1)]
    assert cost(both).flops_by_op == {"SQRT": 8, "SUM": 8}
    other = make(ops.CALL, (y,), CallArg(body))
    assert cost([*both, other]).flops_by_op == {"SQRT": 16, "SUM": 16}
    n = var("n", 0, 10)
    scan = make(ops.SCAN, (x,), ScanArg(body, n, 1, 0, False, 1))
    assert cost([scan]).flops_by_op == {"SQRT": n * 8, "SUM": n * 8}
    assert cost([scan], {"n": 5}).flops == 80
    assert cost([scan], {"n": 0}).flops_by_op == {}
    assert cost([scan]).bytes_written is n * 4
    assert cost([scan], {"n": 10}).peak_bytes == cost([scan]).peak_bytes == 10 * 4 + 36


def test_peak_memory_is_of_values_alive_together():
    x = array((1000,))
    y = x
    for _ in range(50):
        y = make(ops.EXPAND, (make(ops.SUM, (y,), (0,)),), (1000,))
        y = make(ops.ADD, (y, x))
    one = cost([y]).peak_bytes
    assert one == 4000 + 4  # each step keeps a number; only the output is a whole array
    kept = make(ops.SQRT, (x,))
    twice = make(ops.MUL, (make(ops.ADD, (kept, x)), kept))  # kept is read twice
    assert cost([twice]).peak_bytes == 8000


def test_inputs_are_read_once_and_seen_inside_bodies():
    x, w = array((8,)), array((8,))
    p = param(0, (8,), dt.float32)
    body = Body((make(ops.MUL, (p, w)),), (p,))
    y = make(ops.CALL, (make(ops.CALL, (x,), CallArg(body)),), CallArg(body))
    assert cost([y, y]).bytes_read == 64
    assert cost([y, y]).bytes_written == 32


def test_what_moves_only_costs_nothing():
    x = make(ops.PERMUTE, (array((2, 3)),), (1, 0))
    assert cost([make(ops.BITCAST, (x,), None, dt.int32)]).flops == 0
    assert cost([const(1, dt.float32, (3,))]).flops_by_op == {}
