"""The exact profile: fma against fractions, and sums in their one order."""
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from muladd.interp import evaluate, exact
from muladd.ir import Storage, make, ops
from muladd.ir import dtype as dt


def reference(a: float, b: float, c: float, d: dt.DType) -> float:
    """a * b + c rounded once, with integers alone."""
    with np.errstate(all="ignore"):
        plain = float(np.float64(a) * np.float64(b) + np.float64(c))
    if not all(map(np.isfinite, (a, b, c))) or (a == 0 or b == 0):
        return plain
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:
        return 0.0
    least = 2 - (1 << (d.exponent - 1)) - d.mantissa  # the exponent of the smallest subnormal
    magnitude = abs(total)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - d.mantissa, least)
    steps = round(magnitude / unit)  # Fraction rounds ties to even
    result = steps * unit
    top = (2 - Fraction(2) ** -d.mantissa) * Fraction(2) ** ((1 << (d.exponent - 1)) - 1)
    value = float("inf") if result > top else float(result)
    return -value if total < 0 else value


def special(d: dt.DType) -> np.ndarray:
    info = np.finfo(d.numpy)
    positive = [0.0, info.smallest_subnormal, info.tiny, 1.0, 1 + info.eps, 1.5, info.max, np.inf]
    return np.array([*positive, *(-v for v in positive), np.nan], d.numpy)


def random_triples(d: dt.DType, n: int) -> list[np.ndarray]:
    """Random bits, and triples in which a * b nearly cancels or ties with c."""
    rng = np.random.default_rng(4)
    bits = [rng.integers(0, 1 << d.bits, n, f"u{d.itemsize}").view(d.numpy) for _ in range(3)]
    a, b = (rng.standard_normal(n).astype(d.numpy) for _ in range(2))
    near = [a, b, np.nextafter(-(a * b), rng.choice([-9, 9], n).astype(d.numpy))]
    scale = 2.0 ** rng.integers(-60, 60, n)
    far = [a, b, (rng.standard_normal(n) * scale).astype(d.numpy)]
    ones = rng.integers(0, 1 << 12, (2, n)).astype(d.numpy)
    tie = [1 + ones[0] * d.numpy.type(2.0**-d.mantissa), 1 + d.numpy.type(2.0**-12) * ones[1],
           ones[0] * d.numpy.type(2.0**-20)]  # fmt: skip
    low = np.finfo(d.numpy).tiny
    small = [a * np.sqrt(low), b * np.sqrt(low), (rng.standard_normal(n) * low).astype(d.numpy)]
    return [np.concatenate(parts).astype(d.numpy) for parts in zip(bits, near, far, tie, small)]


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_fma_is_rounded_once(d):
    with np.errstate(all="ignore"):
        a, b, c = random_triples(d, 3000)
        grid = np.meshgrid(*[special(d)] * 3)
        a, b, c = (np.concatenate([x, g.ravel()]) for x, g in zip((a, b, c), grid))
        found = (exact.fma32 if d is dt.float32 else exact.fma64)(a, b, c)
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist()):
        want = reference(x, y, z, d)
        same = got == want and np.signbit(got) == np.signbit(want)
        assert same or (got != got and want != want), (x, y, z, got, want)


def run(node, profile="exact"):
    return evaluate([node], profile=profile)[0]


def array(values, d=dt.float32):
    x = np.asarray(values, d.numpy)
    return make(ops.INPUT, (), Storage(x.shape, d, buffer=x))


def in_lanes(values, lanes, combine=lambda acc, x: np.float32(acc + x), start=np.float32(0)):
    """The definition, one number at a time. values: rows over the innermost reduced axis."""
    acc = [start] * lanes
    for row in values:
        for i, x in enumerate(row):
            acc[i % lanes] = combine(acc[i % lanes], x)
    while len(acc) > 1:
        half = len(acc) // 2
        acc = [combine(acc[i], acc[i + half]) for i in range(half)]
    return acc[0]


@pytest.fixture
def x():
    rng = np.random.default_rng(5)
    return (rng.standard_normal((3, 5, 200)) * 10.0 ** rng.integers(-4, 4, (3, 5, 200))).astype(
        np.float32
    )


