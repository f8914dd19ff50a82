"""The standard pass on whole graphs: same value, bit for bit where exact, and forms that stay."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.errors import GraphError
from muladd.interp import evaluate
from muladd.ir import (
    Body,
    CallArg,
    ScanArg,
    const,
    iota,
    make,
    ops,
    param,
    toposort,
    var,
)  # fmt: skip
from muladd.ir import dtype as dt
from muladd.rewrite import canonicalise, exp2, expand_all, inline_calls, sin

x = param(0, (3, 4), dt.float32)
y = param(1, (3, 4), dt.float32)


def add(a, b):
    return make(ops.ADD, (a, b))


def mul(a, b):
    return make(ops.MUL, (a, b))


def same_bits(a, b):
    np.testing.assert_array_equal(a, b)
    if a.dtype.kind == "f":
        number = ~np.isnan(a)
        np.testing.assert_array_equal(np.signbit(a)[number], np.signbit(b)[number])


def random_graph(rng, steps=40):
    """A few outputs over mixed operations: shapes (3, 4), constants that invite rules, sums."""
    shape = (3, 4)
    pool = [x, y, param(2, shape, dt.int32)]

    def pick(kinds):
        found = [v for v in pool if v.dtype.kind in kinds]
        return found[int(rng.integers(max(0, len(found) - 12), len(found)))]

    def constant(d):
        return const([0, 1, -1, 2, -0.0, 0.5][int(rng.integers(6))], d, shape)

    for _ in range(steps):
        a = pick("fi")
        b = constant(a.dtype) if rng.random() < 0.5 else pick(a.dtype.kind)
        if rng.random() < 0.3:
            a, b = b, a
        kind = int(rng.integers(9))
        if kind < 4:
            pool.append(make([ops.ADD, ops.MUL, ops.MAX, ops.DIV][kind], (a, b)))
        elif kind == 4:
            less = make(ops.LT, (a, b))
            less = make(ops.NE, (less, const(bool(rng.integers(2)), dt.bool_, shape)))
            pool.append(make(ops.WHERE, (less, b, a)))
        elif kind == 5:
            wide = make(ops.CAST, (a,), None, dt.float64 if a.dtype.is_float else dt.int64)
            pool.append(make(ops.CAST, (wide,), None, a.dtype))
        elif kind == 6:
            turned = make(ops.PERMUTE, (a,), (1, 0))
            pool.append(make(ops.PERMUTE, (turned,), (1, 0)))
        elif kind == 7:
            padded = make(ops.PAD, (a,), (((1, 1, 0), (0, 2, 0)), 0))
            pool.append(make(ops.SLICE, (padded,), ((1, 3, 1), (3, 4, -1))))
        else:
            total = make(ops.RESHAPE, (make(ops.SUM, (a,), (1,)),), (3, 1))
            pool.append(make(ops.EXPAND, (total,), shape))
    return pool[-4:]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_random_graphs_keep_their_value_and_the_pass_is_idempotent(seed, profile):
    rng = np.random.default_rng(seed)
    outs = random_graph(rng)
    inputs = {x: rng.standard_normal((3, 4)).astype(np.float32),
              y: rng.standard_normal((3, 4)).astype(np.float32),
              param(2, (3, 4), dt.int32): rng.integers(-9, 9, (3, 4)).astype(np.int32)}  # fmt: skip
    if profile == "exact":
        inputs[x][rng.random((3, 4)) < 0.3] = rng.choice([0.0, -0.0, np.inf, np.nan, 1e-40])
    after = canonicalise(outs, profile)
    assert canonicalise(after, profile) == after
    assert len(toposort(after)) <= len(toposort(outs))
    with np.errstate(all="ignore"):
        before, got = (evaluate(graph, inputs, profile=profile) for graph in (outs, after))
    for a, b, node in zip(got, before, outs):
        if profile == "exact" or node.dtype.is_int:
            same_bits(a, b)
        else:
            finite = np.isfinite(b)
            assert (np.isfinite(a) | ~finite).all()
            scale = np.abs(b[finite]).max(initial=1)
            np.testing.assert_allclose(a[finite], b[finite], rtol=1e-3, atol=1e-4 * scale)


def test_a_contraction_and_a_gather_keep_their_form():
    a = make(ops.EXPAND, (make(ops.RESHAPE, (x,), (3, 4, 1)),), (3, 4, 5))
    b = make(ops.EXPAND, (param(4, (4, 5), dt.float32),), (3, 4, 5))
    product = make(ops.SUM, (mul(a, b),), (1,))
    index = make(ops.EXPAND, (param(5, (6, 1), dt.int64),), (6, 9))
    rows = make(ops.EXPAND, (iota(9),), (6, 9))
    differs = make(ops.NE, (index, rows))
    equal = make(ops.NE, (differs, const(True, dt.bool_, (6, 9))))
    table = make(ops.EXPAND, (param(6, (9,), dt.float32),), (6, 9))
    gather = make(ops.SUM, (make(ops.WHERE, (equal, table, const(0, dt.float32, (6, 9)))),), (1,))
    for profile in ("fast", "exact"):
        assert canonicalise([product, gather], profile) == (product, gather)


def test_exact_never_lets_a_product_slip_under_a_sum():
    hidden = make(ops.WHERE, (const(True, dt.bool_, (3, 4)), mul(x, y), x))
    total = make(ops.SUM, (hidden,), (1,))
    (after,) = canonicalise([total], "exact")
    assert after.srcs[0].op is ops.ADD and after.srcs[0].srcs[0] is mul(x, y)
    assert canonicalise([after], "exact") == (after,)
    assert canonicalise([total], "fast") == (make(ops.SUM, (mul(x, y),), (1,)),)


def test_floats_are_never_reassociated():
    magic = const(1.5 * 2**23, dt.float32, (3, 4))
    back = const(-1.5 * 2**23, dt.float32, (3, 4))
    rounded = add(add(x, magic), back)
    assert canonicalise([rounded]) == (rounded,)
    value = {x: np.random.default_rng(0).uniform(-20, 20, (3, 4)).astype(np.float32)}
    for graph in (exp2(x), sin(x)):
        for profile in ("fast", "exact"):
            same_bits(evaluate(canonicalise([graph], profile), value)[0],
                      evaluate([graph], value)[0])  # fmt: skip


def test_symbolic_sizes():
    n = var("n", 1, 100)
    source = param(7, (n, 4), dt.float32)
    whole = make(ops.SLICE, (make(ops.RESHAPE, (source,), (n, 4)),), ((0, n, 1), (0, 4, 1)))
    assert canonicalise([whole], "exact") == (source,)
    total = make(ops.SUM, (const(2, dt.int32, (n, 4)),), (0, 1))
    assert canonicalise([total]) == (total,)


def test_bodies_are_entered_and_the_trace_names_rules():
    p = param(0, (3, 4), dt.float32)
    body = Body((mul(p, const(1, dt.float32, (3, 4))),), (p,))
    scan = make(ops.SCAN, (x,), ScanArg(body, 4, 1, 0))
    names = []
    (after,) = canonicalise([scan], trace=lambda name, before, after: names.append(name))
    assert names == ["mul_one"] and after.arg.body.outs == (p,)


def test_an_unknown_profile_is_refused():
    with pytest.raises(GraphError, match="'fast' or 'exact'"):
        canonicalise([x], "careful")


# --- inlining ------------------------------------------------------------------------------------


def nested_calls():
    p, q = param(0, (3, 4), dt.float32), param(1, (3, 4), dt.float32)
    inner = Body((add(p, q), mul(p, q)), (p, q), "inner")
    total, product = (make(ops.CALL, (q, p), CallArg(inner, i)) for i in range(2))
    return Body((add(total, product), make(ops.SUM, (p,), (1,))), (p, q), "outer")


def test_calls_are_inlined_however_deep():
    body = nested_calls()
    call = make(ops.CALL, (add(x, y), y), CallArg(body, 0))
    (after,) = inline_calls([call])
    assert after is add(add(y, add(x, y)), mul(y, add(x, y)))


def test_scan_bodies_are_entered():
    body = nested_calls()
    p, q = body.params
    step = Body((make(ops.CALL, (p, q), CallArg(body, 0)),), (p, q))
    scan = make(ops.SCAN, (x, y), ScanArg(step, 2, 1, 0))
    (after,) = inline_calls([scan])
    assert all(n.op is not ops.CALL for n in toposort(after.arg.body.outs))
    inputs = {x: np.full((3, 4), 0.5, np.float32), y: np.full((3, 4), 2.0, np.float32)}
    same_bits(evaluate([after], inputs)[0], evaluate([scan], inputs)[0])


def test_bodies_to_be_recomputed_or_kept_stay_calls():
    p = param(0, (3, 4), dt.float32)
    again = make(ops.CALL, (x,), CallArg(Body((add(p, p),), (p,), recompute=True)))
    named = make(ops.CALL, (x,), CallArg(Body((mul(p, p),), (p,), "keep me")))
    assert inline_calls([again, named], lambda b: b.name == "keep me") == (again, named)


def test_inlining_keeps_the_bits_of_exact_sums():
    body = nested_calls()
    call = make(ops.CALL, (mul(x, y), y), CallArg(body, 1))
    p, q = body.params
    products = Body((mul(p, q),), (p, q))
    outside = make(ops.SUM, (make(ops.CALL, (x, y), CallArg(products)),), (0, 1))
    rng = np.random.default_rng(5)
    inputs = {v: rng.standard_normal((3, 4)).astype(np.float32) for v in (x, y)}
    after = inline_calls([call, outside])
    for got, expected in zip(evaluate(after, inputs, profile="exact"),
                             evaluate([call, outside], inputs, profile="exact")):  # fmt: skip
        same_bits(got, expected)


def test_sums_of_exp2_are_exact_after_expansion():
    total = make(ops.SUM, (make(ops.EXP2, (x,)),), (1,))
    value = {x: np.random.default_rng(6).uniform(-150, -120, (3, 4)).astype(np.float32)}
    direct = evaluate([exp2(x)], value, profile="exact")[0]
    expected = np.zeros((3, 64), np.float32)
    expected[:, :4] += direct
    for width in (32, 16, 8, 4, 2, 1):
        expected = expected[:, :width] + expected[:, width:]
    same_bits(evaluate(expand_all([total]), value, profile="exact")[0], expected[:, 0])
