"""The rewriter itself: what patterns match, that it ends, how deep and how fast it goes."""
from __future__ import annotations

import time

import pytest

from muladd.errors import GraphError
from muladd.ir import Body, CallArg, ScanArg, const, make, ops, param, toposort
from muladd.ir import dtype as dt
from muladd.rewrite import Rule, anything, canonicalise, number, op, rewrite, through_bodies
from muladd.rewrite.canonical import FAST

x, y, z = (param(i, (4,), dt.float32) for i in range(3))
n = param(3, (4,), dt.int32)


def add(a, b):
    return make(ops.ADD, (a, b))


def mul(a, b):
    return make(ops.MUL, (a, b))


def ones(value=1.0):
    return const(value, dt.float32, (4,))


ADD_ZERO = Rule("add_zero", anything("x") + number(0.0), anything("x"))


def test_a_rule_is_one_line_and_matches_in_both_orders():
    assert rewrite([add(x, ones(0)), add(ones(0), x)], [ADD_ZERO]) == (x, x)


def test_constants_tell_zero_from_negative_zero_and_expanded_is_a_constant_too():
    kept = add(x, ones(-0.0))
    assert rewrite([kept], [ADD_ZERO]) == (kept,)


def test_the_same_name_is_the_same_node():
    double = Rule("double", anything("x") + anything("x"), anything("x") * number(2.0))
    assert rewrite([add(x, x)], [double]) == (mul(x, ones(2)),)
    assert rewrite([add(x, y)], [double]) == (add(x, y),)


def test_matching_tries_the_other_order_and_forgets_the_first():
    a, b = anything("a"), anything("b")
    distribute = Rule("distribute", (a * b) + a, a * (b + number(1.0)))
    for product in (mul(x, y), mul(y, x)):
        for total in (add(product, x), add(x, product)):
            assert rewrite([total], [distribute]) == (mul(x, add(y, ones())),)


def test_kinds_and_guards_and_declining():
    whole = Rule("whole", op(ops.ADD, anything("a"), anything("a"), kinds="iu"), anything("a"))
    assert rewrite([add(n, n), add(x, x)], [whole]) == (n, add(x, x))
    never = Rule("never", anything("a") + anything("b"), anything("a"), lambda m: False)
    declines = Rule("declines", anything("a") + anything("b"), lambda m: None)
    assert rewrite([add(x, y)], [never, declines]) == (add(x, y),)


def test_earlier_rules_are_tried_first_and_the_result_is_rewritten_again():
    trace = []
    up = Rule("up", op(ops.SQRT, anything("a")), op(ops.EXP2, anything("a")))
    on = Rule("on", op(ops.EXP2, anything("a")), anything("a") + number(0.0))
    after = rewrite([make(ops.SQRT, (x,))], [up, on, ADD_ZERO],
                    lambda *event: trace.append(event))  # fmt: skip
    assert after == (x,)
    assert [name for name, _, _ in trace] == ["up", "on", "add_zero"]
    assert trace[0][1] is make(ops.SQRT, (x,)) and trace[0][2] is make(ops.EXP2, (x,))


def test_rules_that_feed_one_another_are_found_out():
    swap = Rule("swap", anything("a") + anything("b"), op(ops.ADD, anything("b"), anything("a")))
    with pytest.raises(GraphError, match="no end in sight.*'swap'"):
        rewrite([add(x, y)], [swap])
    grow = Rule("grow", op(ops.SQRT, anything("a"), name="whole"), anything("whole") + number(0.0))
    with pytest.raises(GraphError, match="no end in sight.*'grow'"):
        rewrite([make(ops.SQRT, (x,))], [grow])


def test_a_rule_must_keep_shape_and_dtype():
    wrong = Rule("wrong", anything("a") + anything("b"), lambda m: n)
    with pytest.raises(GraphError, match="rule 'wrong' turned"):
        rewrite([add(x, y)], [wrong])


@pytest.mark.slow
def test_fifty_thousand_deep():
    node = x
    for _ in range(25_000):
        node = add(mul(ones(), add(node, ones(0))), y)
    (after,) = canonicalise([node])
    assert len(toposort([after])) == 25_000 + 2


def test_a_chain_of_rules_at_one_node_does_not_recurse():
    node = n
    for _ in range(20_000):
        node = add(node, const(1, dt.int32, (4,)))
    assert canonicalise([node]) == (add(n, const(20_000, dt.int32, (4,))),)


def test_near_linear_when_nothing_matches():
    def seconds(count: int) -> float:
        a, b = x, y
        for _ in range(count):
            a, b = add(a, b), mul(b, a)
        start = time.process_time()
        assert rewrite([a, b], FAST) == (a, b)
        return time.process_time() - start

    assert seconds(40_000) < 40 * seconds(4_000)  # ten times the work; a hundred if quadratic


def test_each_body_is_changed_once_and_inner_ones_first():
    p = param(0, (4,), dt.float32)
    inner = Body((add(p, ones(0)),), (p,))
    outer = Body((add(make(ops.CALL, (p,), CallArg(inner)), ones(0)),), (p,))
    calls = [make(ops.CALL, (v,), CallArg(outer)) for v in (x, y)]
    scan = make(ops.SCAN, (calls[0],), ScanArg(outer, 3, 1, 0))
    seen = []

    def change(outs):
        seen.append(outs)
        return rewrite(outs, [ADD_ZERO])

    first, second = through_bodies([scan, calls[1]], change)
    assert len(seen) == 3
    assert first.arg.body is second.arg.body
    call = first.arg.body.outs[0]
    assert call.op is ops.CALL and call.arg.body.outs == (p,)


def test_bodies_that_stay_the_same_stay_the_same_object():
    p = param(0, (4,), dt.float32)
    body = Body((add(p, ones()),), (p,))
    call = make(ops.CALL, (x,), CallArg(body))
    assert canonicalise([call]) == (call,)
