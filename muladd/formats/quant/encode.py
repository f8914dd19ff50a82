"""Numbers to blocks: rounding for the simple kinds, a search for good scales for the K kinds.

A quantiser is a graph from blocks of numbers, (blocks, elements) float32, to the fields of blocks
in their order, each (blocks, bytes) uint8. It runs in the exact profile: the bytes are the same on
every machine.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from muladd import config
from muladd.errors import ArgumentError
from muladd.formats.quant.decode import kind, scales, stored_shape
from muladd.formats.quant.kinds import KINDS, Kind
from muladd.ir import dtype as dt
from muladd.tensor import Tensor
from muladd.tensor.functional import scan
from muladd.tensor.jit import jit

_AT_ONCE = 1 << 17  # elements quantised together, always so many: one program for each kind


def quantize(values: np.ndarray, kind_: Any) -> np.ndarray:
    """Numbers (..., elements) as the bytes of a kind, uint8 (..., bytes).

    Plain kinds are cast. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 round as ggml's reference does, in every
    byte; Q4_K and Q6_K try as many scales as it does. Raises ArgumentError for kinds that cannot be
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
    step = _AT_ONCE // k.elements
    for i in range(0, len(blocks), step):
        some = blocks[i : i + step].astype(np.float32)
        if not np.isfinite(some).all():
            raise ArgumentError(f"quantize: values for {k.name} are not all finite; block "
                                f"{i + int(np.argmin(np.isfinite(some).all(1)))} holds NaN or an "
                                "infinity")  # fmt: skip
        out[i : i + step] = _quantized(some, k, step)
    return out.reshape(shape)


def _quantized(blocks: np.ndarray, k: Kind, step: int) -> np.ndarray:
    full = np.zeros((step, k.elements), np.float32)
    full[: len(blocks)] = blocks
    with config.context(PROFILE="exact"):
        fields = _program(k.name)(Tensor(full, device="CPU"))
        found = np.concatenate([field.numpy()[: len(blocks)] for field in fields], 1)
    if not all(np.isfinite(x).all() for x in scales(found, k) if x is not None):
        raise ArgumentError(f"quantize: values up to {np.abs(blocks).max():.3g} are too large for "
                            f"{k.name}: a scale exceeds float16")  # fmt: skip
    return found


@cache
def _program(name: str) -> Callable[[Tensor], Sequence[Tensor]]:
    return jit(QUANTIZERS[name])


# --- one scale a block ---------------------------------------------------------------------------


def _bytes_of_half(x: Tensor) -> Tensor:
    """float32 (blocks, 1) as the bytes of float16, (blocks, 2)."""
    bits = x.cast("float16").bitcast("uint16")
    return Tensor.cat(bits & 255, bits >> 8, dim=-1).cast("uint8")


def _inverse(d: Tensor) -> Tensor:
    """1 / d, or 0 where that is no number."""
    inverse = 1 / d
    return (inverse.abs() < float("inf")).where(inverse, 0.0)


def _greatest(x: Tensor) -> Tensor:
    """The element of greatest magnitude, the first if several: (n, m) to (n, 1)."""
    place = Tensor.arange(x.shape[-1], dtype="int32", device=x.device)
    magnitude = x.abs()
    top = magnitude == magnitude.amax(-1, keepdim=True)
    first = top.where(place, x.shape[-1]).amin(-1, keepdim=True)
    return (place == first).where(x, 0.0).sum(-1, keepdim=True)


def _pack(fields: Tensor, width: int, run: int) -> Tensor:
    """The inverse of Block.bits: fields (blocks, n) to bytes (blocks, n * width / 8)."""
    count = 8 // width
    runs = fields.cast("int32").reshape(fields.shape[0], -1, count, run)
    parts = [runs[:, :, i] * (1 << (i * width)) for i in range(count)]
    whole = sum(parts[1:], parts[0])
    return whole.cast("uint8").reshape(fields.shape[0], -1)


