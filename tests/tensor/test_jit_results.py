"""What a jitted function gives is alike in every call: its state, its results, their history."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import muladd
from muladd import Tensor, jit, no_grad
from muladd.errors import GradientError, TraceError


def T(*v: float) -> Tensor:
    return Tensor(np.array(v, dtype="float32"))


def detached():
    h = T(0.0)

    def step(x):
        nonlocal h
        new = h * 0.5 + x
        h = new.detach()
        return new

    return step


def detached_in_a_list():
    states = [T(0.0), T(1.0)]

    def step(x):
        a, b = states
        states[:] = (a + b * x).detach(), (b * 0.5 + a)[...]
        return a + b

    return step


def with_history():
    w, h = T(2.0).requires_grad_(), T(0.0)

    def step(x):
        nonlocal h
        h = h * 0.5 + w * x
        return h.detach()

    return step


def trained():
    w, h = T(2.0).requires_grad_(), T(0.0)

    def step(x):
        nonlocal h
        h = (h * 0.5 + w * x).detach()
        loss = (h * w + w * w).sum()
        w.grad = None
        loss.backward()
        with no_grad():
            w.sub_(w.grad * 0.1)
        return loss.detach()

    return step


def beside_what_it_was_a_view_of():
    w = T(3.0)
    h = w.detach()

    def step(x):
        nonlocal h
        out = h * 10 + w
        h = (h + x).detach()
        w.assign(w + 1)
        return out

    return step


@pytest.mark.parametrize(
    "make",
    [detached, detached_in_a_list, with_history, trained, beside_what_it_was_a_view_of],
)
def test_state_that_is_a_view_or_has_a_history(make):
    plain, compiled = make(), jit(make())
    for i in range(6):
        assert compiled(T(float(i))).tolist() == plain(T(float(i))).tolist()
    assert compiled.traces <= 2


RESULTS = {
    "slice": lambda x: x[:2],
    "reshape": lambda x: x.reshape(3, 1),
    "detach": lambda x: x.detach(),
    "beside the argument": lambda x: (x, x[:1]),
    "of another result": lambda x: (lambda y: (y, y[:1]))(x + 1),
}


@pytest.mark.parametrize("function", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("inside", [False, True])
def test_results_are_no_views_from_the_first_call_on(function, inside):
    f = jit(function)
    f = jit(lambda x, f=f: f(x)) if inside else f
    for _ in range(4):
        x = T(1, 2, 3)
        out = f(x)
        view = out[-1] if isinstance(out, tuple) else out
        view.fill_(9)
        assert x.tolist() == [1, 2, 3]
        assert not isinstance(out, tuple) or 9 not in out[0].tolist()


def test_backward_through_a_result_is_refused_from_the_first_call_on():
    w = T(2.0).requires_grad_()
    kept = SimpleNamespace(h=T(0.0))

    @jit
    def f(x):
        kept.h = w * x
        return kept.h + 1

    for _ in range(4):
        for result in (f(T(1)), f(T(1)) * w, jit(lambda y: y * w)(f(T(1))), kept.h):
            with pytest.raises(GradientError, match="jitted function"):
                result.sum().backward()
    assert w.grad is None
    inside = jit(muladd.value_and_grad(lambda w, x: (w * x).sum()))
    assert [inside(w, T(3))[1].item() for _ in range(3)] == [3] * 3


def generator(x):
    yield x


async def coroutine(x):
    return x


class Streaming:
    def __call__(self, x):
        yield x


@pytest.mark.parametrize("function", [generator, coroutine, Streaming(), partial(generator)])
@pytest.mark.parametrize("transform", [jit, muladd.grad, muladd.vmap, muladd.checkpoint])
def test_a_function_that_returns_before_it_has_run_is_refused(transform, function):
    with pytest.raises(TraceError, match="returns before it has run"):
        transform(function)


def test_several_tensors_are_looked_at_each_time():
    """The quick way of calls whose arguments are all tensors tells other shapes, types, views, the
    same tensor twice, and leaves of differentiation apart."""
    f = jit(lambda a, b: a * 2 + b)
    a, b = Tensor([1.0, 2.0]), Tensor([10.0, 20.0])
    wide, whole = Tensor([[1.0, 2.0], [3.0, 4.0]]), Tensor([1, 2])
    row = Tensor([[5.0, 6.0], [7.0, 8.0]])
    for _ in range(3):
        for x, y in ((a, b), (b, a), (a, a), (a, b), (wide, b), (whole, b), (row[1], b), (a, b)):
            expected = x.numpy() * 2 + y.numpy()
            np.testing.assert_array_equal(f(x, y).numpy(), expected)
            np.testing.assert_array_equal(f(x, y).numpy(), expected)
    leaf = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(GradientError, match="jitted"):
        f(leaf, b).sum().backward()
    first, second = f(a, b), f(b, a)  # a result stays what it was
    np.testing.assert_array_equal(first.numpy(), a.numpy() * 2 + b.numpy())
    np.testing.assert_array_equal(second.numpy(), b.numpy() * 2 + a.numpy())


def test_a_call_keeps_nothing_alive():
    """What a call was given goes with its last reference, not when the collector runs next."""
    @jit
    def f(x, more):
        return {"sum": x + more["y"]}

    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            x, y = Tensor(np.ones(3, np.float32)), Tensor(np.ones(3, np.float32))
            result = f(x, {"y": y})
            watched = [weakref.ref(t) for t in (x, y, result["sum"])]
            del x, y, result
            assert [w() for w in watched] == [None] * 3
    finally:
        gc.enable()
