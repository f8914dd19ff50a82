"""The validator sees what a single node cannot: foreign parameters, wrong sizes, kernel ops."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.errors import GraphError
from muladd.interp.generate import generate
from muladd.ir import Body, CallArg, Storage, const, make, ops, param, sym, var
from muladd.ir import dtype as dt
from muladd.ir.validate import validate


def array(shape=(2,)):
    return make(ops.INPUT, (), Storage(shape, dt.float32))


@pytest.mark.parametrize("seed", range(50))
def test_random_graphs_are_valid(seed):
    validate(generate(np.random.default_rng(seed), 25)[0])


def test_a_parameter_outside_of_its_body():
    p = param(0, (2,), dt.float32)
    with pytest.raises(GraphError, match="parameter 0 does not belong here"):
        validate([make(ops.SQRT, (p,))])
    validate([make(ops.SQRT, (p,))], params=[p])


def test_a_body_that_reads_a_foreign_parameter():
    p, q = param(0, (2,), dt.float32), param(1, (2,), dt.float32)
    body = Body((make(ops.ADD, (p, q)),), (p,), "leaky")
    with pytest.raises(GraphError, match=r"body 'leaky'.*parameter 1"):
        validate([make(ops.CALL, (array(),), CallArg(body))])


def test_parameters_stand_in_order():
    p, q = param(0, (2,), dt.float32), param(1, (2,), dt.float32)
    body = Body((make(ops.ADD, (p, q)),), (q, p), "turned")
    with pytest.raises(GraphError, match="where parameter 0 should"):
        validate([make(ops.CALL, (array(), array()), CallArg(body))])


def test_a_size_that_is_data():
    n = make(ops.INPUT, (), Storage((), dt.int64))
    with pytest.raises(GraphError, match="a size depends on"):
        validate([make(ops.EXPAND, (const(1, dt.float32),), (n,))])


def test_a_symbolic_size_with_two_ranges():
    both = [make(ops.EXPAND, (const(1, dt.float32),), (var("n", 1, h),)) for h in (4, 5)]
    with pytest.raises(GraphError, match="'n' has two ranges"):
        validate(both)


def test_kernel_operations_do_not_belong_in_graphs():
    with pytest.raises(GraphError, match="RANGE"):
        validate([sym.axis("i", 4)])


def test_a_constant_that_is_no_value_of_its_dtype():
    with pytest.raises(GraphError, match="300 is no value of uint8"):
        validate([make(ops.CONST, (), 300, dt.uint8)])


def test_a_gradient_that_does_not_fit_its_body():
    p = param(0, (2,), dt.float32)
    wrong = Body((p,), (p,), "wrong")
    body = Body((make(ops.SQRT, (p,)),), (p,), "root", gradient=wrong)
    with pytest.raises(GraphError, match="gradient of body 'root' takes"):
        validate([make(ops.CALL, (array(),), CallArg(body))])


def test_a_result_that_is_not_there():
    p = param(0, (2,), dt.float32)
    body = Body((make(ops.SQRT, (p,)),), (p,), "root")
    node = make(ops.CALL, (array(),), CallArg(body, -1))
    with pytest.raises(GraphError, match="result -1 of a body with 1"):
        validate([node])
