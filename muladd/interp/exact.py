"""The exact profile's arithmetic: reductions in the one order that is part of the meaning, and fma.

SUM and AMAX of floats run in lanes: 64 where the source's innermost axis (of size other than 1)
is reduced, else one. Lane l takes the elements whose index along the innermost reduced axis is l
modulo the lanes, in row-major order; then lanes join in halves. A SUM directly over a product
multiplies and adds with one rounding.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from muladd.interp import meaning
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType

LANES = 64


def canonical_nan(x: np.ndarray) -> np.ndarray:
    """Every NaN as the positive quiet one."""
    return np.where(np.isnan(x), x.dtype.type(np.nan), x) if x.dtype.kind == "f" else x


# --- reductions ----------------------------------------------------------------------------------


def sum_in_order(x: np.ndarray, axes: tuple[int, ...], dtype: DType) -> np.ndarray:
    wide = _accumulator(dtype)
    total = _reduce((x,), axes, wide.type(0), lambda acc, x: acc + x.astype(wide), np.add)
    return _rounded_once(total, dtype)


def sum_of_products(
    a: np.ndarray, b: np.ndarray, axes: tuple[int, ...], dtype: DType
) -> np.ndarray:
    """SUM(MUL(a, b)): acc = fma(a, b, acc). Floats of 16 and 8 bits multiply in float32."""
    wide = _accumulator(dtype)
    fma = fma64 if wide == np.float64 else fma32

    def step(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return fma(a.astype(wide), b.astype(wide), acc)

    return _rounded_once(_reduce((a, b), axes, wide.type(0), step, np.add), dtype)


def amax_in_order(x: np.ndarray, axes: tuple[int, ...], dtype: DType) -> np.ndarray:
    least = dtype.numpy.type(dtype.min)
    return _reduce((x,), axes, least, meaning.greater, meaning.greater)


def _accumulator(dtype: DType) -> np.dtype:
    return np.dtype(np.float64 if dtype is dt.float64 else np.float32)


def _rounded_once(x: np.ndarray, dtype: DType) -> np.ndarray:
    return x if x.dtype == dtype.numpy and dtype.bits >= 32 else meaning.narrowed(x, dtype)


def _reduce(
    sources: tuple[np.ndarray, ...],
    axes: tuple[int, ...],
    start: np.generic,
    step: Callable[..., np.ndarray],
    join: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Reduce arrays of one shape together over axes, by lanes."""
    shape = sources[0].shape
    kept = [i for i in range(len(shape)) if i not in axes]
    long = [i for i in axes if shape[i] != 1]
    short = [i for i in axes if shape[i] == 1]
    innermost = max((i for i, n in enumerate(shape) if n != 1), default=-1)
    lanes = LANES if innermost in long else 1
    views = [s.transpose(*kept, *long, *short).reshape(
        tuple(shape[i] for i in kept + long)) for s in sources]  # fmt: skip
    accumulators = np.full((*(shape[i] for i in kept), lanes), start)
    for index, width in _steps([shape[i] for i in long], lanes):
        parts = [v[(..., *index)] for v in views]
        accumulators[..., :width] = step(accumulators[..., :width], *parts)
    while lanes > 1:
        lanes //= 2
        accumulators = join(accumulators[..., :lanes], accumulators[..., lanes:])
    return accumulators[..., 0]


def _steps(sizes: list[int], lanes: int) -> Iterator[tuple[tuple[int | slice | None, ...], int]]:
    """Indices along the reduced axes, `lanes` neighbours at a time, and how many there are."""
    if not sizes:
        yield (None,), 1
        return
    for outer in np.ndindex(*sizes[:-1]):
        for i in range(0, sizes[-1], lanes):
            stop = min(i + lanes, sizes[-1])
            yield (*outer, slice(i, stop)), stop - i


# --- multiply and add, rounded once -----------------------------------------------------------


def fma32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float32. The product is exact in float64; their sum is rounded to odd, after
    which rounding to float32 is the only rounding that shows (Boldo and Melquiond, 2008)."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return _add_to_odd(product, c.astype(np.float64)).astype(np.float32)


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a + b and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _add_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, rounded to odd: an inexact result has an odd last bit."""
    total, error = _two_sum(a, b)
    bits = np.ascontiguousarray(total).view(np.int64).reshape(total.shape)
    even = (bits & 1) == 0
    move = even & (error != 0) & np.isfinite(total) & np.isfinite(error)
    # the exact sum lies between `total` and its neighbour on the error's side, which is odd
    away = (error > 0) == (total > 0)
    moved = bits + np.where(away, 1, -1)
    return np.where(move, moved, bits).astype(np.int64).view(np.float64).reshape(total.shape)


_SPLIT = float(2**27 + 1)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a * b and its rounding error, exactly, away from overflow and underflow (Dekker)."""
    product = a * b
    big_a, big_b = _SPLIT * a, _SPLIT * b
    a_high, b_high = big_a - (big_a - a), big_b - (big_b - b)
    a_low, b_low = a - a_high, b - b_high
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, error


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float64, rounded once: error-free transformations and one rounding to odd
    (Boldo and Melquiond, 2008); rationals where a factor is huge or the product tiny."""
    a, b, c = np.broadcast_arrays(a, b, c)
    plain = np.asarray(a * b + c)
    high, low = _two_product(a, b)
    t_high, t_low = _two_sum(c, low)
    v_high, v_low = _two_sum(high, t_high)
    result = np.asarray(v_high + _add_to_odd(t_low, v_low))
    usual = (np.abs(high) > 2.0**-900) & (np.abs(high) < 2.0**990) & (np.abs(c) < 2.0**990)
    usual &= (np.abs(a) < 2.0**990) & (np.abs(b) < 2.0**990) & (result != 0)
    simple = ~(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)) | (a == 0) | (b == 0)
    result = np.where(simple, plain, result)
    for index in np.argwhere(~usual & ~simple):
        here = tuple(index)
        result[here] = _fma_rational(float(a[here]), float(b[here]), float(c[here]))
    return result


def _fma_rational(a: float, b: float, c: float) -> float:
    total = Fraction(a) * Fraction(b) + Fraction(c)
    if total == 0:  # a zero product counts as the sign of its factors only beside a zero
        return a * b + c if c == 0 else 0.0
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")
