"""Every rule against the interpreter: left and right are worth the same, and right is smaller.

Instances of each rule's left side are drawn from its own pattern, with random dtypes, shapes,
arguments and constants, until enough of them pass the guard.
"""
from __future__ import annotations

import zlib

import numpy as np
import pytest

from muladd.errors import MuladdError
from muladd.interp import evaluate
from muladd.ir import const, make, ops, param, substitute, toposort
from muladd.ir import dtype as dt
from muladd.rewrite.canonical import ALL_RULES, canonicalise
from muladd.rewrite.measure import measure
from muladd.rewrite.pattern import Anything, Number, Operation

ENOUGH, ATTEMPTS = 25, 6000
FAST_DTYPES = (dt.float16, dt.float32, dt.float64)
SIZES = (0, 1, 1, 2, 3, 5)


class Draw:
    """One random instance of a pattern."""

    def __init__(self, rng, exact):
        self.rng, self.exact, self.named = rng, exact, {}

    def choice(self, options):
        return options[int(self.rng.integers(len(options)))]

    def dtypes(self, kinds):
        allowed = [d for d in dt.ALL if d.kind in kinds]
        return allowed if self.exact else [d for d in allowed if not d.is_float or d in FAST_DTYPES]

    def shape(self, axes=None):
        axes = int(self.rng.integers(0, 4)) if axes is None else axes
        return tuple(self.choice(SIZES) for _ in range(axes))

    def node(self, pattern, dtype, shape):
        if isinstance(pattern, Anything):
            if pattern.name not in self.named:
                assert dtype.kind in pattern.kinds
                self.named[pattern.name] = param(len(self.named), shape, dtype)
            return self.named[pattern.name]
        if isinstance(pattern, Number):
            value = self.number(dtype) if pattern.value is None else pattern.value
            return const(value, dtype, shape)
        return self.operation(pattern, dtype, shape)

    def number(self, dtype):
        if dtype is dt.bool_:
            return self.choice([False, True])
        common = [0, 1, 2, 4, 3, 7, dtype.min, dtype.max]
        if dtype.is_int:
            return self.choice([*common, -1, 1 << (dtype.bits - 2)])
        special = [-0.0, 0.5, -1.0, 1e-30, 0.1, 2.0**-20, -8.0, float("nan"), 1e30]
        return self.choice([*common, *special] if self.exact else [2, 3, 0.5, 0.1, 7.0])

    def operation(self, pattern, dtype, shape):
        which, srcs = pattern.op, pattern.srcs
        if which in (ops.CAST, ops.BITCAST):
            return self.conversion(pattern, dtype, shape)
        if which in (ops.LT, ops.NE):
            boolean = any(isinstance(s, Anything | Operation) and self.kinds(s) == "b"
                          for s in srcs)  # fmt: skip
            dtype = dt.bool_ if boolean else self.choice(self.dtypes(self.kinds(srcs[0])))
        if which is ops.WHERE:
            return make(which, (self.node(srcs[0], dt.bool_, shape),
                                *(self.node(s, dtype, shape) for s in srcs[1:])))  # fmt: skip
        if which.elementwise:
            return make(which, tuple(self.node(s, dtype, shape) for s in srcs))
        source = self.node(srcs[0], dtype, shape)
        return make(which, (source,), self.argument(which, source))

    def kinds(self, pattern):
        if isinstance(pattern, Operation) and pattern.op in (ops.LT, ops.NE):
            return "b"
        return pattern.kinds

    def conversion(self, pattern, dtype, shape):
        same_width = [d for d in self.dtypes("biuf") if d.bits == dtype.bits
                      and (d is dt.bool_) == (dtype is dt.bool_)]  # fmt: skip
        source = self.choice(self.dtypes("biuf") if pattern.op is ops.CAST else same_width)
        return make(pattern.op, (self.node(pattern.srcs[0], source, shape),), None, dtype)

    def argument(self, which, source):
        rng, shape = self.rng, source.shape
        trivial = rng.random() < 0.3
        if which in (ops.SUM, ops.AMAX):
            return tuple(a for a in range(source.ndim) if rng.random() < 0.6)
        if which is ops.PERMUTE:
            order = range(source.ndim)
            return tuple(order) if trivial else tuple(int(a) for a in rng.permutation(order))
        if which is ops.RESHAPE:
            return shape if trivial else self.choice([(*shape, 1), (1, *shape), shape[::-1]])
        if which is ops.EXPAND:
            wide = tuple(self.choice(SIZES) if n == 1 else n for n in shape)
            return shape if trivial else (*self.shape(self.choice([0, 0, 1])), *wide)
        if which is ops.PAD:
            fill = self.choice([source.dtype.min, 0, 0, 1])
            most = 1 if trivial else 3
            pads = tuple((int(rng.integers(0, most)), int(rng.integers(0, most)),
                          self.choice([0, 0, 0, 1]) if most > 1 else 0) for _ in shape)  # fmt: skip
            return (pads, const(fill, source.dtype).arg)
        assert which is ops.SLICE
        return tuple((0, n, 1) if trivial else self.slice(n) for n in shape)

    def slice(self, n):
        size = int(self.rng.integers(0 if self.rng.random() < 0.2 else min(1, n), n + 1))
        if not size:
            return (0, 0, 1)
        step = int(self.rng.integers(1, (n - 1) // (size - 1) + 1)) if size > 1 else 1
        start = int(self.rng.integers(0, n - (size - 1) * step))
        return self.choice([(start, size, step), (start + (size - 1) * step, size, -step)])


def instances(rule):
    rng = np.random.default_rng(zlib.crc32(rule.name.encode()))
    found = 0
    for _ in range(ATTEMPTS):
        draw = Draw(rng, rule.exact)
        kinds = "b" if rule.left.op in (ops.LT, ops.NE) else rule.left.kinds
        dtype = draw.choice(draw.dtypes(kinds))
        try:
            left = draw.node(rule.left, dtype, draw.shape())
        except (MuladdError, AssertionError, OverflowError):
            continue  # the drawn dtypes or arguments do not fit together
        right = rule.apply(left)
        if right is not None:
            found += 1
            yield rng, left, right
        if found == ENOUGH:
            return
    assert found >= 3, f"{rule.name}: only {found} instances in {ATTEMPTS} attempts"


def values(rng, node, exact):
    shape, d = node.shape, node.dtype
    if d is dt.bool_:
        return rng.random(shape) < 0.5
    if d.is_int:
        x = rng.integers(int(d.min), int(d.max), shape, dtype=d.numpy, endpoint=True)
        return np.where(rng.random(shape) < 0.5, x, x % np.array(3, d.numpy)).astype(d.numpy)
    if not exact:
        x = rng.uniform(0.5, 2, shape)
        return dt.decode(dt.encode(np.asarray(x, d.numpy), d), d).reshape(shape)
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 6, shape)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 65504.0, 3e38])
    x = np.where(rng.random(shape) < 0.4, special[rng.integers(0, len(special), shape)], x)
    with np.errstate(all="ignore"):
        return dt.decode(dt.encode(np.asarray(x).astype(d.numpy), d), d).reshape(shape)


