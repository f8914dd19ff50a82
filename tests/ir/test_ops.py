"""The op table is complete, small, and its rules refuse what does not fit."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.errors import DTypeError, GraphError, ShapeError
from muladd.ir import const, make, ops
from muladd.ir import dtype as dt


def test_there_are_at_most_28_operations():
    assert len(ops.OPS) <= 28
    names = [o.name for o in ops.OPS + ops.KERNEL_OPS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("op", ops.OPS, ids=lambda o: o.name)
def test_every_row_is_complete(op):
    assert op.group in (
        "leaf", "unary", "binary", "ternary", "reduce", "movement", "structure"
    )  # fmt: skip
    for cell in (op.meaning, op.shape_rule, op.dtype_rule, op.gradient):
        assert cell.strip()
    assert op.flops >= 0
    assert callable(op.shape) and callable(op.dtype)
    assert ops.by_name(op.name) is op
    arity = {"leaf": 0, "unary": 1, "binary": 2, "ternary": 3, "reduce": 1, "movement": 1}
    assert op.arity == arity.get(op.group, -1)
    if op.elementwise and op not in (ops.CAST, ops.BITCAST):
        assert op.numpy is not None and op.flops == 1


def numbers(shape, d=dt.float32):
    return const(1, d, shape)


MISUSE = [
    (ShapeError, lambda: make(ops.ADD, (numbers((2,)), numbers((3,))))),
    (ShapeError, lambda: make(ops.ADD, (numbers((2,)), numbers((1,))))),
    (DTypeError, lambda: make(ops.ADD, (numbers((2,)), numbers((2,), dt.int32)))),
    (DTypeError, lambda: make(ops.SQRT, (numbers((2,), dt.int32),))),
    (DTypeError, lambda: make(ops.AND, (numbers((2,)), numbers((2,))))),
    (DTypeError, lambda: make(ops.MOD, (numbers((2,)), numbers((2,))))),
    (DTypeError, lambda: make(ops.SUM, (numbers((2,), dt.bool_),), (0,))),
    (DTypeError, lambda: make(ops.WHERE, (numbers((2,)),) * 3)),
    (DTypeError, lambda: make(ops.BITCAST, (numbers((2,)),), None, dt.int64)),
    (DTypeError, lambda: make(ops.CAST, (numbers((2,)),))),
    (GraphError, lambda: make(ops.ADD, (numbers((2,)),))),
    (ShapeError, lambda: make(ops.SUM, (numbers((2, 3)),), (1, 0))),
    (ShapeError, lambda: make(ops.SUM, (numbers((2, 3)),), (2,))),
    (ShapeError, lambda: make(ops.RESHAPE, (numbers((2, 3)),), (5,))),
    (ShapeError, lambda: make(ops.PERMUTE, (numbers((2, 3)),), (0, 0))),
    (ShapeError, lambda: make(ops.EXPAND, (numbers((2, 3)),), (2, 4))),
    (ShapeError, lambda: make(ops.EXPAND, (numbers((2, 3)),), (3,))),
    (ShapeError, lambda: make(ops.PAD, (numbers((2,)),), ((), 0.0))),
    (ShapeError, lambda: make(ops.SLICE, (numbers((4,)),), ((2, 3, 1),))),
    (ShapeError, lambda: make(ops.SLICE, (numbers((4,)),), ((1, 3, -1),))),
]


@pytest.mark.parametrize("case", range(len(MISUSE)))
def test_misuse_is_refused_and_names_the_operation(case):
    error, build = MISUSE[case]
    with pytest.raises(error, match=r"^[A-Z0-9]+: .{10}"):
        build()


def test_integer_division_is_total():
    a = np.array([7, -7, 5, -128], np.int8)
    b = np.array([2, 2, 0, -1], np.int8)
    with np.errstate(all="ignore"):
        assert ops.DIV.numpy(a, b).tolist() == [3, -4, 0, -128]
        assert ops.MOD.numpy(a, b).tolist() == [1, 1, 5, 0]
