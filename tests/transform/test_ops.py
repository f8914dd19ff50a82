"""Every operation: reverse, forward, vectorised and second order against differences."""
from __future__ import annotations

import numpy as np
import pytest
from transform_checks import check_all, leaf, leaves, run

from muladd.errors import GradientError
from muladd.interp import evaluate
from muladd.ir import const, make, ops
from muladd.ir import dtype as dt
from muladd.transform import build as b
from muladd.transform import gradient, jvp, vectorize
from muladd.transform.grad import GRADIENT, JOINT_OPS
from muladd.transform.jvp import JVP
from muladd.transform.jvp import STRUCTURE as JVP_STRUCTURE
from muladd.transform.vmap import STRUCTURE as VMAP_STRUCTURE
from muladd.transform.vmap import VMAP

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2.0, shape)


def movement(op, arg):
    return lambda x: make(op, (b.mul(x, x),), arg)


CASES = {
    "CAST": (lambda x: b.cast(x, dt.float64), [normal(3)]),
    "SQRT": (b.sqrt, [positive(2, 3)]),
    "EXP2": (b.exp2, [normal(2, 3)]),
    "LOG2": (b.log2, [positive(2, 3)]),
    "SIN": (b.sin, [normal(2, 3) * 3]),
    "ADD": (lambda x, y: b.mul(b.add(x, y), b.add(x, x)), [normal(4), normal(4)]),
    "MUL": (b.mul, [normal(2, 3), normal(2, 3)]),
    "MUL square": (lambda x: b.mul(b.mul(x, x), x), [normal(3)]),
    "DIV": (b.div, [normal(5), positive(5)]),
    "MAX": (lambda x, y: b.mul(b.maximum(x, y), x), [normal(6), normal(6)]),
    "LT": (lambda x, y: b.mul(b.cast(b.less(x, y), dt.float64), x), [normal(6), normal(6)]),
    "NE": (
        lambda x, y: b.mul(b.cast(make(ops.NE, (x, y)), dt.float64), y),
        [normal(6), normal(6)],
    ),
    "WHERE": (
        lambda x, y: b.where(b.less(x, y), b.mul(x, y), b.sin(x)),
        [normal(6), normal(6)],
    ),
    "SUM": (movement(ops.SUM, (0, 2)), [normal(2, 3, 4)]),
    "SUM of nothing": (movement(ops.SUM, ()), [normal(2)]),
    "AMAX": (movement(ops.AMAX, (1,)), [normal(2, 3, 4)]),
    "RESHAPE": (movement(ops.RESHAPE, (3, 1, 4)), [normal(2, 6)]),
    "PERMUTE": (movement(ops.PERMUTE, (2, 0, 1)), [normal(2, 3, 4)]),
    "EXPAND": (movement(ops.EXPAND, (2, 3, 4)), [normal(3, 1)]),
    "PAD": (movement(ops.PAD, (((1, 2, 0), (0, 1, 2)), 7.0)), [normal(2, 3)]),
    "SLICE": (movement(ops.SLICE, ((1, 2, 2), (0, 3, 1))), [normal(5, 3)]),
    "SLICE back": (movement(ops.SLICE, ((5, 2, -3), (2, 3, -1))), [normal(7, 4)]),
    "SLICE of nothing": (movement(ops.SLICE, ((1, 0, 2), (0, 3, 1))), [normal(5, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    function, arrays = CASES[name]
    check_all(function, arrays)


def test_every_operation_has_a_cell_in_every_table():
    for op in ops.OPS:
        if op in JOINT_OPS:
            assert op in JVP_STRUCTURE, f"jvp has no row for {op.name}"
            assert op in VMAP_STRUCTURE, f"vmap has no row for {op.name}"
            continue
        assert op in GRADIENT, f"gradient has no row for {op.name}"
        assert op in JVP, f"jvp has no row for {op.name}"
        assert op in VMAP, f"vmap has no row for {op.name}"
        assert len(GRADIENT[op]) == op.arity, f"gradient of {op.name}: one cell per source"
        assert len(JVP[op]) == op.arity, f"jvp of {op.name}: one cell per source"


def test_every_float_operation_is_tried():
    tried = {name.split()[0] for name in CASES}
    untried = {"CONST", "INPUT", "IOTA", "BITCAST", "MOD", "AND", "XOR", "CALL", "SCAN"}
    assert tried | untried == {op.name for op in ops.OPS}


def test_symbolic_size_slice_with_a_step():
    from muladd.ir import sym, var

    n = var("n", 2, 8)
    x = leaf((sym.mul(n, 3),))
    y = make(ops.SLICE, (x,), ((1, n, 3),))
    (g,) = gradient([y], [x], [b.like(2, y)])
    assert g is not None and g.shape == x.shape
    (got,) = evaluate([g], {x: np.zeros(12)}, variables={"n": 4})
    np.testing.assert_array_equal(got, [0, 2, 0] * 4)


def test_maximum_halves_ties_and_amax_shares_them():
    x, y = leaf((3,)), leaf((3,))
    g = gradient([b.maximum(x, y)], [x, y], [b.like(1, x)])
    got = run(g, [x, y], [np.array([1.0, 2, 3]), np.array([1.0, 5, 0])])
    np.testing.assert_array_equal(got, [[0.5, 0, 1], [0.5, 1, 0]])
    z = leaf((4,))
    (g,) = gradient([make(ops.AMAX, (z,), (0,))], [z], [const(1, dt.float64)])
    (got,) = run([g], [z], [np.array([3.0, 1, 3, 3])])
    np.testing.assert_array_equal(got, [1 / 3, 0, 1 / 3, 1 / 3])


def test_integers_have_no_path():
    x = leaf((2,))
    back = b.cast(b.cast(x, dt.int32), dt.float64)
    bits = b.cast(make(ops.BITCAST, (x,), None, dt.int64), dt.float64)
    k = leaf((2,), dt.int32)
    y = b.add(b.add(back, bits), b.cast(k, dt.float64))
    assert gradient([y], [x, k], [b.like(1, y)]) == [None, None]
    assert jvp([y], [x], [b.like(1, x)]) == [None]


def test_the_walk_stops_at_inputs_and_takes_interior_nodes():
    x = leaf((2,))
    y = b.sin(x)
    z = b.mul(y, x)
    gx, gy = gradient([z], [x, y], [b.like(1, z)])
    assert gx is b.mul(b.like(1, z), y) and gy is b.mul(b.like(1, z), x)


def test_no_path_is_none_and_none_is_zero():
    x, y = leaf((2,)), leaf((2,))
    assert gradient([b.sin(x), y], [x, y], [None, b.like(1, y)])[0] is None
    assert gradient([x], [x], [None]) == [None]
    assert jvp([b.sin(x), y], [x], [None]) == [None, None]


@pytest.mark.parametrize("dtype", [dt.float16, dt.bfloat16, dt.float32])
def test_cotangents_keep_the_dtype(dtype):
    x = leaf((4,), dtype)
    y = b.cast(b.sin(b.exp2(x)), dt.float32)
    (g,) = gradient([y], [x], [b.like(1, y)])
    assert g is not None and g.dtype is dtype
    values = np.array([0.5, -1, 2, 0.25], np.float16 if dtype is dt.float16 else np.float32)
    got = run([g], [x], [values])[0].astype(float)
    e = np.exp2(values.astype(float))
    np.testing.assert_allclose(got, np.cos(e) * e * np.log(2), rtol=0.05, atol=0.03)


def test_cosine_keeps_its_accuracy_for_great_arguments():
    x = leaf((1000,), dt.float32)
    at = np.linspace(-2e4, 2e4, 1000).astype(np.float32)
    (g,) = gradient([b.sin(x)], [x], [b.like(1, x)])
    assert np.abs(run([g], [x], [at])[0] - np.cos(at.astype(float))).max() < 1e-6


def test_a_cotangent_that_does_not_fit_is_refused():
    x = leaf((2,))
    with pytest.raises(GradientError, match=r"cotangent 0 is float64\[3\]"):
        gradient([x], [x], [b.zeros(leaf((3,)))])
    with pytest.raises(GradientError, match="give one each"):
        gradient([x], [x], [])
    k = leaf((2,), dt.int32)
    with pytest.raises(GradientError, match="only floats"):
        gradient([k], [x], [b.zeros(k)])


def test_the_same_graph_gives_the_same_gradient():
    def build(x):
        y = b.sin(x)
        for _ in range(7):
            y = b.add(b.mul(y, x), b.sin(y))
        return gradient([y], [x], [b.like(1, y)])[0]

    x = leaf((2,))
    assert build(x) is build(x)


@pytest.mark.slow
def test_fifty_thousand_deep():
    x = leaf()
    y = x
    for _ in range(50_000):
        y = b.mul(b.sin(y), x)
    (g,) = gradient([y], [x], [const(1, dt.float64)])
    (t,) = jvp([y], [x], [const(1, dt.float64)])
    (v,) = vectorize([y], [x], [leaf((2,))], [0])
    assert g is not None and t is not None and v.shape == (2,)


def test_many_uses_are_summed_as_a_balanced_tree():
    from muladd.ir import toposort

    x = leaf()
    y = b.total([b.mul(x, const(float(i), dt.float64)) for i in range(1, 1025)])
    (g,) = gradient([y], [x], [const(1, dt.float64)])
    depth: dict = {}
    for n in toposort([g]):
        depth[n] = 1 + max((depth[s] for s in n.srcs), default=0)
    assert depth[g] < 16
    assert run([g], [x], [np.float64(0)])[0] == 1024 * 1025 / 2


def test_vectorize_checks_its_arguments():
    from muladd.errors import ShapeError

    x, y = leaf((2,)), leaf((2,))
    with pytest.raises(ShapeError, match="others have 3"):
        vectorize([b.add(x, y)], [x, y], [leaf((3, 2)), leaf((2, 4))], [0, 1])
    with pytest.raises(ShapeError, match="no input is batched"):
        vectorize([x], [x], [y], [None])
    with pytest.raises(ShapeError, match="batch axis 0"):
        vectorize([x], [x], [leaf((3, 5))], [0])


def test_vectorize_moves_axes_and_repeats_what_does_not_depend():
    x, y = leaf((2,)), leaf((2,))
    many, fixed = np.arange(6.0).reshape(2, 3), np.array([1.0, -1])
    values = leaves([many, fixed])
    got = vectorize([b.mul(x, y), b.sin(y)], [x, y], values, [-1, None])
    product, sine = run(got, values, [many, fixed])
    np.testing.assert_array_equal(product, many.T * fixed)
    np.testing.assert_allclose(sine, np.broadcast_to(np.sin(fixed), (3, 2)))