def _symmetric(bits: int) -> Callable[[Tensor], Sequence[Tensor]]:
    """Q4_0 and Q5_0: the element of greatest magnitude becomes the least code."""
    middle = 1 << (bits - 1)

    def quantizer(x: Tensor) -> Sequence[Tensor]:
        d = _greatest(x) / -float(middle)
        q = (x * _inverse(d) + (middle + 0.5)).cast("int32").clamp(0, 2 * middle - 1)
        return [_bytes_of_half(d), *_split(q, bits)]

    return quantizer


def _with_minimum(bits: int) -> Callable[[Tensor], Sequence[Tensor]]:
    """Q4_1 and Q5_1: codes count up from the least element."""
    most = (1 << bits) - 1

    def quantizer(x: Tensor) -> Sequence[Tensor]:
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        d = (high - low) / float(most)
        q = ((x - low) * _inverse(d) + 0.5).cast("int32").clamp(0, most)
        return [_bytes_of_half(d), _bytes_of_half(low), *_split(q, bits)]

    return quantizer


def _split(q: Tensor, bits: int) -> list[Tensor]:
    """Codes of 4 or 5 bits as bytes: the fifth bits first, then the lower four."""
    high = [_pack(q >> 4, 1, 1)] if bits == 5 else []
    return [*high, _pack(q & 15, 4, 16)]


def _q8_0(x: Tensor) -> Sequence[Tensor]:
    d = x.abs().amax(-1, keepdim=True) / 127.0
    scaled = x * _inverse(d)
    size = scaled.abs()
    whole = size.floor()
    outwards = whole + ((size - whole) * 2).floor()  # halves are rounded away from zero
    q = (scaled < 0).where(-outwards, outwards).cast("int8")
    return [_bytes_of_half(d), q.bitcast("uint8")]


# --- scales of scales ----------------------------------------------------------------------------

_WHOLE = 1.5 * 2**23  # float32 numbers beside this are whole: adding it rounds, halves to even


def _nearest(x: Tensor) -> Tensor:
    """The nearest whole number, of numbers below 2**22."""
    return (x + _WHOLE) - _WHOLE


def _fit_with_minimum(x: Tensor, most: float, steps: np.ndarray) -> tuple[Tensor, Tensor]:
    """(scale, minimum), both >= 0, of groups (g, n), such that scale * code - minimum is near x:
    (g, 1) each.

    For each candidate (most + step codes from the minimum to the greatest), elements are rounded,
    and scale and minimum fitted to the codes by weighted least squares; the fit with the least
    error wins, and its minimum is where the next candidate begins. Large elements weigh more.
    """

    def total(y: Tensor) -> Tensor:
        return y.sum(-1, keepdim=True)

    weight = ((x * x).mean(-1, keepdim=True)).sqrt() + x.abs()
    weighted = weight * x
    sum_w, sum_x = total(weight), total(weighted)
    high, low = x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).minimum(0.0)

    def error_of(scale: Tensor, minimum: Tensor, code: Tensor) -> Tensor:
        miss = scale * code + minimum - x
        return total(weight * miss * miss)

    def codes(span: Tensor, minimum: Tensor) -> Tensor:
        return _nearest((x - minimum) * (span * _inverse(high - minimum))).clamp(0, most)

    def candidate(best: tuple[Tensor, Tensor, Tensor], step: Tensor) -> tuple[Any, Tensor]:
        error, scale, minimum = best
        code = codes(step + most, minimum)
        wl = weight * code
        sum_l, sum_l2, sum_xl = total(wl), total(wl * code), total(weighted * code)
        d = sum_w * sum_l2 - sum_l * sum_l
        inverse = _inverse(d)
        this_scale = (sum_w * sum_xl - sum_x * sum_l) * inverse
        this_minimum = (sum_l2 * sum_x - sum_l * sum_xl) * inverse
        positive = this_minimum > 0  # it is subtracted, and has no sign: then it is 0
        this_scale = positive.where(sum_xl * _inverse(sum_l2), this_scale)
        this_minimum = this_minimum.minimum(0.0)
        this_error = error_of(this_scale, this_minimum, code)
        better = (this_error < error) & (d > 0)
        found = (better.where(this_error, error), better.where(this_scale, scale),
                 better.where(this_minimum, minimum))  # fmt: skip
        return found, step

    plain = (high - low) / most
    start = error_of(plain, low, codes(Tensor(most, "float32", x.device), low))
    (_, scale, minimum), _ = scan(candidate, (start, plain, low), Tensor(steps, device=x.device))
    return scale, -minimum


