"""Numbers to blocks: rounding for the simple kinds, a search for good scales for the K kinds."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from muladd.errors import ArgumentError
from muladd.formats.quant.decode import kind, stored_shape
from muladd.formats.quant.kinds import KINDS
from muladd.ir import dtype as dt

_AT_ONCE = 1 << 15  # elements quantised together: their temporaries stay in the cache


def quantize(values: np.ndarray, kind_: Any) -> np.ndarray:
    """Numbers (..., elements) as the bytes of a kind, uint8 (..., bytes).

    Plain kinds are cast. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 round as ggml's reference does, in every
    bit; Q4_K and Q6_K try as many scales as it does. Raises ArgumentError for kinds that cannot be
    written and for values that are not finite (or of which a scale would exceed float16),
    ShapeError where a row is no whole number of blocks.
    """
    k = kind(kind_)
    values = np.asarray(values)
    shape = stored_shape(k, values.shape)
    if k.dtype is not None:
        stored = dt.encode(values.astype(k.dtype.numpy), k.dtype).reshape(-1)
        little = stored.astype(k.dtype.storage.newbyteorder("<"), copy=False)
        return np.ascontiguousarray(little).view(np.uint8).reshape(shape)
    if k.name not in QUANTIZERS:
        raise ArgumentError(f"quantize: {k.name} is read only; expected one of "
                            f"{', '.join(QUANTIZERS)}, or a plain kind")  # fmt: skip
    blocks = np.ascontiguousarray(values).reshape(-1, k.elements)
    out = np.empty((len(blocks), k.bytes), np.uint8)
    step = max(1, _AT_ONCE // k.elements)
    for i in range(0, len(blocks), step):
        some = blocks[i : i + step].astype(np.float32)
        if not np.isfinite(some).all():
            raise ArgumentError(f"quantize: values for {k.name} are not all finite; block "
                                f"{i + int(np.argmin(np.isfinite(some).all(1)))} holds NaN or an "
                                "infinity")  # fmt: skip
        out[i : i + step] = QUANTIZERS[k.name](some)
    return out.reshape(shape)


# --- one scale a block ---------------------------------------------------------------------------


def _half(x: np.ndarray) -> np.ndarray:
    """float32 (..., n) as the bytes of float16 (..., 2 n)."""
    with np.errstate(over="ignore"):
        half = x.astype("<f2")
    if not np.isfinite(half).all():
        raise ArgumentError(f"quantize: a scale of {np.abs(x).max():.3g} exceeds float16; the "
                            "values are too large for this kind")  # fmt: skip
    return half.view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _pack(fields: np.ndarray, width: int, run: int) -> np.ndarray:
    """The inverse of Block.bits: fields (blocks, n) to bytes (blocks, n * width / 8)."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    runs = fields.astype(np.uint8).reshape(len(fields), -1, len(shifts), run)
    return np.bitwise_or.reduce(runs << shifts[:, None], axis=2).reshape(len(fields), -1)


