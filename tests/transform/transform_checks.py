"""What the tests of this room share: inputs, evaluation, and derivatives by differences."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from muladd.interp import evaluate
from muladd.ir import Node, Storage, const, make, ops
from muladd.ir import dtype as dt
from muladd.transform import build as b
from muladd.transform import gradient, jvp, vectorize

Function = Callable[..., Node]


def leaf(shape: tuple = (), dtype: dt.DType = dt.float64) -> Node:
    return make(ops.INPUT, (), Storage(tuple(shape), dtype))


def leaves(arrays: Sequence[np.ndarray]) -> list[Node]:
    return [leaf(a.shape, dt.dtype(a.dtype.name)) for a in arrays]


def run(outputs: Sequence[Node], inputs: Sequence[Node], arrays: Sequence) -> list[np.ndarray]:
    return [np.asarray(r) for r in evaluate(list(outputs), dict(zip(inputs, arrays)))]


def weighted(y: Node, seed: int = 5) -> Node:
    """A scalar that depends on every element of y differently."""
    flat = b.reshape(y, (int(np.prod(y.shape)),))
    weights = np.random.default_rng(seed).standard_normal(flat.shape[0])
    terms = [
        b.mul(b.reshape(b.slice_(flat, [(i, 1, 1)]), ()), const(w, y.dtype))
        for i, w in enumerate(weights)
    ]
    return b.total(terms) if terms else const(0, y.dtype)


def differences(f: Callable[..., float], arrays: Sequence[np.ndarray], step: float = 1e-5) -> list:
    """The gradient of a scalar function by central differences."""
    found = []
    for k, a in enumerate(arrays):
        g = np.zeros_like(a)
        for i in np.ndindex(*a.shape):
            plus, minus = a.copy(), a.copy()
            plus[i] += step
            minus[i] -= step
            up = f(*arrays[:k], plus, *arrays[k + 1 :])
            down = f(*arrays[:k], minus, *arrays[k + 1 :])
            g[i] = (up - down) / (2 * step)
        found.append(g)
    return found


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def or_zeros(g: Node | None, x: Node) -> Node:
    return b.zeros(x) if g is None else g


def check_all(function: Function, arrays: Sequence[np.ndarray], second: bool = True) -> None:
    """Reverse, forward, vectorised, and their compositions agree with differences."""
    inputs = leaves(arrays)
    y = weighted(function(*inputs))

    def value(*at: np.ndarray) -> float:
        return float(run([y], inputs, at)[0])

    want = differences(value, arrays)
    one = b.like(1, y)
    gs = [or_zeros(g, x) for g, x in zip(gradient([y], inputs, [one]), inputs)]
    for got, w in zip(run(gs, inputs, arrays), want):
        assert_close(got, w)
    directions = [np.random.default_rng(9 + i).standard_normal(a.shape)
                  for i, a in enumerate(arrays)]  # fmt: skip
    tangents = leaves(directions)
    pushed = or_zeros(jvp([y], inputs, tangents)[0], y)
    along = sum(float((w * d).sum()) for w, d in zip(want, directions))
    both = (*inputs, *tangents), (*arrays, *directions)
    assert_close(run([pushed], *both)[0], np.asarray(along))
    check_vectorized(gs, inputs, arrays)
    if second:
        check_second(gs, inputs, arrays, tangents, directions)


def check_vectorized(outs: Sequence[Node], inputs: Sequence[Node], arrays: Sequence) -> None:
    """vectorize gives the results that one example after another gives."""
    many = [np.stack([a, a * 0.9 + 0.01, a * 1.1]) for a in arrays]
    values = leaves(many)
    got = run(vectorize(outs, inputs, values, [0] * len(values)), values, many)
    for i in range(3):
        for g, want in zip(got, run(outs, inputs, [m[i] for m in many])):
            assert_close(g[i], want, 1e-12)


def check_second(
    gs: Sequence[Node], inputs: Sequence[Node], arrays: Sequence, tangents: Sequence[Node],
    directions: Sequence[np.ndarray],
) -> None:  # fmt: skip
    """Gradient of gradient, and forward over reverse, against differences of the gradient."""
    inner = b.total([b.sum_axes(b.mul(g, t), range(g.ndim)) for g, t in zip(gs, tangents)])

    def value(*at: np.ndarray) -> float:
        return float(run([inner], [*inputs, *tangents], [*at, *directions])[0])

    want = differences(value, arrays)
    again = gradient([inner], inputs, [b.like(1, inner)])
    again = [or_zeros(g, x) for g, x in zip(again, inputs)]
    pushed = [or_zeros(t, x) for t, x in zip(jvp(gs, inputs, tangents), inputs)]
    all_inputs, all_arrays = [*inputs, *tangents], [*arrays, *directions]
    for got, w in zip(run([*again, *pushed], all_inputs, all_arrays), [*want, *want]):
        assert_close(got, w, 1e-5)