def _q4_k(x: Tensor) -> Sequence[Tensor]:
    steps = np.arange(-10, 11, dtype=np.float32) / 10
    groups = x.reshape(-1, 32)
    scale, minimum = (f.reshape(-1, 8) for f in _fit_with_minimum(groups, 15.0, steps))
    d, whole_scale = _six_bits(scale)
    d_minimum, whole_minimum = _six_bits(minimum)
    step = (_rounded(d) * whole_scale).reshape(-1, 1)
    low = (_rounded(d_minimum) * whole_minimum).reshape(-1, 1)
    q = _nearest((groups + low) * _inverse(step)).clamp(0, 15)
    s, m = whole_scale.cast("int32"), whole_minimum.cast("int32")
    six = [s[:, :4] + (s[:, 4:] >> 4) * 64, m[:, :4] + (m[:, 4:] >> 4) * 64,
           (s[:, 4:] & 15) + (m[:, 4:] & 15) * 16]  # fmt: skip
    return [_bytes_of_half(d), _bytes_of_half(d_minimum), *[f.cast("uint8") for f in six],
            _pack(q.reshape(-1, 256), 4, 32)]  # fmt: skip


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers >= 0 (blocks, 8) as d (blocks, 1) times whole numbers 0 to 63."""
    greatest = x.amax(-1, keepdim=True)
    return greatest / 63.0, _nearest(x * (63.0 * _inverse(greatest))).clamp(0, 63)


def _rounded(d: Tensor) -> Tensor:
    return d.cast("float16").cast("float32")


def _fit_symmetric(x: Tensor, middle: int, steps: np.ndarray) -> Tensor:
    """The scale of groups (g, n), such that scale * code is near x, for codes -middle to
    middle - 1: (g,). Candidates put the greatest element near -middle, the one that explains most
    of x's square wins; elements weigh their square."""
    per_unit = _inverse(_greatest(x))
    candidates = -(Tensor(steps, device=x.device) + float(middle)) * per_unit  # (g, c)
    x = x.unsqueeze(1)
    code = _nearest(x * candidates.unsqueeze(-1)).clamp(-middle, middle - 1)  # (g, c, n)
    wl = x * x * code
    sum_xl, sum_l2 = (wl * x).sum(-1), (wl * code).sum(-1)
    scale = sum_xl * _inverse(sum_l2)
    explained = sum_xl * scale
    place = Tensor.arange(len(steps), dtype="int32", device=x.device)
    top = explained == explained.amax(-1, keepdim=True)
    first = top.where(place, len(steps)).amin(-1, keepdim=True)
    return (place == first).where(scale, 0.0).sum(-1)


def _q6_k(x: Tensor) -> Sequence[Tensor]:
    groups = x.reshape(-1, 16)
    steps = np.array([0, *range(-9, 0), *range(1, 10)], np.float32) / 10
    scale = _fit_symmetric(groups, 32, steps).reshape(-1, 16)
    greatest = _greatest(scale)
    whole = _nearest(scale * (-128.0 * _inverse(greatest))).clamp(-128, 127)
    d = greatest / -128.0
    step = (_rounded(d) * whole).reshape(-1, 1)
    code = _nearest(groups * _inverse(step)).clamp(-32, 31).cast("int32").reshape(-1, 256) + 32
    return [_pack(code & 15, 4, 64), _pack(code >> 4, 2, 32),
            whole.cast("int8").bitcast("uint8"), _bytes_of_half(d)]  # fmt: skip


QUANTIZERS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "Q4_0": _symmetric(4), "Q4_1": _with_minimum(4), "Q5_0": _symmetric(5),
    "Q5_1": _with_minimum(5), "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k,
}  # fmt: skip
assert QUANTIZERS.keys() <= KINDS.keys()
