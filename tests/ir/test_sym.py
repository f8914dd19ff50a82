"""Index algebra against brute force: every rule, on random expressions over small ranges."""
from __future__ import annotations

import itertools
import operator

import numpy as np
import pytest

from muladd.ir import sym, var


def atoms():
    """Symbolic sizes and loop variables, each with all its values."""
    n, m = var("n", 1, 5), var("m", 2, 4)
    i, j = sym.axis("i", 4), sym.axis("j", 6)
    return {"n": (n, range(1, 6)), "m": (m, range(2, 5)), "i": (i, range(4)), "j": (j, range(6))}


ATOMS = atoms()
POINTS = [dict(zip(ATOMS, point)) for point in itertools.product(*(r for _, r in ATOMS.values()))]
POINTS = POINTS[:: max(1, len(POINTS) // 60)]


def random_expression(rng, depth):
    """(the Dim that sym builds, a function from a point to the number it must be)."""
    if depth == 0 or rng.random() < 0.15:
        if rng.random() < 0.4:
            c = int(rng.integers(-3, 9))
            return c, lambda p: c
        name = list(ATOMS)[rng.integers(len(ATOMS))]
        return ATOMS[name][0], lambda p: p[name]
    a, fa = random_expression(rng, depth - 1)
    kind = rng.integers(6)
    if kind < 2:
        d = int(rng.integers(1, 9))
        build, compute = ((sym.div, operator.floordiv), (sym.mod, operator.mod))[kind]
        return build(a, d), lambda p: compute(fa(p), d)
    b, fb = random_expression(rng, depth - 1)
    build, compute = (
        (sym.add, operator.add), (sym.sub, operator.sub),
        (sym.mul, operator.mul), (sym.maximum, max),
    )[kind - 2]  # fmt: skip
    return build(a, b), lambda p: compute(fa(p), fb(p))


@pytest.mark.parametrize("seed", range(300))
def test_a_normal_form_keeps_its_value_and_its_bounds(seed):
    rng = np.random.default_rng(seed)
    x, f = random_expression(rng, 4)
    low, high = sym.bounds(x)
    for point in POINTS:
        wanted = f(point)
        assert sym.evaluate(x, point) == wanted
        assert low <= wanted <= high


@pytest.mark.parametrize("seed", range(100))
def test_division_by_a_symbolic_size(seed):
    rng = np.random.default_rng(seed)
    x, f = random_expression(rng, 3)
    d = sym.mul(ATOMS["m"][0], int(rng.integers(1, 3))) if seed % 2 else ATOMS["n"][0]
    q, r = sym.div(x, d), sym.mod(x, d)
    for point in POINTS:
        divisor = sym.evaluate(d, point)
        assert sym.evaluate(q, point) == f(point) // divisor
        assert sym.evaluate(r, point) == f(point) % divisor


@pytest.mark.parametrize("seed", range(100))
def test_a_comparison_is_only_decided_where_it_is_certain(seed):
    rng = np.random.default_rng(seed)
    (a, fa), (b, fb) = random_expression(rng, 2), random_expression(rng, 2)
    known = sym.is_less(a, b)
    found = {fa(p) < fb(p) for p in POINTS}
    assert known is None or found == {known}


def test_equal_expressions_are_the_same_object():
    n, m = ATOMS["n"][0], ATOMS["m"][0]
    i, j = ATOMS["i"][0], ATOMS["j"][0]
    assert (n + m) * 2 is m * 2 + n * 2
    assert (n + 1) * (n + 1) is n * n + 2 * n + 1
    assert (n * 6 + 3) // 3 is n * 2 + 1
    assert (i * 6 + j) // 6 is i
    assert (i * 6 + j) % 6 is j
    assert sym.add(sym.mul(sym.div(i * 5 + j, 3), 3), sym.mod(i * 5 + j, 3)) is i * 5 + j
    assert n - n == 0
    assert (n * m) // m is n
    k = sym.axis("k", 16)
    assert (n * 16 + k) // 32 is n // 2
    assert (n * 16 + k) % 32 is n % 2 * 16 + k
    assert (n * 16 + k + 1) // 32 is not n // 2  # 16 * n + 16 where k is 15


def test_flatten_and_unflatten_are_inverse():
    n, i, j = ATOMS["n"][0], ATOMS["i"][0], ATOMS["j"][0]
    shape = (4, 6)
    assert sym.unflatten(sym.flatten((i, j), shape), shape) == (i, j)
    assert sym.row_major((2, n, 3)) == (n * 3, 3, 1)


def test_bounds_see_that_an_index_stays_inside_a_symbolic_size():
    n = var("n", 1, 100)
    k = sym.axis("k", n)
    assert sym.is_less(k, n) is True
    assert sym.inside(k, n) is True
    assert sym.inside(sym.sub(sym.sub(n, 1), k), n) is True
    assert sym.inside(k + 1, n) is not True
