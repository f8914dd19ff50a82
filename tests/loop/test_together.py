"""Stages along the same loops are one loop; those that are not stay apart."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.ir import const, dtype, sym
from muladd.loop.statements import For, Grid, If, Store, Threads
from muladd.loop.together import together

I, J = sym.axis("i", 8), sym.axis("j", 8)


def store(place: int) -> Store:
    return Store(place, sym.as_node(I), const(0.0, dtype.float32))


def loop(*body, over=I, stop=8):
    return For(over, 0, stop, list(body))


def test_equal_loops_become_one_and_keep_the_order():
    a, b, c = store(0), store(1), store(2)
    (one,) = together([[loop(a)], [loop(b)], [loop(c)]], {I})
    assert one.body == [a, b, c]
    (outer,) = together([[loop(loop(a), over=J)], [loop(loop(b), over=J)]], {I, J})
    assert outer.body[0].body == [a, b]


def test_whole_and_last_turns_are_joined_each():
    whole, odd = loop(store(0), stop=7), If(sym.as_node(sym.less(I, 3)), [store(1)])
    other = [loop(store(2), stop=7), If(odd.condition, [store(3)])]
    found = together([[whole, odd], other], {I})
    assert [[s.place for s in x.body] for x in found] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("then", [
    [loop(store(1), stop=7)], [loop(store(1), over=J)], [store(1)],
    [loop(loop(store(1), over=J))], [loop(store(1)), store(2)],
    [Threads(I, 0, 8, [store(1)])], [If(sym.as_node(sym.less(I, 3)), [store(1)])],
], ids=["stop", "axis", "none", "deeper", "more", "threads", "condition"])  # fmt: skip
def test_others_stay_apart(then):
    first = [loop(store(0))]
    assert together([first, then], {I, J}) == first + then


def test_a_loop_of_a_stages_own_axis_stays_its_own():
    assert len(together([[loop(store(0))], [loop(store(1))]], {J})) == 2


def stored(body) -> list[list]:
    """The places that are stored to in each innermost body."""
    own = [s.place for s in body if isinstance(s, Store)]
    deeper = [x for s in body if isinstance(s, For | Grid) for x in stored(s.body)]
    return ([own] if own else []) + deeper


@pytest.mark.parametrize("profile", ["fast", "exact"])
def test_what_results_have_in_common_is_computed_once(profile):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((64, 96)).astype("f") for _ in range(2))
    with config.context(PROFILE=profile):
        t = Tensor(x)
        ends = (t.exp() + 1.0, t.exp() * Tensor(y))
        graph, _ = parameters(tuple(end.node for end in ends))
        (kernel,) = compile_graph(graph, "CPU").kernels()
        bodies = stored(kernel.lowered().body)
        assert all(len(set(places)) >= 2 for places in bodies)
        Tensor.realize(*ends)
    np.testing.assert_allclose(ends[0].numpy(), np.exp(x) + 1, rtol=1e-6)
    np.testing.assert_allclose(ends[1].numpy(), np.exp(x) * y, rtol=1e-6)


def test_a_value_is_loaded_again_after_a_store_to_its_array():
    """In a chain in place, each stage reads what the one before has left."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 33)).astype("f")
    t = Tensor(x)
    a = t.exp()
    total = a.sum(1, keepdim=True)
    b = a / total
    ends = (b, b.log() + t, (b * b).sum(1), a)
    Tensor.realize(*ends)
    want = np.exp(x.astype("d"))
    share = want / want.sum(1, keepdims=True)
    for end, right in zip(ends, (share, np.log(share) + x, (share**2).sum(1), want)):
        np.testing.assert_allclose(end.numpy(), right, rtol=1e-5, atol=1e-6)
