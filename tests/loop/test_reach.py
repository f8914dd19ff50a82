"""Bounds of indices while some loops stay: never too narrow, whatever the index is made of."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

from muladd.ir import sym
from muladd.loop.reach import extreme

SIZES = (7, 5, 12)
AXES = [sym.axis(f"a{i}", n) for i, n in enumerate(SIZES)]


def index(rng: np.random.Generator, depth: int):
    """A random index of the axes, as a Dim and as a function of their values."""
    kind = rng.integers(6) if depth else rng.integers(2)
    if kind == 0:
        k = int(rng.integers(-9, 10))
        return k, lambda v: k
    if kind == 1:
        i = int(rng.integers(len(AXES)))
        return AXES[i], lambda v: v[i]
    a, f = index(rng, depth - 1)
    k = int(rng.integers(2, 9))
    if kind == 2:
        return sym.div(a, k), lambda v: f(v) // k
    if kind == 3:
        return sym.mod(a, k), lambda v: f(v) % k
    b, g = index(rng, depth - 1)
    if kind == 4:
        return sym.add(a, sym.mul(b, k - 5)), lambda v: f(v) + g(v) * (k - 5)
    return sym.mul(a, b), lambda v: f(v) * g(v)


@pytest.mark.parametrize("seed", range(300))
def test_no_value_lies_outside(seed):
    rng = np.random.default_rng(seed)
    x, f = index(rng, 3)
    first = [int(rng.integers(n)) for n in SIZES]
    last = [int(rng.integers(k, n)) for k, n in zip(first, SIZES)]
    least, most = dict(zip(AXES, first)), dict(zip(AXES, last))
    values = [f(v) for v in itertools.product(*(range(a, b + 1) for a, b in zip(first, last)))]
    low, high = (extreme(x, least, most, greatest) for greatest in (False, True))
    assert sym.bounds(low)[1] <= min(values) and max(values) <= sym.bounds(high)[0]
    if first == last:
        assert (low, high) == (values[0], values[0])


def test_sums_that_grow_with_each_axis_are_told_exactly():
    x = sym.add(sym.mul(AXES[0], 3), sym.sub(sym.div(sym.add(AXES[1], 2), 2), AXES[2]))
    least, most = dict(zip(AXES, (1, 0, 4))), dict(zip(AXES, (2, 3, 6)))
    assert extreme(x, least, most, False) == 3 + 1 - 6
    assert extreme(x, least, most, True) == 6 + 2 - 4
