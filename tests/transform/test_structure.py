"""CALL and SCAN: every derivative, custom gradients, checkpoints, and how they compose."""
from __future__ import annotations

import numpy as np
import pytest
from transform_checks import check_all, leaf, leaves, run, weighted

from muladd.errors import GradientError
from muladd.interp import evaluate
from muladd.ir import Body, CallArg, ScanArg, const, make, ops, toposort, var
from muladd.ir import dtype as dt
from muladd.transform import build as b
from muladd.transform import (
    checkpoint,
    gradient,
    join_scans,
    jvp,
    lift,
    scan_checkpointed,
    vectorize,
)

RNG = np.random.default_rng(11)
F = dt.float64


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def body(function, *like, gradient=None, recompute=False, name="body"):
    """The body of a function over nodes shaped like some."""
    params = b.params(like)
    outs = function(*params)
    return Body(tuple(outs), params, name, gradient, recompute)


def small(x, y):
    t = b.sin(b.mul(x, y))
    return t, b.exp2(b.mul(t, b.scale(x, 0.3)))


def called(function, **how):
    def f(x, y):
        one, two = b.calls(body(function, x, y, **how), (x, y))
        return b.add(b.mul(one, two), x)

    return f


def test_call():
    check_all(called(small), [normal(3), normal(3)])


def test_recomputed_call():
    check_all(called(small, recompute=True), [normal(3), normal(3)])


def test_call_in_call():
    def outer(x, y):
        one, two = b.calls(body(small, x, y), (x, y))
        again = b.calls(body(small, x, y), (two, one))
        return again[1], b.mul(one, x)

    check_all(called(outer), [normal(2), normal(2)])


def test_results_of_one_call_that_feed_each_other_are_done_together():
    x, y = leaf((2,)), leaf((2,))
    one, two = b.calls(body(small, x, y), (x, y))
    z = b.mul(two, b.sin(one))
    g = gradient([z], [x, y], [b.like(1, z)])
    backward = {n.arg.body for n in toposort(g) if n.op is ops.CALL}
    assert len([c for c in backward if c.name == "body.gradient"]) == 1

    def f(x, y):
        one, two = b.calls(body(small, x, y), (x, y))
        return b.mul(two, b.sin(one))

    check_all(f, [normal(2), normal(2)])


def test_a_call_hands_over_residuals_and_not_its_interior_again():
    x = leaf((4,))
    inner = body(lambda p: (b.sin(b.exp2(b.sin(b.exp2(p)))),), x)
    y = b.call(inner, (x,))
    (g,) = gradient([y], [x], [b.like(1, y)])
    assert not any(n.op is ops.EXP2 for n in toposort(g.arg.body.outs))


def test_a_recomputed_call_keeps_only_its_parameters():
    x = leaf((4,))
    inner = body(lambda p: (b.sin(b.exp2(b.sin(b.exp2(p)))),), x, recompute=True)
    y = b.call(inner, (x,))
    (g,) = gradient([y], [x], [b.like(1, y)])
    assert g.arg.body.recompute and g.srcs == (x, b.like(1, y))
    assert any(n.op is ops.EXP2 for n in toposort(g.arg.body.outs))


def test_the_gradient_of_a_body_is_built_once():
    x = leaf((3,))
    inner = body(lambda p: (b.sin(p),), x)
    y = x
    for _ in range(20):
        y = b.call(inner, (y,))
    (g,) = gradient([y], [x], [b.like(1, y)])
    bodies = {id(n.arg.body) for n in toposort([g]) if n.op is ops.CALL}
    assert len(bodies) <= 3


def test_no_path_through_a_call():
    x, y = leaf((2,)), leaf((2,))
    inner = body(lambda p, q: (b.sin(p), b.mul(p, q)), x, y)
    first = b.call(inner, (x, y), 0)
    assert gradient([first], [x, y], [b.like(1, first)])[1] is None
    assert jvp([first], [y], [y]) == [None]


# --- custom gradients -------------------------------------


def clipped_body(x):
    """x * x whose gradient is declared to be 3 x g (and is linear in g)."""
    own = body(lambda p, r, g: (b.scale(b.mul(p, g), 3.0),), x, x, x, name="own")
    return body(lambda p: (b.mul(p, p),), x, gradient=own)