def test_the_innermost_axis_is_summed_in_64_lanes(x):
    found = run(make(ops.SUM, (array(x),), (2,)))
    wanted = [[in_lanes([row], 64) for row in plane] for plane in x]
    assert np.array_equal(found, np.array(wanted))


def test_outer_and_innermost_axes_run_row_by_row(x):
    found = run(make(ops.SUM, (array(x),), (0, 2)))
    wanted = [in_lanes([x[i, j] for i in range(3)], 64) for j in range(5)]
    assert np.array_equal(found, np.array(wanted))


def test_an_outer_axis_is_summed_in_one_lane(x):
    found = run(make(ops.SUM, (array(x),), (0, 1)))
    wanted = [in_lanes([x[i, :, k] for i in range(3)], 1) for k in range(200)]
    assert np.array_equal(found, np.array(wanted))


def test_axes_of_one_element_do_not_count(x):
    y = array(x[0, :, :, None])
    wanted = [in_lanes([row], 64) for row in x[0]]
    assert np.array_equal(run(make(ops.SUM, (y,), (1,)))[:, 0], np.array(wanted))
    assert np.array_equal(run(make(ops.SUM, (y,), (1, 2))), np.array(wanted))
    one = array(np.full((1, 1), -0.0))
    assert not np.signbit(run(make(ops.SUM, (one,), (0, 1))))  # sums begin at +0


def test_a_sum_of_products_is_fused(x):
    a, b = x[0], x[1]
    node = make(ops.SUM, (make(ops.MUL, (array(a), array(b))),), (1,))

    def fused(pairs):
        acc = [np.float32(0)] * 64
        for i, (p, q) in enumerate(pairs):
            acc[i % 64] = np.float32(reference(float(p), float(q), float(acc[i % 64]), dt.float32))
        return in_lanes([acc], 64)

    wanted = [fused(zip(a[j], b[j])) for j in range(5)]
    assert np.array_equal(run(node), np.array(wanted))
    assert not np.array_equal(run(node), run(make(ops.SUM, (array(a * b),), (1,))))


def test_a_product_that_is_read_elsewhere_is_still_fused(x):
    a, b = array(x[0]), array(x[1])
    product = make(ops.MUL, (a, b))
    total = make(ops.SUM, (product,), (1,))
    alone = run(total)
    both = evaluate([product, total], profile="exact")
    assert np.array_equal(both[1], alone)
    assert np.array_equal(both[0], x[0] * x[1])


def test_16_bit_floats_multiply_and_add_in_float32():
    rng = np.random.default_rng(6)
    for d in (dt.float16, dt.bfloat16):
        a, b = (dt.decode(dt.encode(rng.standard_normal(100).astype(np.float32), d), d)
                for _ in range(2))  # fmt: skip
        node = make(ops.SUM, (make(ops.MUL, (array(a, d), array(b, d))),), (0,))
        exactly = np.asarray(a, np.float32) * np.asarray(b, np.float32)  # no rounding is needed
        total = np.array([in_lanes([exactly], 64)])
        assert run(node) == dt.decode(dt.encode(total, d), d)[0]


def test_the_greatest_follows_max_in_the_same_order():
    zeros = np.zeros((1, 65), np.float32)
    zeros[0, 64] = -0.0
    assert not np.signbit(run(make(ops.AMAX, (array(zeros),), (1,))))
    assert np.signbit(run(make(ops.AMAX, (array([[0.0], [-0.0]]),), (0,)))) == np.signbit(
        in_lanes([[np.float32(0)], [np.float32(-0.0)]], 1,
                 lambda a, x: a if a > x else x, np.float32(-np.inf)))  # fmt: skip


def test_nans_leave_as_the_positive_quiet_one():
    x = array(np.array([0xFFC12345], np.uint32).view(np.float32))
    assert run(x).view(np.uint32).tolist() == [0x7FC00000]


def test_integers_are_the_same_in_both_profiles():
    x = array(np.arange(300).reshape(3, 100) % 128, dt.int8)
    node = make(ops.SUM, (make(ops.MUL, (x, x)),), (1,))
    assert np.array_equal(run(node), run(node, "fast"))
