"""Convolutions in one to three dimensions, and their transposes.

The product has shape (N, groups, out, in, *kernel, *pixels): the pixels come last, and the sum
runs over (in, *kernel) before them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from muladd.errors import ShapeError
from muladd.ir import Body, CallArg, Dim, DType, Node, Shape, make, ops, param, sym
from muladd.tensor import graph as g
from muladd.tensor import phased
from muladd.tensor.fractional import fractional
from muladd.tensor.handle import Handle
from muladd.tensor.linear import common_dtype
from muladd.tensor.windows import pad_or_cut, windows
from muladd.transform import gradient

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Convolution(Handle):
    """conv1d/2d/3d and conv_transpose1d/2d/3d with torch's arguments."""

    __slots__ = ()

    def conv1d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        """(N, C, L) with (O, C/groups, k) to (N, O, L')."""
        return _conv("conv1d", 1, self, weight, bias, stride, padding, dilation, groups)

    def conv2d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        """(N, C, H, W) with (O, C/groups, kh, kw) to (N, O, H', W').

        padding: a number, one per axis, a (low, high) pair per axis, 'valid' or 'same'.
        """
        return _conv("conv2d", 2, self, weight, bias, stride, padding, dilation, groups)

    def conv3d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        """(N, C, D, H, W) with (O, C/groups, kd, kh, kw) to (N, O, D', H', W')."""
        return _conv("conv3d", 3, self, weight, bias, stride, padding, dilation, groups)

    def conv_transpose1d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        """The transpose of conv1d: (N, C, L) with (C, O/groups, k) to (N, O, L')."""
        return _transposed("conv_transpose1d", 1, self, weight, bias, stride, padding,
                           output_padding, groups, dilation)  # fmt: skip

    def conv_transpose2d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        """The transpose of conv2d: (N, C, H, W) with (C, O/groups, kh, kw) to (N, O, H', W')."""
        return _transposed("conv_transpose2d", 2, self, weight, bias, stride, padding,
                           output_padding, groups, dilation)  # fmt: skip

    def conv_transpose3d(
        self, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Tensor:  # fmt: skip
        """The transpose of conv3d."""
        return _transposed("conv_transpose3d", 3, self, weight, bias, stride, padding,
                           output_padding, groups, dilation)  # fmt: skip


def _check(who: str, d: int, x: Handle, w: Handle, groups: int, channels: int) -> None:
    if x.ndim not in (d + 1, d + 2) or w.ndim != d + 2:
        raise ShapeError(
            f"{who}: expected an input of {d + 2} axes (or {d + 1} without a batch) and a weight "
            f"of {d + 2}, got {list(x.shape)} and {list(w.shape)}"
        )
    if groups < 1 or x.shape[-d - 1] != channels or w.shape[0] % groups:
        raise ShapeError(
            f"{who}: an input of {x.shape[-d - 1]} channels does not fit a weight of "
            f"{list(w.shape)} with groups={groups}, which takes {channels}"
        )


def _conv(
    who: str, d: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> Any:  # fmt: skip
    _check(who, d, x, weight, groups, weight.shape[1] * groups if weight.ndim > 1 else 0)
    if x.ndim == d + 1:
        batch = x.unsqueeze(0)
        return _conv(who, d, batch, weight, bias, stride, padding, dilation, groups).squeeze(0)
    steps, dilations = _paces(who, d, stride, dilation)
    kernel = weight.shape[2:]
    if padding == "same" and any(s != 1 for s in steps):
        raise ShapeError(f"{who}: padding='same' needs stride 1, got {stride}")
    pads = paddings(who, d, padding, kernel, dilations)
    dtype = common_dtype(who, x, weight)
    plan = _Plan(tuple(pads), steps, dilations, groups, who)
    result = convolve(g.cast(x.node, dtype), g.cast(weight.node, dtype), plan)
    return _with_bias(who, x._result(result), bias, d)


def _paces(who: str, d: int, stride: Any, dilation: Any) -> tuple[Any, Any]:
    steps, dilations = g.pair(stride, d, who, "stride"), g.pair(dilation, d, who, "dilation")
    if min(*steps, *dilations) < 1:
        raise ShapeError(f"{who}: stride {stride} and dilation {dilation} must be at least 1")
    return steps, dilations


def _with_bias(who: str, x: Any, bias: Any, d: int) -> Any:
    if bias is None:
        return x
    if bias.shape != (x.shape[1],):
        raise ShapeError(f"{who}: the bias is {list(bias.shape)}, expected [{x.shape[1]}]")
    return x + bias.reshape((-1, *[1] * d))


def paddings(
    who: str, d: int, padding: Any, kernel: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """What conv's `padding` means, as (low, high) per axis."""
    if padding == "valid":
        return [(0, 0)] * d
    if padding == "same":
        whole = [dilation * (k - 1) for k, dilation in zip(kernel, dilations)]
        return [(n // 2, n - n // 2) for n in whole]
    if isinstance(padding, str):
        raise ShapeError(f"{who}: padding={padding!r}, expected a number, 'same' or 'valid'")
    if isinstance(padding, list | tuple) and all(isinstance(p, list | tuple) for p in padding):
        if len(padding) != d:
            raise ShapeError(f"{who}: padding={padding!r} has {len(padding)} pairs, expected {d}")
        return [(p[0], p[1]) for p in padding]
    return [(p, p) for p in g.pair(padding, d, who, "padding")]


@dataclass(frozen=True)
class _Plan:
    """A convolution without its operands."""

    pads: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    who: str

    def forth(self, x: Node, w: Node, sort: bool = True) -> Node:
        """x (N, C, *S) with w (O, C/groups, *kernel) to (N, O, *pixels). sort: strided windows may
        have the image's places sorted (see `phased`), which the derivative for w does not want."""
        d, taps = len(self.steps), w.shape[2:]
        x = g.cast(x, g.accumulator(x.dtype))
        if sort and phased.serves(x.shape[2:], taps, self.pads, self.steps, self.dilations):
            parts = phased.windows(x, taps, self.pads, self.steps)
        else:
            x = pad_or_cut(x, [(0, 0), (0, 0), *self.pads])
            parts = windows(x, range(2, 2 + d), taps, self.steps, self.dilations, self.who)
        return _summed(parts, w, self.groups)

    def back(self, y: Node, w: Node, sizes: Sequence[Dim]) -> Node:
        """The transpose of `forth`: (N, O, *pixels) to (N, C, *sizes), a convolution too, of y with
        zeros between its elements, and with the kernel turned round."""
        d, taps = len(self.steps), cast(Sequence[Any], w.shape[2:])
        lows = [e * (k - 1) - low for k, e, (low, _) in zip(taps, self.dilations, self.pads)]
        w = turned_round(w, self.groups, d)

        def plain(y: Node, w: Node) -> Node:
            y, kernel = g.cast(y, g.accumulator(y.dtype)), w.shape[2:]
            parts = windows(y, range(2, 2 + d), kernel, (1,) * d, self.dilations, self.who)
            return _summed(parts, w, self.groups)

        static = all(isinstance(n, int) for n in (*y.shape[2:], *sizes, *taps))
        dilated = any(s > 1 < e for s, e in zip(self.steps, self.dilations))
        if static and max(self.steps) > 1 and not dilated:
            return fractional(y, w, self.steps, self.dilations, lows, cast(Sequence[int], sizes),
                              plain)  # fmt: skip
        y = g.pad(y, [(0, 0), (0, 0), *[(0, 0, s - 1) for s in self.steps]])
        pads: list[Any] = [(0, 0), (0, 0)]
        for n, m, k, e, low in zip(sizes, y.shape[2:], taps, self.dilations, lows):
            pads.append((low, sym.sub(sym.add(n, e * (k - 1)), sym.add(m, low))))
        return plain(pad_or_cut(y, pads), w)


def convolve(x: Node, w: Node, plan: _Plan) -> Node:
    """A call of its own, because its derivative for x is best written as a convolution too: the
    language would derive a sum over overlapping windows, which reads memory once per tap."""
    if not x.dtype.is_float:
        return plan.forth(x, w)
    return make(ops.CALL, (x, w), CallArg(_body(x.shape, w.shape, x.dtype, plan)))


def transpose(x: Node, w: Node, plan: _Plan, sizes: Sequence[Dim]) -> Node:
    """The same of the transpose, whose derivatives are those of the convolution the other way."""
    if not x.dtype.is_float:
        return plan.back(x, w, sizes)
    body = _transpose_body(x.shape, w.shape, x.dtype, plan, tuple(sizes))
    return make(ops.CALL, (x, w), CallArg(body))


@lru_cache(1024)
def _body(x_shape: Shape, w_shape: Shape, dtype: DType, plan: _Plan) -> Body:
    x, w = param(0, x_shape, dtype), param(1, w_shape, dtype)
    y = plan.forth(x, w)
    result, cotangent = param(2, y.shape, dtype), param(3, y.shape, dtype)
    (for_w,) = gradient((plan.forth(x, w, False),), (w,), (cotangent,))
    assert for_w is not None
    # written out, no call: bodies are finite, so a derivative's derivative is the language's
    for_x = plan.back(cotangent, w, x.shape[2:])
    backward = Body((for_x, for_w), (x, w, result, cotangent), f"{plan.who} backward")
    return Body((y,), (x, w), plan.who, backward)


@lru_cache(1024)
def _transpose_body(
    x_shape: Shape, w_shape: Shape, dtype: DType, plan: _Plan, sizes: tuple[Dim, ...]
) -> Body:
    x, w = param(0, x_shape, dtype), param(1, w_shape, dtype)
    y = plan.back(x, w, sizes)
    result, cotangent = param(2, y.shape, dtype), param(3, y.shape, dtype)
    for_x = plan.forth(cotangent, w)
    (for_w,) = gradient((plan.forth(cotangent, w, False),), (w,), (x,))
    assert for_w is not None
    backward = Body((for_x, for_w), (x, w, result, cotangent), f"{plan.who} backward")
    return Body((y,), (x, w), plan.who, backward)


def turned_round(w: Node, groups: int, d: int) -> Node:
    """(I, O/groups, *kernel) to (O, I/groups, *kernel), each kernel reversed along all axes."""
    channels, out = w.shape[:2]
    kernel = w.shape[2:]
    w = g.reshape(w, (groups, channels // groups, out, *kernel))  # type: ignore[operator]
    w = g.permute(w, (0, 2, 1, *range(3, 3 + d)))
    w = g.reshape(w, (groups * out, channels // groups, *kernel))  # type: ignore[operator]
    for axis in range(2, 2 + d):
        w = g.flip(w, axis)
    return w


def _summed(parts: Node, w: Node, groups: int) -> Node:
    """Windows (*kernel, N, C, *pixels) times w (O, C/groups, *kernel), and the sum."""
    kernel, d = w.shape[2:], w.ndim - 2
    n, pixels = parts.shape[d], parts.shape[d + 2 :]
    out, inner = w.shape[0] // groups, w.shape[1]  # type: ignore[operator]
    # to (N, groups, 1, in, *kernel, *pixels)
    parts = g.permute(parts, (d, d + 1, *range(d), *range(d + 2, 2 * d + 2)))
    parts = g.reshape(parts, (n, groups, 1, inner, *kernel, *pixels))
    weights = g.reshape(g.cast(w, parts.dtype), (1, groups, out, inner, *kernel, *[1] * d))
    shape = (n, groups, out, inner, *kernel, *pixels)
    product = g.mul(g.expand(parts, shape), g.expand(weights, shape))
    summed = g.total(product, tuple(range(3, 4 + d)))
    return g.cast(g.reshape(summed, (n, groups * out, *pixels)), w.dtype)


def _transposed(
    who: str, d: int, x: Any, weight: Any, bias: Any, stride: Any, padding: Any,
    output_padding: Any, groups: int, dilation: Any,
) -> Any:  # fmt: skip
    _check(who, d, x, weight, groups, weight.shape[0])
    if x.ndim == d + 1:
        return _transposed(who, d, x.unsqueeze(0), weight, bias, stride, padding, output_padding,
                           groups, dilation).squeeze(0)  # fmt: skip
    steps, dilations = _paces(who, d, stride, dilation)
    pads = g.pair(padding, d, who, "padding")
    extra = g.pair(output_padding, d, who, "output_padding")
    for e, s, k in zip(extra, steps, dilations):
        if e and e >= max(s, k):
            raise ShapeError(
                f"{who}: output_padding {e} must be smaller than the stride {s} or dilation {k}"
            )
    reach = [k * (n - 1) for k, n in zip(dilations, weight.shape[2:])]
    sizes = [s * (n - 1) + r - 2 * p + e + 1
             for s, n, r, p, e in zip(steps, x.shape[2:], reach, pads, extra)]  # fmt: skip
    dtype = common_dtype(who, x, weight)
    plan = _Plan(tuple((p, p - e) for p, e in zip(pads, extra)), steps, dilations, groups, who)
    result = transpose(g.cast(x.node, dtype), g.cast(weight.node, dtype), plan, sizes)
    return _with_bias(who, x._result(result), bias, d)
