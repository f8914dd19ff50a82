"""Interning, depth and size: equal structure is one object, and nothing recurses."""
from __future__ import annotations

import gc

import pytest

from muladd.errors import GraphError
from muladd.ir import (
    Body,
    CallArg,
    ScanArg,
    Storage,
    const,
    make,
    node,
    ops,
    param,
    rebuild,
    substitute,
    toposort,
    var,
    variables,
)
from muladd.ir import dtype as dt


def array(shape=(2,)):
    return make(ops.INPUT, (), Storage(shape, dt.float32))


def test_rebuilt_over_sources_of_the_same_kind_is_what_make_gives():
    x, y, n = array((3, 4)), array((3, 4)), var("n", 1, 9)
    long, other = (param(i, (n, 4), dt.float32) for i in range(2))
    cases = [
        (ops.ADD, (x, x), None, None), (ops.CAST, (x,), None, dt.int8), (ops.SUM, (x,), (1,), None),
        (ops.PAD, (x,), (((1, 0, 0), (0, 2, 1)), -0.0), None),
        (ops.RESHAPE, (x,), (12,), None), (ops.EXPAND, (long,), (2, n, 4), None),
    ]  # fmt: skip
    for op, srcs, arg, dtype in cases:
        new = tuple(y if s is x else other for s in srcs)
        rebuilt = rebuild(make(op, srcs, arg, dtype), new)
        assert rebuilt is make(op, new, arg, dtype)
        assert rebuild(rebuilt, srcs) is make(op, srcs, arg, dtype)
    assert rebuild(make(ops.SUM, (x,), (1,)), (array((5, 4)),)).shape == (5,)
    with pytest.raises(GraphError, match="takes 2 sources"):
        rebuild(make(ops.ADD, (x, x)), (x,))


def test_variables_are_found_wherever_they_stand():
    a, b, c, d = (var(name, 1, 9) for name in "abcd")
    x = param(0, (a, 2), dt.float32)
    total = make(ops.SUM, (make(ops.EXPAND, (x,), (b, a, 2)),), (0, 1, 2))
    inner = param(0, (), dt.float32)
    body = Body((make(ops.ADD, (inner, make(ops.CAST, (c,), None, dt.float32))),), (inner,), "f")
    loop = make(ops.SCAN, (total,), ScanArg(body, d, 1, 0, False, 0))
    assert set(variables([loop])) == {a, b, c, d}
    assert set(variables([make(ops.IOTA, (), make(ops.ADD, (a, b)), dt.int32)])) == {a, b}
    assert variables([array((2, 3))]) == []


def test_equal_structure_is_the_same_object():
    x = array()
    assert make(ops.ADD, (x, x)) is make(ops.ADD, (x, x))
    assert make(ops.SUM, (x,), (0,)) is make(ops.SUM, (x,), (0,))
    assert array() is not array()
    assert const(3, dt.int32) is const(3, dt.int32)
    assert const(3, dt.int32) is not const(3, dt.int64)
    assert rebuild(make(ops.CAST, (x,), None, dt.int8), (x,)).dtype is dt.int8


def test_constants_differ_in_sign_of_zero_and_in_nan():
    assert const(0.0, dt.float32) is not const(-0.0, dt.float32)
    nan = const(float("nan"), dt.float32)
    assert const(float("nan"), dt.float32) is nan
    x = array()
    pads = ((1, 1, 0),)
    positive, negative = (make(ops.PAD, (x,), (pads, f)) for f in (0.0, -0.0))
    assert positive is not negative
    fills = (make(ops.PAD, (x,), (pads, float("nan"))) for _ in range(2))
    assert next(fills) is next(fills)


def test_constants_are_values_of_their_dtype():
    assert const(300, dt.uint8).arg == 44
    assert const(200, dt.int8).arg == -56
    assert const(0.1, dt.float32).arg == 0.10000000149011612
    assert const(2, dt.bool_).arg is True
    assert const(1e9, dt.float16).arg == float("inf")
    for truth in (0.5, float("inf"), float("nan")):
        assert const(truth, dt.bool_).arg is True


def test_nodes_are_forgotten():
    gc.collect()
    before = node.interned()
    x = array()
    for _ in range(100):
        x = make(ops.SQRT, (x,))
    assert node.interned() == before + 101
    del x
    gc.collect()
    assert node.interned() == before


def test_equal_bodies_are_equal_calls():
    def body():
        p = param(0, (2,), dt.float32)
        return Body((make(ops.ADD, (p, p)),), (p,), "twice")

    x = array()
    assert body() == body() and hash(body()) == hash(body())
    assert make(ops.CALL, (x,), CallArg(body())) is make(ops.CALL, (x,), CallArg(body()))


def test_a_call_checks_its_sources():
    p = param(0, (2,), dt.float32)
    body = Body((make(ops.ADD, (p, p)),), (p,), "twice")
    with pytest.raises(GraphError, match="takes 1 sources, got 2"):
        make(ops.CALL, (array(), array()), CallArg(body))
    with pytest.raises(GraphError, match=r"'twice'.*float32\[2\].*float32\[3\]"):
        make(ops.CALL, (array((3,)),), CallArg(body))
    with pytest.raises(GraphError, match="keeps its shape"):
        half = Body((make(ops.SUM, (p,), (0,)),), (p,))
        make(ops.SCAN, (array(),), ScanArg(half, 3, 1, 0))
    with pytest.raises(GraphError, match="stacked input"):
        make(ops.SCAN, (array((4, 2)),), ScanArg(body, 3, 0, 1))


def test_a_chain_of_50_000_is_walked_rebuilt_and_freed():
    x, y = array(), array()
    z = x
    for _ in range(50_000):
        z = make(ops.SQRT, (z,))
    assert len(toposort((z,))) == 50_001
    w = substitute((z,), {x: y})[0]
    assert w is not z and len(toposort((w,))) == 50_001
    assert substitute((w,), {y: x})[0] is z
    del z, w
    gc.collect()


@pytest.mark.slow
def test_a_million_nodes_are_built_and_hashed():
    from muladd.ir import hash_graph

    x = array()
    y, z = x, make(ops.SQRT, (x,))
    for _ in range(500_000):
        y = make(ops.ADD, (y, z))
        z = make(ops.MUL, (z, y))
    assert len(hash_graph((y, z))) == 64


def test_sources_stand_before_users():
    a, b = array(), array()
    c = make(ops.ADD, (a, b))
    d = make(ops.MUL, (c, a))
    order = toposort((d, c))
    assert order == [a, b, c, d]


def test_symbolic_sizes_are_found_in_shapes_and_bodies():
    n, m = var("n", 1, 4), var("m", 1, 4)
    p = param(0, (m,), dt.float32)
    body = Body((make(ops.SUM, (p,), (0,)),), (p,))
    x = make(ops.INPUT, (), Storage((m,), dt.float32))
    y = make(ops.EXPAND, (make(ops.CALL, (x,), CallArg(body)),), (n * 2,))
    assert set(variables((y,))) == {n, m}


def test_symbolic_sizes_are_substituted_in_arguments():
    n, m = var("n", 1, 4), var("m", 1, 9)
    x = make(ops.EXPAND, (const(1, dt.float32),), (n,))
    assert substitute((x,), {n: m})[0].shape == (m,)


def test_a_graph_is_not_pickled():
    with pytest.raises(GraphError, match="canonical bytes"):
        array().__reduce__()
