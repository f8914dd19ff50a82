"""Pooling over windows in one to three dimensions."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Node, const, iota
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.operands import widened
from muladd.tensor.reduce import first_index
from muladd.tensor.windows import windows

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Pooling(Handle):
    """Maximum, mean and p-norm over windows of the last axes; leading axes are carried along."""

    __slots__ = ()

    def max_pool1d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """The greatest of each window of the last axis."""
        return _max(1, self, kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    def max_pool2d(
        self, kernel_size: Any = 2, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """The greatest of each window of the last two axes; also its flat index if asked for."""
        return _max(2, self, kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    def max_pool3d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Any:  # fmt: skip
        """The greatest of each window of the last three axes."""
        return _max(3, self, kernel_size, stride, padding, dilation, ceil_mode, return_indices)

    def avg_pool1d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Tensor:  # fmt: skip
        """The mean of each window of the last axis."""
        return _mean(1, self, kernel_size, stride, padding, ceil_mode, count_include_pad, None)

    def avg_pool2d(
        self, kernel_size: Any = 2, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The mean of each window of the last two axes."""
        return _mean(2, self, kernel_size, stride, padding, ceil_mode, count_include_pad,
                     divisor_override)  # fmt: skip

    def avg_pool3d(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        """The mean of each window of the last three axes."""
        return _mean(3, self, kernel_size, stride, padding, ceil_mode, count_include_pad,
                     divisor_override)  # fmt: skip

    def lp_pool1d(
        self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        """(sum of x^p)^(1/p) of each window of the last axis."""
        return _lp(1, self, norm_type, kernel_size, stride, ceil_mode)

    def lp_pool2d(
        self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        """(sum of x^p)^(1/p) of each window of the last two axes."""
        return _lp(2, self, norm_type, kernel_size, stride, ceil_mode)

    def lp_pool3d(
        self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        """(sum of x^p)^(1/p) of each window of the last three axes."""
        return _lp(3, self, norm_type, kernel_size, stride, ceil_mode)

    def adaptive_avg_pool1d(self, output_size: Any) -> Tensor:
        """The means of `output_size` parts of the last axis, as equal as can be."""
        return _adaptive(1, self, output_size, False)

    def adaptive_avg_pool2d(self, output_size: Any) -> Tensor:
        """The same over the last two axes; None keeps an axis."""
        return _adaptive(2, self, output_size, False)

    def adaptive_avg_pool3d(self, output_size: Any) -> Tensor:
        """The same over the last three axes."""
        return _adaptive(3, self, output_size, False)

    def adaptive_max_pool1d(self, output_size: Any) -> Tensor:
        """The greatest of `output_size` parts of the last axis."""
        return _adaptive(1, self, output_size, True)

    def adaptive_max_pool2d(self, output_size: Any) -> Tensor:
        """The same over the last two axes."""
        return _adaptive(2, self, output_size, True)

    def adaptive_max_pool3d(self, output_size: Any) -> Tensor:
        """The same over the last three axes."""
        return _adaptive(3, self, output_size, True)

    def max_unpool2d(
        self, indices: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        output_size: Any = None,
    ) -> Tensor:  # fmt: skip
        """The inverse of max_pool2d with return_indices: values go where they came from."""
        kernel = g.pair(kernel_size, 2, "max_unpool2d", "kernel_size")
        step = kernel if stride is None else g.pair(stride, 2, "max_unpool2d", "stride")
        pads = g.pair(padding, 2, "max_unpool2d", "padding")
        if output_size is None:
            output_size = [(n - 1) * s - 2 * p + k  # type: ignore[operator]
                           for n, s, p, k in zip(self.shape[-2:], step, pads, kernel)]  # fmt: skip
        h, w = output_size[-2:]
        flat = self.flatten(-2)
        out = self.new_zeros(*self.shape[:-2], h * w)
        return out.scatter(-1, indices.flatten(-2), flat).unflatten(-1, (h, w))


class _Frame:
    """Windows, steps and paddings of a pooling over the last d axes."""

    def __init__(
        self, who: str, d: int, x: Handle, kernel_size: Any, stride: Any, padding: Any,
        dilation: Any, ceil_mode: bool,
    ) -> None:  # fmt: skip
        if x.ndim < d + 1:
            raise ShapeError(f"{who}: expected at least {d + 1} axes, got {list(x.shape)}")
        self.kernel = g.pair(kernel_size, d, who, "kernel_size")
        self.steps = self.kernel if stride is None or stride == () \
            else g.pair(stride, d, who, "stride")  # fmt: skip
        self.pads = g.pair(padding, d, who, "padding")
        self.dilations = g.pair(dilation, d, who, "dilation")
        if any(2 * p > k for p, k in zip(self.pads, self.kernel)):
            raise ShapeError(
                f"{who}: padding {padding} exceeds half of the kernel size {kernel_size}"
            )
        self.who, self.axes = who, tuple(range(x.ndim - d, x.ndim))
        self.extra = [0] * d
        if ceil_mode:
            for i, a in enumerate(self.axes):
                self.extra[i] = self._ceil(i, x.shape[a])  # type: ignore[arg-type]

    def _ceil(self, i: int, n: int) -> int:
        """Padding at the end for one more window, unless it would start in the padding."""
        p, step = self.pads[i], self.steps[i]
        reach = self.dilations[i] * (self.kernel[i] - 1) + 1
        left = n + 2 * p - reach
        count = -(-left // step) + 1
        if (count - 1) * step >= n + p:
            count -= 1
        return max((count - 1) * step + reach - n - 2 * p, 0)

    def padded(self, x: Node, value: Any) -> Node:
        still = [(0, 0)] * (x.ndim - len(self.axes))
        ends = [(p, p + e) for p, e in zip(self.pads, self.extra)]
        return g.pad(x, [*still, *ends], value)

    def windows(self, x: Node) -> Node:
        """The taps of each window as leading axes."""
        return windows(x, self.axes, self.kernel, self.steps, self.dilations, self.who)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(range(len(self.axes)))


def _max(
    d: int, x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
    return_indices: bool,
) -> Any:  # fmt: skip
    who = f"max_pool{d}d"
    frame = _Frame(who, d, x, kernel_size, stride, padding, dilation, ceil_mode)
    taps = frame.windows(frame.padded(x.node, x.dtype.min))
    values = g.greatest(taps, frame.taps)
    if not return_indices:
        return x._result(values)
    sizes = tuple(x.shape[a] for a in frame.axes)
    count = g.dims_product(sizes)
    position = g.expand(g.reshape(iota(count), sizes), x.shape)
    places = frame.windows(frame.padded(position, -1))
    flat_shape = (g.dims_product(taps.shape[:d]), *taps.shape[d:])
    flat, flat_places = g.stop(g.reshape(taps, flat_shape)), g.reshape(places, flat_shape)
    first = first_index(flat, 0, g.greatest(flat, (0,)))
    here = g.eq(g.along(iota(flat_shape[0]), 0, flat_shape), g.expand(first, flat_shape))
    chosen = g.total(g.where(here, flat_places, 0), (0,))
    return x._result(values), x._result(chosen)


def _sums(frame: _Frame, x: Node) -> Node:
    return g.total(frame.windows(frame.padded(x, 0)), frame.taps)


def _mean(
    d: int, x: Any, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Any:  # fmt: skip
    frame = _Frame(f"avg_pool{d}d", d, x, kernel_size, stride, padding, 1, ceil_mode)
    sums = _sums(frame, widened(x.node))
    size = divisor
    if divisor is None and (not any(frame.extra) and (count_include_pad or not any(frame.pads))):
        size = 1
        for k in frame.kernel:
            size *= k
    if size is not None:
        return x._result(g.cast(g.mul(sums, 1.0 / size), x.dtype))
    ones = const(1, sums.dtype, tuple(x.shape[a] for a in frame.axes))
    if count_include_pad:  # the padding counts, what ceil_mode added does not
        ones = g.pad(ones, [(p, p) for p in frame.pads], 1)
        frame.pads = (0,) * d
    frame.axes = tuple(range(d))
    count = _sums(frame, ones)
    return x._result(g.cast(g.div(sums, g.expand(count, sums.shape)), x.dtype))


def _lp(d: int, x: Any, p: float, kernel_size: Any, stride: Any, ceil_mode: bool) -> Any:
    if p == float("inf"):
        return _max(d, x, kernel_size, stride, 0, 1, ceil_mode, False)
    frame = _Frame(f"lp_pool{d}d", d, x, kernel_size, stride, 0, 1, ceil_mode)
    return x._result(_sums(frame, (x**p).node)) ** (1.0 / p)


def _adaptive(d: int, x: Any, output_size: Any, greatest: bool) -> Any:
    who = f"adaptive_{'max' if greatest else 'avg'}_pool{d}d"
    if x.ndim < d + 1:
        raise ShapeError(f"{who}: expected at least {d + 1} axes, got {list(x.shape)}")
    sizes = output_size if isinstance(output_size, list | tuple) else (output_size,) * d
    if len(sizes) != d:
        raise ShapeError(f"{who}: output_size {output_size} needs {d} entries")
    node = widened(x.node) if not greatest else x.node
    for axis, m in zip(range(x.ndim - d, x.ndim), sizes):
        if m is not None:
            node = _parts(node, axis, m, greatest)
    return x._result(g.cast(node, x.dtype))


def _parts(x: Node, axis: int, m: int, greatest: bool) -> Node:
    """One axis reduced to m parts; part i is floor(i n / m) .. ceil((i + 1) n / m)."""
    n: Any = x.shape[axis]
    if n % m == 0:
        cut = g.reshape(x, (*x.shape[:axis], m, n // m, *x.shape[axis + 1 :]))
        if greatest:
            return g.greatest(cut, (axis + 1,))
        return g.mul(g.total(cut, (axis + 1,)), m / n)
    shape = (*x.shape[:axis], m, n, *x.shape[axis + 1 :])
    part = iota(m, dt.int64)
    start = g.div(g.mul(part, n), m)
    end = g.div(g.add(g.mul(g.add(part, 1), n), m - 1), m)
    position = g.along(iota(n), axis + 1, shape)
    begins, ends = g.along(start, axis, shape), g.along(end, axis, shape)
    inside = g.both(g.ge(position, begins), g.lt(position, ends))
    wide = g.expand(g.unsqueeze(x, axis), shape)
    if greatest:
        return g.greatest(g.where(inside, wide, x.dtype.min), (axis + 1,))
    sums = g.total(g.where(inside, wide, 0), (axis + 1,))
    count = g.cast(g.sub(end, start), x.dtype)
    return g.div(sums, g.along(count, axis, sums.shape))