def assert_same(got, expected, exact, d, text):
    assert got.dtype == expected.dtype and got.shape == expected.shape, text
    if exact or not d.is_float:
        np.testing.assert_array_equal(got, expected, text)
        if d.is_float:
            number = ~np.isnan(got)
            np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])
    else:
        np.testing.assert_allclose(got, expected, rtol=2.0 ** (2 - d.mantissa), err_msg=text)


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda r: r.name)
def test_both_sides_are_worth_the_same_and_the_right_one_is_smaller(rule):
    profile = "exact" if rule.exact else "fast"
    for rng, left, right in instances(rule):
        text = f"{rule.name}: {left!r} of {left.srcs} became {right!r}"
        assert measure(right) < measure(left), text
        leaves = [n for n in toposort((left, right)) if n.op is ops.INPUT]
        inputs = {n: values(rng, n, rule.exact) for n in leaves}
        with np.errstate(all="ignore"):
            before, after = evaluate([left, right], inputs, profile=profile)
        assert_same(after, before, rule.exact, left.dtype, text)


@pytest.mark.parametrize(
    "rule", [r for r in ALL_RULES if r.exact and "f" in r.left.kinds], ids=lambda r: r.name
)
def test_exact_rules_keep_the_bits_of_a_sum_above_them(rule):
    """SUM(MUL(a, b)) rounds once per step, so no rule may put a product there or take it away."""
    for rng, left, _ in instances(rule):
        if not left.dtype.is_float or not left.ndim:
            continue
        if rng.random() < 0.5:  # let x be a product
            leaves = [n for n in toposort((left,)) if n.op is ops.INPUT and n.dtype.is_float]
            products = {n: make(ops.MUL, (n, const(0.1, n.dtype, n.shape))) for n in leaves}
            (left,) = substitute((left,), products)
        total = make(ops.SUM, (left,), tuple(range(left.ndim)))
        leaves = [n for n in toposort((total,)) if n.op is ops.INPUT]
        inputs = {n: values(rng, n, False) for n in leaves}
        with np.errstate(all="ignore"):
            (after,) = canonicalise([total], "exact")
            got, expected = evaluate([after, total], inputs, profile="exact")
        assert_same(got, expected, True, total.dtype, f"{rule.name}: {total.srcs}")


def test_names_are_unique_and_tell_what_happens():
    names = [rule.name for rule in ALL_RULES]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name.islower() for name in names)


@pytest.mark.parametrize("source", dt.ALL, ids=str)
def test_folded_casts_are_the_interpreters(source):
    rng = np.random.default_rng(4)
    for target in dt.ALL:
        draw = Draw(rng, True)
        for _ in range(12):
            node = make(ops.CAST, (const(draw.number(source), source),), None, target)
            (after,) = canonicalise([node])
            with np.errstate(all="ignore"):
                got, expected = evaluate([after, node])
            assert_same(got, expected, True, target, f"{node.srcs} to {target}")