def test_custom_gradient_replaces_the_derivative():
    x = leaf((3,))
    at, way = normal(3), normal(3)
    y = b.call(clipped_body(x), (x,))
    (g,) = gradient([y], [x], [b.like(1, y)])
    t = leaf((3,))
    (pushed,) = jvp([y], [x], [t])
    (second,) = gradient([g], [x], [b.like(1, g)])
    got = run([g, pushed, second], [x, t], [at, way])
    np.testing.assert_allclose(got, [3 * at, 3 * at * way, np.full(3, 3.0)])


def test_custom_gradient_inside_a_scan_and_vectorized():
    def f(h):
        step = body(lambda p: (b.call(clipped_body(p), (p,)),), h)
        return b.scan(ScanArg(step, 2, 1, 0), (h,), 0)

    h = leaf((2,))
    y = f(h)
    (g,) = gradient([y], [h], [b.like(1, y)])
    at = normal(2)
    np.testing.assert_allclose(run([g], [h], [at])[0], 9 * at**3)
    many = normal(4, 2)
    (values,) = leaves([many])
    (batched,) = vectorize([g], [h], [values], [0])
    np.testing.assert_allclose(run([batched], [values], [many])[0], 9 * many**3)
    (outs,) = vectorize([y], [h], [values], [0])
    (after,) = gradient([outs], [values], [b.like(1, outs)])
    np.testing.assert_allclose(run([after], [values], [many])[0], 9 * many**3)
    scan = b.scan(ScanArg(clipped_body(h), 2, 1, 0), (h,), 0)  # the scan's own body has it
    (g,) = gradient([scan], [h], [b.like(1, scan)])
    np.testing.assert_allclose(run([g], [h], [at])[0], 9 * at**3)


def test_custom_gradient_of_a_shared_parameter_is_summed_over_the_batch():
    x, k = leaf((2,)), leaf((2,), dt.int32)
    own = body(
        lambda p, q, k, r, g: (b.mul(g, q), b.mul(g, p), b.zeros(k)), x, x, k, x, x, name="own"
    )
    inner = body(lambda p, q, k: (b.mul(p, q),), x, x, k, gradient=own)
    w = leaf((2,))
    y = b.call(inner, (x, w, k))
    many, weight = normal(5, 2), normal(2)
    (values,) = leaves([many])
    (batched,) = vectorize([y], [x], [values], [0])
    g = gradient([batched], [values, w], [b.like(1, batched)])
    got = run(g, [values, w, k], [many, weight, np.zeros(2, np.int32)])
    np.testing.assert_allclose(got[0], np.broadcast_to(weight, (5, 2)))
    np.testing.assert_allclose(got[1], many.sum(0))


def test_a_custom_gradient_of_the_wrong_form_is_refused():
    x = leaf((2,))
    wrong = body(lambda p, g: (g,), x, x)
    y = b.call(body(lambda p: (p,), x, gradient=wrong), (x,))
    with pytest.raises(GradientError, match="expected 3"):
        gradient([y], [x], [b.like(1, y)])


def test_an_input_hidden_in_a_body_is_refused():
    x = leaf((2,))
    hidden = body(lambda p: (b.mul(p, x),), x)
    y = b.call(hidden, (b.sin(x),))
    for transform in (
        lambda: gradient([y], [x], [b.like(1, y)]),
        lambda: jvp([y], [x], [b.like(1, y)]),
        lambda: vectorize([y], [x], [leaf((3, 2))], [0]),
    ):
        with pytest.raises(GradientError, match="inside body"):
            transform()


# --- scans -------------------------------------


def recurrent(h, c, x, w):
    """Two carried values, one stacked input, one value that every step sees."""
    new = b.sin(b.add(b.mul(h, w), x))
    other = b.add(b.mul(c, b.exp2(b.scale(new, 0.3))), b.mul(b.sin(w), h))
    return new, other, b.mul(other, x), b.sin(new)


def recurrence(reverse=False, length=4, recompute=False, segment=None):
    def f(h, c, x, w):
        step = body(recurrent, h, c, leaf(x.shape[1:]), w, recompute=recompute)
        arg = ScanArg(step, length, 2, 1, reverse)
        if segment is not None:
            h1, c1, s1, s2 = scan_checkpointed(arg, (h, c, x, w), segment)
        else:
            h1, c1, s1, s2 = b.scans(arg, (h, c, x, w))
        return b.add(b.mul(h1, c1), b.sum_axes(b.mul(s1, s2), (0,)))

    return f


