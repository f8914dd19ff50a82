"""Padding by mode, and interpolation to another size."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Node, iota
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.elementwise import floor
from muladd.tensor.handle import Handle
from muladd.tensor.linear import matrix_product
from muladd.tensor.operands import widened
from muladd.tensor.windows import pad_or_cut

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Resample(Handle):
    """What makes tensors larger or smaller along their last axes."""

    __slots__ = ()

    def pad(self, pad: Any, mode: str = "constant", value: Any = 0.0) -> Tensor:
        """(low, high) of the last axis, then of the one before, ...; negative cuts off.

        Also a list of (low, high) pairs, one per axis from the first. Modes: constant, reflect,
        replicate, circular.
        """
        pairs = _pairs(self, pad)
        if mode == "constant":
            return self._result(pad_or_cut(self.node, pairs, 0 if value is None else value))
        modes = {"reflect": _reflected, "replicate": _replicated, "circular": _wrapped}
        if mode not in modes:
            raise ShapeError(
                f"pad: mode={mode!r}, expected constant, reflect, replicate or circular"
            )
        x = self.node
        for axis, (low, high) in enumerate(pairs):
            if low or high:
                x = _cut(x, axis, low, high)
                x = modes[mode](x, axis, max(low, 0), max(high, 0))
        return self._result(x)

    def interpolate(
        self, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
        align_corners: bool | None = None, antialias: bool = False,
        recompute_scale_factor: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, C, ...) resampled: nearest, nearest-exact, linear, bilinear, trilinear, bicubic,
        or area.

        Every axis is one product with a small matrix of weights. With recompute_scale_factor the
        scale is taken from the whole sizes.
        """
        d = self.ndim - 2
        if d < 1 or (size is None) == (scale_factor is None):
            raise ShapeError("interpolate: expected (N, C, ...) and either size or scale_factor")
        known = {"nearest": d, "nearest-exact": d, "area": d, "linear": 1, "bilinear": 2,
                 "bicubic": 2, "trilinear": 3}  # fmt: skip
        if known.get(mode) != d or antialias:
            raise ShapeError(
                f"interpolate: mode={mode!r} (antialias={antialias}) is not known for {d} axes"
            )
        sizes, scales = _sizes(self, size, scale_factor, d)
        if recompute_scale_factor:
            scales = [None] * d
        if mode == "area":
            return getattr(self, f"adaptive_avg_pool{d}d")(sizes)
        x = widened(self.node)
        for axis, (m, scale) in enumerate(zip(sizes, scales), 2):
            n: Any = x.shape[axis]
            if mode.startswith("nearest"):
                x = _nearest(x, axis, n, m, scale, mode == "nearest-exact")
            elif m != n or mode == "bicubic":
                x = _weighted(x, axis, n, m, scale, bool(align_corners), mode == "bicubic")
        return self._result(g.cast(x, self.dtype))

    def pixel_shuffle(self, upscale_factor: int) -> Tensor:
        """(..., C r r, H, W) to (..., C, H r, W r)."""
        r = upscale_factor
        *lead, c, h, w = self.shape
        if c % (r * r):  # type: ignore[operator]
            raise ShapeError(f"pixel_shuffle: {c} channels are not a multiple of {r * r}")
        x = self.reshape(*lead, c // (r * r), r, r, h, w)  # type: ignore[operator]
        k = len(lead)
        x = x.permute(*range(k), k, k + 3, k + 1, k + 4, k + 2)
        return x.reshape(*lead, c // (r * r), h * r, w * r)  # type: ignore[operator]

    def pixel_unshuffle(self, downscale_factor: int) -> Tensor:
        """(..., C, H r, W r) to (..., C r r, H, W)."""
        r = downscale_factor
        *lead, c, h, w = self.shape
        if h % r or w % r:  # type: ignore[operator]
            raise ShapeError(f"pixel_unshuffle: {h} x {w} is not a multiple of {r}")
        x = self.reshape(*lead, c, h // r, r, w // r, r)  # type: ignore[operator]
        k = len(lead)
        x = x.permute(*range(k), k, k + 2, k + 4, k + 1, k + 3)
        return x.reshape(*lead, c * r * r, h // r, w // r)  # type: ignore[operator]

    def channel_shuffle(self, groups: int) -> Tensor:
        """(N, C, ...) with the channels of the groups interleaved."""
        return self.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pairs(x: Handle, pad: Any) -> list[tuple[int, int]]:
    if isinstance(pad, int):
        pad = (pad, pad) * x.ndim
    pad = list(pad)
    if pad and isinstance(pad[0], list | tuple):
        if len(pad) != x.ndim:
            raise ShapeError(f"pad: {len(pad)} pairs for {x.ndim} axes")
        return [(low, high) for low, high in pad]
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ShapeError(f"pad: {pad} is not pairs of (low, high) for at most {x.ndim} axes")
    given = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    pairs = [(0, 0)] * (x.ndim - len(given)) + given[::-1]
    for (low, high), n in zip(pairs, x.shape):
        if isinstance(n, int) and n + min(low, 0) + min(high, 0) < 0:
            raise ShapeError(f"pad: ({low}, {high}) cuts off more than the size {n} of an axis")
    return pairs


def _cut(x: Node, axis: int, low: int, high: int) -> Node:
    pads = [(0, 0)] * x.ndim
    pads[axis] = (min(low, 0), min(high, 0))
    return pad_or_cut(x, pads)


def _reflected(x: Node, axis: int, low: int, high: int) -> Node:
    n: Any = x.shape[axis]
    if max(low, high) >= n:
        raise ShapeError(f"pad: reflecting needs less than the size {n}, got ({low}, {high})")
    parts = [x]
    if low:
        parts.insert(0, g.flip(g.cut(x, axis, 1, low), axis))
    if high:
        parts.append(g.flip(g.cut(x, axis, n - 1 - high, high), axis))
    return g.concatenate(parts, axis)


def _replicated(x: Node, axis: int, low: int, high: int) -> Node:
    n: Any = x.shape[axis]

    def repeated(start: int, count: int) -> Node:
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        return g.expand(g.cut(x, axis, start, 1), shape)

    parts = [x]
    if low:
        parts.insert(0, repeated(0, low))
    if high:
        parts.append(repeated(n - 1, high))
    return g.concatenate(parts, axis)


def _wrapped(x: Node, axis: int, low: int, high: int) -> Node:
    n: Any = x.shape[axis]
    if max(low, high) > n:
        raise ShapeError(f"pad: wrapping round needs at most the size {n}, got ({low}, {high})")
    parts = [x]
    if low:
        parts.insert(0, g.cut(x, axis, n - low, low))
    if high:
        parts.append(g.cut(x, axis, 0, high))
    return g.concatenate(parts, axis)


def _sizes(x: Handle, size: Any, scale: Any, d: int) -> tuple[list[int], list[float | None]]:
    if size is not None:
        return list(g.pair(size, d, "interpolate", "size")), [None] * d
    factors = list(scale) if isinstance(scale, Sequence) else [scale] * d
    return [int(n * f) for n, f in zip(x.shape[2:], factors)], factors  # type: ignore[operator]


def _nearest(x: Node, axis: int, n: int, m: int, scale: float | None, exact: bool) -> Node:
    if m % n == 0 and not exact and scale in (None, m / n):
        shape = (*x.shape[: axis + 1], m // n, *x.shape[axis + 1 :])
        wide = g.expand(g.unsqueeze(x, axis + 1), shape)
        return g.reshape(wide, (*x.shape[:axis], m, *x.shape[axis + 1 :]))
    if scale:
        place = g.mul(g.add(_line(m), 0.5 if exact else 0.0), 1 / scale)
        index = g.cast(place, dt.int64)
    elif exact:
        index = g.div(g.add(g.mul(iota(m), 2 * n), n), 2 * m)
    else:
        index = g.div(g.mul(iota(m), n), m)
    index = g.where(g.lt(index, n), index, n - 1)
    order = [axis, *[a for a in range(x.ndim) if a != axis]]
    rows = g.select_rows(g.permute(x, order), index)
    return g.permute(rows, [order.index(a) for a in range(x.ndim)])


def _line(m: int) -> Node:
    return g.cast(iota(m), dt.float64)


def _weighted(
    x: Node, axis: int, n: int, m: int, scale: float | None, align: bool, cubic: bool
) -> Node:
    """The axis times a matrix of interpolation weights (n, m)."""
    if align:
        place = g.mul(_line(m), (n - 1) / (m - 1) if m > 1 else 0.0)
    else:
        step = 1 / scale if scale else n / m
        place = g.sub(g.mul(g.add(_line(m), 0.5), step), 0.5)
        if not cubic:
            place = g.where(g.lt(place, 0.0), 0.0, place)
    low = floor(place)
    rest = g.sub(place, low)
    if cubic:
        taps = [
            (-1, _cubic_outer(g.add(rest, 1.0))), (0, _cubic_inner(rest)),
            (1, _cubic_inner(g.sub(1.0, rest))), (2, _cubic_outer(g.sub(2.0, rest))),
        ]  # fmt: skip
    else:
        taps = [(0, g.sub(1.0, rest)), (1, rest)]
    rows = g.along(iota(n), 0, (n, m))
    weights: Node | None = None
    for offset, weight in taps:
        index = g.add(g.cast(low, dt.int64), offset)
        index = g.where(g.lt(index, 0), 0, g.where(g.lt(index, n), index, n - 1))
        hit = g.eq(g.along(index, 1, (n, m)), rows)
        term = g.where(hit, g.along(g.cast(weight, x.dtype), 1, (n, m)), 0.0)
        weights = term if weights is None else g.add(weights, term)
    assert weights is not None
    order = [*[a for a in range(x.ndim) if a != axis], axis]
    product = matrix_product(g.permute(x, order), weights, "interpolate")
    return g.permute(product, [order.index(a) for a in range(x.ndim)])


CUBIC = -0.75  # Keys (1981), with the free parameter that torch uses


def _cubic_inner(t: Node) -> Node:
    """The cubic convolution kernel for |t| <= 1."""
    inner = g.sub(g.mul(t, CUBIC + 2), CUBIC + 3)
    return g.add(g.mul(g.mul(inner, t), t), 1.0)


def _cubic_outer(t: Node) -> Node:
    """The cubic convolution kernel for 1 < |t| < 2."""
    inner = g.add(g.mul(g.sub(g.mul(t, CUBIC), 5 * CUBIC), t), 8 * CUBIC)
    return g.sub(g.mul(inner, t), 4 * CUBIC)