def _symmetric(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """Q4_0 and Q5_0: the element of greatest magnitude becomes the least code."""
    middle = 1 << (bits - 1)

    def quantizer(x: np.ndarray) -> np.ndarray:
        greatest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
        d = greatest / np.float32(-middle)
        q = np.trunc(x * _inverse(d) + np.float32(middle + 0.5)).clip(0, 2 * middle - 1)
        return np.concatenate([_half(d), *_split(q, bits)], 1)

    return quantizer


def _with_minimum(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """Q4_1 and Q5_1: codes count up from the least element."""
    most = (1 << bits) - 1

    def quantizer(x: np.ndarray) -> np.ndarray:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        d = (high - low) / np.float32(most)
        q = np.trunc((x - low) * _inverse(d) + np.float32(0.5)).clip(0, most)
        return np.concatenate([_half(d), _half(low), *_split(q, bits)], 1)

    return quantizer


def _split(q: np.ndarray, bits: int) -> list[np.ndarray]:
    """Codes of 4 or 5 bits as bytes: the fifth bits first, then the lower four."""
    codes = q.astype(np.uint8)
    high = [_pack(codes >> 4, 1, 1)] if bits == 5 else []
    return [*high, _pack(codes & 15, 4, 16)]


def _q8_0(x: np.ndarray) -> np.ndarray:
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.floor(np.abs(scaled))
    q = np.copysign(whole + np.floor(2 * (np.abs(scaled) - whole)), scaled)  # halves go outwards
    return np.concatenate([_half(d), q.astype(np.int8).view(np.uint8)], 1)


# --- scales of scales ----------------------------------------------------------------------------


def _fit_with_minimum(x: np.ndarray, most: int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, minimum), both >= 0, of groups (g, n), such that scale * code - minimum is near x.

    For each candidate (most + step codes from the minimum to the greatest), elements are rounded,
    and scale and minimum fitted to the codes by weighted least squares; the fit with the least
    error wins, and its minimum is where the next candidate begins. Large elements weigh more.
    """
    x = np.ascontiguousarray(x.T)  # (n, g): sums over n are sums of rows
    weight = np.sqrt((x * x).mean(0)) + np.abs(x)
    high, minimum = x.max(0), np.minimum(x.min(0), 0)
    weighted = weight * x
    sum_w, sum_x = weight.sum(0), weighted.sum(0)
    scale = (high - minimum) / most
    best = np.full(len(minimum), np.inf, np.float32)
    for i, step in enumerate([np.float32(0), *steps]):
        per_unit = (most + step) * _inverse(high - minimum)
        code = np.rint((x - minimum) * per_unit).clip(0, most)
        this_scale, this_minimum, fits = scale, minimum, True  # first the plain range
        if i:
            wl = weight * code
            sum_l, sum_l2, sum_xl = wl.sum(0), (wl * code).sum(0), (weighted * code).sum(0)
            d = sum_w * sum_l2 - sum_l * sum_l
            fits, inverse = d > 0, _inverse(d)
            this_scale = (sum_w * sum_xl - sum_x * sum_l) * inverse
            this_minimum = (sum_l2 * sum_x - sum_l * sum_xl) * inverse
            positive = this_minimum > 0  # it is subtracted, and has no sign: then it is 0
            this_scale = np.where(positive, sum_xl * _inverse(sum_l2), this_scale)
            this_minimum = np.minimum(this_minimum, 0)
        miss = this_scale * code + this_minimum - x
        error = (weight * miss * miss).sum(0)
        better = (error < best) & fits
        best, scale = np.where(better, error, best), np.where(better, this_scale, scale)
        minimum = np.where(better, this_minimum, minimum)
    return scale, -minimum


def _q4_k(x: np.ndarray) -> np.ndarray:
    steps = np.arange(-10, 11, dtype=np.float32) / 10
    groups = x.reshape(-1, 32)
    scale, minimum = (f.reshape(-1, 8) for f in _fit_with_minimum(groups, 15, steps))
    d, whole_scale = _six_bits(scale)
    d_minimum, whole_minimum = _six_bits(minimum)
    step = (_round_half(d) * whole_scale).reshape(-1, 1)
    low = (_round_half(d_minimum) * whole_minimum).reshape(-1, 1)
    q = np.rint((groups + low) * _inverse(step)).clip(0, 15)
    return np.concatenate([
        _half(d), _half(d_minimum), _pack_six(whole_scale, whole_minimum),
        _pack(q.reshape(-1, 256), 4, 32),
    ], 1)  # fmt: skip


def _six_bits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers >= 0 (blocks, 8) as d (blocks, 1) times whole numbers 0 to 63."""
    greatest = x.max(1, keepdims=True)
    whole = np.rint(x * (63 * _inverse(greatest))).clip(0, 63)
    return greatest / np.float32(63), whole.astype(np.float32)


def _round_half(x: np.ndarray) -> np.ndarray:
    return _half(x).view("<f2").astype(np.float32)


def _pack_six(scale: np.ndarray, minimum: np.ndarray) -> np.ndarray:
    """The inverse of the 6-bit fields of Q4_K: (blocks, 8) twice to (blocks, 12) bytes."""
    s, m = scale.astype(np.uint8), minimum.astype(np.uint8)
    return np.concatenate([
        s[:, :4] | (s[:, 4:] >> 4) << 6,
        m[:, :4] | (m[:, 4:] >> 4) << 6,
        (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
    ], 1)  # fmt: skip


def _fit_symmetric(x: np.ndarray, middle: int, steps: np.ndarray) -> np.ndarray:
    """The scale of groups (g, n), such that scale * code is near x, for codes -middle to
    middle - 1. Candidates put the greatest element near -middle; elements weigh their square."""
    x = np.ascontiguousarray(x.T)
    greatest = np.take_along_axis(x, np.abs(x).argmax(0)[None], 0)[0]
    per_unit = _inverse(greatest)
    square = x * x
    cube = square * x
    scale = np.zeros(x.shape[1], np.float32)
    best = np.zeros(x.shape[1], np.float32)  # the part of x's weighted square that the fit explains
    for step in steps:
        code = np.rint(x * (-(middle + step) * per_unit)).clip(-middle, middle - 1)
        sum_xl, sum_l2 = (cube * code).sum(0), (square * code * code).sum(0)
        this = sum_xl * _inverse(sum_l2)
        better = sum_xl * this > best
        best, scale = np.where(better, sum_xl * this, best), np.where(better, this, scale)
    return scale


def _q6_k(x: np.ndarray) -> np.ndarray:
    groups = x.reshape(-1, 16)
    steps = np.array([0, *range(-9, 0), *range(1, 10)], np.float32) / 10
    scale = _fit_symmetric(groups, 32, steps).reshape(-1, 16)
    greatest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)
    whole = np.rint(scale * (-128 * _inverse(greatest))).clip(-128, 127)
    d = greatest / np.float32(-128)
    step = (_round_half(d) * whole).reshape(-1, 1)
    codes = np.rint(groups * _inverse(step)).clip(-32, 31) + 32
    q = codes.reshape(-1, 256).astype(np.uint8)
    return np.concatenate([
        _pack(q & 15, 4, 64), _pack(q >> 4, 2, 32), whole.astype(np.int8).view(np.uint8), _half(d)
    ], 1)  # fmt: skip


QUANTIZERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q4_0": _symmetric(4), "Q4_1": _with_minimum(4), "Q5_0": _symmetric(5),
    "Q5_1": _with_minimum(5), "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip
assert QUANTIZERS.keys() <= KINDS.keys()
