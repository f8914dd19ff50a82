"""What each operation means, on NumPy arrays of values: casts, movement, reductions in any order.

Values are in the dtype's value representation (`dtype.numpy`): bfloat16 and float8 travel as
float32. Every function expects to run inside `np.errstate(all="ignore")`.
"""
from __future__ import annotations

import numpy as np

from muladd.errors import GraphError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType

NARROW = (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2)  # floats that NumPy itself does not have


# --- elementwise -------------------------------------------------------------------------------


def elementwise(op: ops.Op, dtype: DType, args: list[np.ndarray]) -> np.ndarray:
    """The row's NumPy meaning, rounded to the result's dtype."""
    if op is ops.MAX and args[0].dtype.kind == "f":
        return greater(args[0], args[1])
    assert op.numpy is not None
    result = np.asarray(op.numpy(*args))
    return rounded(result, dtype)


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype in NARROW and values.size:
        return dt.round_to(values, dtype).reshape(values.shape)
    return values


def greater(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a if a > b or a is NaN, else b: MAX of floats, which settles signed zeros too."""
    return np.where((a > b) | (a != a), a, b)


# --- casts -------------------------------------------------------------------------------------


def cast(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    """The nearest value of another dtype, rounded once; float to integer truncates, saturates."""
    if target is source:
        return x
    if target is dt.bool_:
        return x != 0
    if source.is_float and target.is_int:
        return _float_to_int(x, target)
    if target.is_float:
        return _to_float(x, source, target)
    return x.astype(target.numpy)


def _float_to_int(x: np.ndarray, target: DType) -> np.ndarray:
    wide = np.trunc(x.astype(np.float64))
    low, high = float(target.min), float(target.max + 1)  # both are powers of two, or zero: exact
    inside = (wide >= low) & (wide < high)
    result = np.where(inside, wide, 0.0).astype(target.numpy)
    result = np.where(wide >= high, target.numpy.type(target.max), result)
    return np.where(wide < low, target.numpy.type(target.min), result)


def _to_float(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    if target in (dt.float64, dt.float32) or source is dt.bool_:
        return x.astype(target.numpy)  # one rounding, by the processor
    if source.is_int:
        x = _sticky_float64(x)
    elif source is not dt.float64:  # float32 holds it exactly
        return narrowed(x.astype(np.float32), target)
    return narrowed(_to_odd_float32(x), target)


def narrowed(x: np.ndarray, target: DType) -> np.ndarray:
    """float32 values as values of a float of 16 or 8 bits."""
    if target is dt.float16:
        return x.astype(np.float16)
    return rounded(x, target)


def _sticky_float64(x: np.ndarray) -> np.ndarray:
    """Integers as float64, where lost low bits leave a one behind, so that a second rounding to a
    narrower float is the correct one."""
    negative = x < 0
    magnitude = np.where(negative, -x.astype(np.int64), x.astype(np.int64)).astype(np.uint64)
    if x.dtype == np.uint64:
        magnitude = x
    lost = (magnitude & np.uint64(0x7FF)) != 0
    high = (magnitude >> np.uint64(11)) | lost.astype(np.uint64)
    large = magnitude >= np.uint64(1 << 53)
    exact = np.where(large, 0, magnitude).astype(np.float64)
    value = np.where(large, high.astype(np.float64) * 2048.0, exact)
    return np.where(negative, -value, value)


def _to_odd_float32(x: np.ndarray) -> np.ndarray:
    """float64 to float32 by round-to-odd: inexact results keep an odd last bit."""
    near = np.asarray(x.astype(np.float32))
    back = near.astype(np.float64)
    bits = np.ascontiguousarray(near).view(np.uint32).reshape(x.shape)
    inexact = (back != x) & ~np.isnan(x)
    toward_zero = bits - (np.abs(back) > np.abs(x)).astype(np.uint32)
    odd = np.where(inexact, toward_zero | np.uint32(1), bits)
    return np.ascontiguousarray(odd.astype(np.uint32)).view(np.float32).reshape(x.shape)


def bitcast(x: np.ndarray, source: DType, target: DType) -> np.ndarray:
    if target is source:
        return x
    stored = np.ascontiguousarray(dt.encode(x, source))
    return np.asarray(dt.decode(stored.view(target.storage), target)).reshape(x.shape)


# --- leaves and movement -----------------------------------------------------------------------


def iota(n: int, dtype: DType) -> np.ndarray:
    return cast(np.arange(n, dtype=np.int64), dt.int64, dtype)


def pad(x: np.ndarray, pads: list[tuple[int, int, int]], fill: object) -> np.ndarray:
    """Elements of value `fill` around and between; a negative low or high takes elements away."""
    shape = [lo + n + hi + max(n - 1, 0) * gap for n, (lo, hi, gap) in zip(x.shape, pads)]
    out = np.full(shape, fill, x.dtype)
    put, take = [], []
    for n, m, (low, _, gap) in zip(x.shape, shape, pads):
        step = gap + 1
        first = max(0, -(low // step))  # the first element that lands inside
        last = min(n, -((low - m) // step))  # one past the last
        take.append(slice(first, max(first, last)))
        start = low + first * step
        put.append(slice(start, start + max(0, last - first) * step, step))
    if all(s.stop > s.start for s in take):
        out[tuple(put)] = x[tuple(take)]
    return out


def take_slice(x: np.ndarray, slices: list[tuple[int, int, int]]) -> np.ndarray:
    """Per axis (start, size, step); a view."""
    index = []
    for n, (start, size, step) in zip(x.shape, slices):
        last = start + (size - 1) * step
        if size < 0 or step == 0 or (size and not (0 <= start < n and 0 <= last < n)):
            raise GraphError(
                f"SLICE: start {start}, size {size}, step {step} leaves an axis of {n}; "
                "a symbolic size was bound to a number that does not fit"
            )
        stop = last + (1 if step > 0 else -1)
        index.append(slice(start, None if stop < 0 else stop, step) if size else slice(0, 0))
    return x[tuple(index)]


# --- reductions in an order of NumPy's choice ---------------------------------------------------


def sum_fast(x: np.ndarray, axes: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Floats are summed in float64 and rounded once, which is closer than any order in float32."""
    if dtype.is_int:
        return np.asarray(np.sum(x, axis=axes, dtype=dtype.numpy))
    total = np.asarray(np.sum(x, axis=axes, dtype=np.float64))
    return cast(total, dt.float64, dtype)


def amax_fast(x: np.ndarray, axes: tuple[int, ...], dtype: DType) -> np.ndarray:
    return np.asarray(np.max(x, axis=axes, initial=dtype.numpy.type(dtype.min)))