def recurrence_arrays(length=4):
    return [normal(2), normal(2), normal(length, 2), normal(2)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_scan(reverse, recompute):
    check_all(recurrence(reverse, recompute=recompute), recurrence_arrays())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length,segment", [(4, 2), (5, 2), (3, 3)])
def test_checkpointed_scan(reverse, length, segment):
    check_all(recurrence(reverse, length, segment=segment), recurrence_arrays(length), second=False)


def test_checkpointed_scan_second_order():
    check_all(recurrence(False, 5, segment=2), recurrence_arrays(5))


def test_scan_of_no_steps():
    check_all(recurrence(length=0), recurrence_arrays(0))


def test_only_what_is_asked_for():
    """Any subset of sources wanted and results used."""
    arrays = recurrence_arrays()
    inputs = leaves(arrays)
    step = body(recurrent, inputs[0], inputs[1], leaf((2,)), inputs[3])
    results = b.scans(ScanArg(step, 4, 2, 1), inputs)
    for mask in range(1, 16):
        used = weighted(b.total([
            b.sum_axes(r, range(r.ndim - 1)) for i, r in enumerate(results) if mask >> i & 1
        ]))  # fmt: skip
        together = gradient([used], inputs, [const(1, F)])
        for i, g in enumerate(together):
            (alone,) = gradient([used], [inputs[i]], [const(1, F)])
            if g is None or alone is None:
                assert g is alone
            else:
                a, c = run([g, alone], inputs, arrays)
                np.testing.assert_allclose(a, c, rtol=1e-12)


def test_a_carried_count_and_a_mask_of_integers():
    def step(h, k, x, table):
        even = b.less(b.sub(k, b.scale(make(ops.DIV, (k, b.like(2, k))), 2)), b.like(1, k))
        return b.where(even, b.mul(h, x), b.sin(h)), b.add(k, b.like(1, k)), b.mul(h, table)

    def f(h, x, table):
        k = leaf((), dt.int32)
        inner = body(step, h, k, leaf(()), table)
        h1, _, s = b.scans(ScanArg(inner, 5, 2, 1), (h, const(0, dt.int32), x, table))
        return b.add(h1, b.sum_axes(s, (0,)))

    check_all(f, [normal(), normal(5), normal()])


def test_nested_scan():
    def inner_step(h, x, w):
        new = b.sin(b.add(b.mul(h, w), x))
        return new, b.mul(new, w)

    def outer_step(h, x, w):
        inner = body(inner_step, h, leaf(x.shape[1:]), w)
        last, stacked = b.scans(ScanArg(inner, 3, 1, 1), (h, x, w))
        return last, b.sum_axes(stacked, (0,))

    def f(h, x, w):
        outer = body(outer_step, h, leaf(x.shape[1:]), w)
        last, stacked = b.scans(ScanArg(outer, 2, 1, 1, True), (h, x, w))
        return b.add(last, b.sum_axes(stacked, (0,)))

    check_all(f, [normal(), normal(2, 3), normal()])


def test_call_in_scan_in_call():
    def f(h, x, w):
        def step(h, x, w):
            one, two = b.calls(body(small, h, w), (h, w))
            return b.add(one, x), two

        def whole(h, x, w):
            return b.scans(ScanArg(body(step, h, leaf(x.shape[1:]), w), 3, 1, 1), (h, x, w))

        last, stacked = b.calls(body(whole, h, x, w), (h, x, w))
        return b.mul(last, b.sum_axes(stacked, (0,)))

    check_all(f, [normal(2), normal(3, 2), normal(2)])


def test_vectorizing_only_a_constant_or_only_a_stacked_input():
    arrays = recurrence_arrays()
    inputs = leaves(arrays)
    y = recurrence()(*inputs)
    for which in range(4):
        many = np.stack([arrays[which] * s for s in (1.0, 0.5, -1)])
        (value,) = leaves([many])
        values = [value if i == which else x for i, x in enumerate(inputs)]
        axes = [0 if i == which else None for i in range(4)]
        (got,) = vectorize([y], inputs, values, axes)
        given = [many if i == which else a for i, a in enumerate(arrays)]
        (batch,) = run([got], values, given)
        for k in range(3):
            one = [many[k] if i == which else a for i, a in enumerate(arrays)]
            np.testing.assert_allclose(batch[k], run([y], inputs, one)[0], rtol=1e-12)


def test_gradient_of_vectorized_is_the_sum_of_gradients():
    arrays = recurrence_arrays()
    inputs = leaves(arrays)
    y = recurrence()(*inputs)
    many = normal(3, 4, 2)
    (value,) = leaves([many])
    values = [inputs[0], inputs[1], value, inputs[3]]
    (batched,) = vectorize([y], inputs, values, [None, None, 0, None])
    got = run(gradient([batched], values, [b.like(1, batched)]), values,
              [arrays[0], arrays[1], many, arrays[3]])  # fmt: skip
    gs = gradient([y], inputs, [b.like(1, y)])
    each = [run(gs, inputs, [arrays[0], arrays[1], m, arrays[3]]) for m in many]
    for i in (0, 1, 3):
        np.testing.assert_allclose(got[i], sum(e[i] for e in each), rtol=1e-10)
    np.testing.assert_allclose(got[2], np.stack([e[2] for e in each]), rtol=1e-10)


def product_scan(length, recompute=False):
    """A matrix product in each step, whose weight's gradient is summed after the scan."""

    def f(h, x, w):
        def step(h, x, w):
            spread = b.expand(b.reshape(h, (1, 3, 1)), (1, 3, 3))
            new = b.sin(b.sum_axes(b.mul(spread, b.expand(w, (1, 3, 3))), (1,)))
            return b.add(new, x), b.mul(new, x)

        arg = ScanArg(body(step, h, leaf(x.shape[1:]), w, recompute=recompute), length, 1, 1)
        last, stacked = b.scans(arg, (h, x, w))
        return b.add(last, b.sum_axes(stacked, (0,)))

    return f


def test_deferred_sums():
    arrays = [normal(1, 3), normal(4, 1, 3), normal(3, 3)]
    inputs = leaves(arrays)
    y = product_scan(4)(*inputs)
    (g,) = gradient([y], [inputs[2]], [b.like(1, y)])
    assert all(n.arg.carries == 1 for n in scan_nodes([g]))
    check_all(product_scan(4), arrays)
    check_all(product_scan(4, recompute=True), arrays)


def test_a_symbolic_length():
    n = var("n", 0, 9)
    h, x, w = leaf((1, 3)), leaf((n, 1, 3)), leaf((3, 3))
    h5, x5, w5 = inputs = leaves([normal(1, 3), normal(5, 1, 3), normal(3, 3)])
    arrays = [normal(*i.shape) for i in inputs]
    y, y5 = product_scan(n)(h, x, w), product_scan(5)(h5, x5, w5)
    g = gradient([y], [h, x, w], [b.like(1, y)])
    g5 = gradient([y5], inputs, [b.like(1, y5)])
    t = jvp([y], [h, x, w], [h, x, w])
    t5 = jvp([y5], inputs, inputs)
    got = evaluate([*g, *t], dict(zip([h, x, w], arrays)), variables={"n": 5})
    for a, c in zip(got, run([*g5, *t5], inputs, arrays)):
        np.testing.assert_allclose(a, c, rtol=1e-12)
    with pytest.raises(GradientError, match="static length"):
        scan_checkpointed(ScanArg(body(lambda h: (h,), h), n, 1, 0), (h,))


def scan_nodes(roots):
    return [n for n in toposort(roots) if n.op is ops.SCAN]


def test_values_that_no_step_changes_are_not_stacked():
    x, w, h = leaf((6, 3)), leaf((3,)), leaf((3,))

    def step(h, x, w):
        return (b.add(b.mul(h, b.exp2(b.sin(w))), x),)

    arg = ScanArg(body(step, h, leaf((3,)), w), 6, 1, 1)
    y = b.scan(arg, (h, x, w), 0)
    g = gradient([y], [h], [b.like(1, y)])
    back = next(n for n in scan_nodes(g) if n.arg.reverse)
    assert back.arg.stacked == 0
    assert any(s.op is ops.EXP2 for s in back.srcs)  # computed once, outside


def test_stacked_inputs_are_read_where_they_lie():
    x, w, h = leaf((6, 3)), leaf((3,)), leaf((3,))
    step = body(lambda h, x, w: (b.mul(b.mul(h, x), w),), h, leaf((3,)), w)
    y = b.scan(ScanArg(step, 6, 1, 1), (h, x, w), 0)
    g = gradient([y], [h], [b.like(1, y)])
    back = next(n for n in scan_nodes(g) if n.arg.reverse)
    assert x in back.srcs and back.arg.stacked == 1


def test_the_forward_scan_runs_once_after_joining():
    arrays = recurrence_arrays()
    inputs = leaves(arrays)
    y = recurrence()(*inputs)
    outs = [y, *gradient([y], inputs, [b.like(1, y)])]
    before, joined = scan_nodes(outs), scan_nodes(join_scans(outs))
    assert len({n.arg.body for n in before if not n.arg.reverse}) == 2
    assert len({n.arg.body for n in joined if not n.arg.reverse}) == 1
    for a, c in zip(run(outs, inputs, arrays), run(join_scans(outs), inputs, arrays)):
        np.testing.assert_array_equal(a, c)


def test_long_scan_gradient_does_not_grow_with_its_length():
    def size(length):
        h, x = leaf((2,)), leaf((length, 2))
        step = body(lambda h, x: (b.sin(b.add(h, x)),), h, leaf((2,)))
        y = b.scan(ScanArg(step, length, 1, 1), (h, x), 0)
        return len(toposort(gradient([y], [h, x], [b.like(1, y)])))

    assert size(3) == size(100_000)


def test_low_precision_sums_over_steps_are_kept_in_float32():
    w, h = leaf((), dt.bfloat16), leaf((), dt.bfloat16)
    step = body(lambda h, w: (h, b.mul(h, w)), h, w)
    y = b.scan(ScanArg(step, 1000, 1, 0), (h, w), 1)
    ones = const(1, dt.bfloat16, (1000,))
    (g,) = gradient([y], [w], [ones])
    assert g is not None and g.dtype is dt.bfloat16
    assert run([g], [w, h], [np.float32(1), np.float32(1)])[0] == 1000


# --- checkpoints -------------------------------------


def test_checkpoint():
    def f(x, y):
        inner = b.exp2(b.sin(b.mul(x, y)))
        (kept,) = checkpoint([b.mul(b.sin(inner), x)], [x])
        return b.mul(kept, y)

    check_all(f, [normal(3), normal(3)])


def test_checkpoint_captures_what_its_inputs_do_not_lead_to():
    x, w = leaf((3,)), leaf((3,))
    outside = b.exp2(w)
    inner, captured = lift([b.mul(b.sin(x), b.scale(outside, 2.0))], [x])
    assert captured == [b.scale(outside, 2.0)]
    assert not any(n.op is ops.EXP2 for n in toposort(inner.outs))


def test_a_checkpoint_unpacks_what_is_larger_than_what_it_is_made_of():
    """A weight in few bits, spread along many rows: kept as it lies, not as what it means."""
    x, codes, scale = leaf((64, 8)), leaf((8,), dt.int8), leaf(())
    number = b.mul(b.cast(codes, dt.float64), b.expand(scale, (8,)))
    (packed,) = checkpoint([number], [codes, scale])  # a part that is computed again may be inside
    for weight in (number, packed):
        wide = b.expand(weight, (64, 8))
        inner, captured = lift([b.mul(x, wide)], [x], recompute=True)
        assert set(captured) == {codes, scale}
        assert lift([b.mul(x, wide)], [x])[1] == [wide]
    summed = b.sum_axes(number, (0,))
    assert lift([b.mul(x, b.expand(summed, (64, 8)))], [x], recompute=True)[1] == [summed]


def test_the_recomputation_is_another_body_than_the_forward_one():
    x = leaf((3,))
    (y,) = checkpoint([b.sin(b.exp2(b.sin(x)))], [x])
    (g,) = gradient([y], [x], [b.like(1, y)])
    marked = {n.arg.body for n in toposort([y, g]) if n.op is ops.CALL}
    assert len(marked) == 2 and all(m.recompute for m in marked)


def test_call_argument_is_the_body_and_the_result():
    x = leaf((3,))
    inner = body(lambda p: (b.sin(p),), x)
    assert b.call(inner, (x,)).arg == CallArg(inner, 0)
