"""Normalisations: layer, RMS, batch, group, instance, local response."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Node
from muladd.ir.ops import equal_dims
from muladd.tensor import graph as g
from muladd.tensor import precision
from muladd.tensor.handle import Handle
from muladd.tensor.operands import check_floating, widened
from muladd.tensor.reduce import count_of, mean, moments

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Normalization(Handle):
    """Each subtracts a mean and divides by a deviation, over different axes (variance in two
    passes, without correction)."""

    __slots__ = ()

    def _normalized(self, axes: tuple[int, ...], eps: float) -> Tensor:
        x = precision.raised(self)
        return self._result(g.cast(normalized(widened(x.node), axes, eps), x.dtype))

    def layernorm(
        self, axis: Any = -1, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        """Normalised over one axis or several."""
        check_floating("layernorm", self)
        x = self._normalized(g.axes_of("layernorm", axis, self.ndim), eps)
        return _scaled(x, weight, bias)

    def layer_norm(
        self, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        """Normalised over the last axes, whose sizes are `normalized_shape`."""
        axes = _last_axes("layer_norm", self, normalized_shape)
        return self.layernorm(axes, weight, bias, eps)

    def rms_norm(
        self, normalized_shape: Any = None, weight: Any = None, eps: float | None = None, *,
        axis: Any = None,
    ) -> Tensor:  # fmt: skip
        """Divided by the root of the mean square over the last axes (or `axis`)."""
        check_floating("rms_norm", self)
        if axis is not None or normalized_shape is None:
            axes = g.axes_of("rms_norm", -1 if axis is None else axis, self.ndim)
        else:
            axes = _last_axes("rms_norm", self, normalized_shape)
        x = widened(self.node)
        small = 2.0**-x.dtype.mantissa if eps is None else eps
        power = g.add(mean(g.mul(x, x), axes), small)
        factor = g.div(1.0, g.sqrt(power))
        y = g.mul(x, g.expand(g.keep(factor, x.shape, axes), x.shape))
        return _scaled(self._result(g.cast(y, self.dtype)), weight, None)

    def batch_norm(
        self, running_mean: Any = None, running_var: Any = None, weight: Any = None,
        bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Normalised per channel (axis 1): by the batch while training, else by running values.

        While training the running mean and (unbiased) variance, if given, are updated in place;
        an empty batch leaves them. One value per channel has no variance: ShapeError.
        """
        check_floating("batch_norm", self)
        if self.ndim < 2:
            raise ShapeError(f"batch_norm: expected (N, C, ...), got {list(self.shape)}")
        axes = (0, *range(2, self.ndim))
        wide: Any = self._result(widened(self.node))
        shape = (-1, *[1] * (self.ndim - 2))
        if training or running_mean is None:
            count = count_of(self.node, axes)
            if equal_dims(count, 1):
                raise ShapeError(
                    f"batch_norm: {list(self.shape)} has one value per channel, which is always "
                    "normalised to 0; train on more values at once, or evaluate with .eval()"
                )
            spread, centre = (self._result(n) for n in moments(wide.node, axes, 0))
            if running_mean is not None and training and not equal_dims(count, 0):
                _update(running_mean, centre, momentum)
                _update(running_var, self._result(moments(wide.node, axes, 1)[0]), momentum)
        else:
            centre, spread = running_mean, running_var
        factor = (spread + eps).rsqrt()
        y = (wide - centre.reshape(shape)) * factor.reshape(shape)
        weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
        return _scaled(y.cast(self.dtype), weight, bias)

    def group_norm(
        self, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
    ) -> Tensor:
        """Normalised over groups of neighbouring channels (axis 1) and all later axes."""
        check_floating("group_norm", self)
        if self.ndim < 2 or self.shape[1] % num_groups:  # type: ignore[operator]
            raise ShapeError(
                f"group_norm: {list(self.shape)} cannot be cut into {num_groups} groups of channels"
            )
        grouped = self.unflatten(1, (num_groups, -1))
        y = grouped._normalized(tuple(range(2, grouped.ndim)), eps).reshape(self.shape)
        shape = (-1, *[1] * (self.ndim - 2))
        weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
        return _scaled(y, weight, bias)

    def instance_norm(
        self, running_mean: Any = None, running_var: Any = None, weight: Any = None,
        bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """Normalised per example and channel over all later axes."""
        if not use_input_stats:
            return self.batch_norm(running_mean, running_var, weight, bias, False, momentum, eps)
        axes = tuple(range(2, self.ndim))
        if running_mean is not None:
            spread, centre = self.var_mean(axes)
            _update(running_mean, centre.mean(0), momentum)
            _update(running_var, spread.mean(0), momentum)
        shape = (-1, *[1] * (self.ndim - 2))
        weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
        return _scaled(self._normalized(axes, eps), weight, bias)

    def local_response_norm(
        self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> Tensor:
        """Divided by a power of the mean square over `size` neighbouring channels."""
        squares = (self * self).movedim(1, -1)
        padded = squares.pad((size // 2, (size - 1) // 2))
        sums = padded.unfold(-1, size, 1).mean(-1).movedim(-1, 1)
        return self / (sums * alpha + k) ** beta


def _last_axes(who: str, x: Handle, shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if x.shape[x.ndim - len(sizes) :] != sizes:
        raise ShapeError(f"{who}: {list(x.shape)} does not end in {list(sizes)}")
    return tuple(range(x.ndim - len(sizes), x.ndim))


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    y = x if weight is None else x * weight
    return y if bias is None else y + bias


def _update(running: Any, now: Any, momentum: float) -> None:
    new = running * (1 - momentum) + now.detach() * momentum
    running.assign(new.cast(running.dtype).detach())


def normalized(x: Node, axes: tuple[int, ...], eps: float) -> Node:
    """(x - mean) / sqrt(variance + eps)."""
    centre = mean(x, axes)
    distance = g.sub(x, g.expand(g.keep(centre, x.shape, axes), x.shape))
    spread = mean(g.mul(distance, distance), axes)
    factor = g.div(1.0, g.sqrt(g.add(spread, eps)))
    return g.mul(distance, g.expand(g.keep(factor, x.shape, axes), x.shape))
