"""Normalisations: each subtracts a mean and divides by a spread, over different axes."""
from __future__ import annotations

from typing import Any

from muladd.errors import ShapeError
from muladd.ir import dtype as dt
from muladd.nn import amp
from muladd.nn.module import Module, Parameter
from muladd.tensor import Tensor, no_grad


def _normalised(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x normalised over the axes, mean, biased variance)."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    variance = (centred * centred).mean(axes, keepdim=True)
    return centred * (variance + eps).rsqrt(), mean, variance


class LayerNorm(Module):
    """Over the last axes, which have the sizes `normalized_shape`. Ba et al., 2016."""

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5,
        elementwise_affine: bool = True, bias: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape, self.eps = tuple(shape), eps
        self.weight = Parameter(Tensor.ones(*shape, **options)) if elementwise_affine else None
        affine_bias = elementwise_affine and bias
        self.bias = Parameter(Tensor.zeros(*shape, **options)) if affine_bias else None

    def forward(self, x: Tensor) -> Tensor:
        _check_tail(self, x)
        (x,) = amp.raise_(x)
        y, _, _ = _normalised(x, tuple(range(-len(self.normalized_shape), 0)), self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axes. Zhang and Sennrich, 2019.

    eps defaults to the dtype's epsilon, as in torch.
    """

    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float | None = None,
        elementwise_affine: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape, self.eps = tuple(shape), eps
        self.weight = Parameter(Tensor.ones(*shape, **options)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        _check_tail(self, x)
        (x,) = amp.raise_(x)
        eps = 2.0**-x.dtype.mantissa if self.eps is None else self.eps
        axes = tuple(range(-len(self.normalized_shape), 0))
        y = x * ((x * x).mean(axes, keepdim=True) + eps).rsqrt()
        return y if self.weight is None else y * self.weight

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


def _check_tail(layer: Any, x: Tensor) -> None:
    tail = tuple(x.shape[x.ndim - len(layer.normalized_shape) :])
    if x.ndim < len(layer.normalized_shape) or tail != layer.normalized_shape:
        raise ShapeError(
            f"{type(layer).__name__}: normalises last axes of {list(layer.normalized_shape)}, "
            f"got {list(x.shape)}"
        )


class GroupNorm(Module):
    """Over each group of channels and all positions, per sample. Wu and He, 2018."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        if num_channels % num_groups:
            raise ShapeError(
                f"GroupNorm: {num_channels} channels do not divide into {num_groups} groups"
            )
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(Tensor.ones(num_channels, **options)) if affine else None
        self.bias = Parameter(Tensor.zeros(num_channels, **options)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ShapeError(
                f"GroupNorm: takes (batch, {self.num_channels}, ...), got {list(x.shape)}"
            )
        (x,) = amp.raise_(x)
        grouped = x.reshape(x.shape[0], self.num_groups, -1)
        y = _normalised(grouped, (2,), self.eps)[0].reshape(*x.shape)
        return _per_channel(y, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


def _per_channel(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (y.ndim - 2))
    y = y if weight is None else y * weight.reshape(*shape)
    return y if bias is None else y + bias.reshape(*shape)


class _BatchNorm(Module):
    """Over the batch and all positions, per channel. Ioffe and Szegedy, 2015.

    Training uses the batch's own statistics and moves the running ones towards them by `momentum`
    (None: the plain average of all batches so far); evaluation uses the running ones.
    """

    ranks: tuple[int, ...] = ()

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = Parameter(Tensor.ones(num_features, **options)) if affine else None
        self.bias = Parameter(Tensor.zeros(num_features, **options)) if affine else None
        tracked = track_running_stats
        self.running_mean = Tensor.zeros(num_features, **options) if tracked else None
        self.running_var = Tensor.ones(num_features, **options) if tracked else None
        self.num_batches_tracked = Tensor(0, dtype=dt.int64) if tracked else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ranks or x.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__}: takes (batch, {self.num_features}, ...) with "
                f"{' or '.join(map(str, self.ranks))} axes, got {list(x.shape)}"
            )
        (x,) = amp.raise_(x)
        if self.training or self.running_mean is None or self.running_var is None:
            axes = (0, *range(2, x.ndim))
            y, mean, variance = _normalised(x, axes, self.eps)
            if self.training and self.running_mean is not None:
                count = x.numel() // self.num_features
                self._track(mean.detach().reshape(-1), variance.detach().reshape(-1), count)
            return _per_channel(y, self.weight, self.bias)
        scale = (self.running_var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -self.running_mean * scale
        return _per_channel(x, scale, shift if self.bias is None else shift + self.bias)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        with no_grad():
            self.num_batches_tracked.assign(self.num_batches_tracked + 1)
            step: Any = self.momentum
            if step is None:
                step = 1.0 / self.num_batches_tracked.cast(self.running_mean.dtype)
            unbiased = variance * (count / max(count - 1, 1))
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.assign(running + (new.cast(running.dtype) - running) * step)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


class BatchNorm1d(_BatchNorm):
    """x (batch, channels) or (batch, channels, length)."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """x (batch, channels, height, width)."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """x (batch, channels, depth, height, width)."""

    ranks = (5,)


class _InstanceNorm(Module):
    """Over all positions, per sample and channel. Ulyanov et al., 2016."""

    ranks: tuple[int, ...] = ()

    def __init__(
        self, num_features: int, eps: float = 1e-5, affine: bool = False, **options: Any
    ) -> None:
        self.num_features, self.eps = num_features, eps
        self.weight = Parameter(Tensor.ones(num_features, **options)) if affine else None
        self.bias = Parameter(Tensor.zeros(num_features, **options)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim not in self.ranks or x.shape[1] != self.num_features:
            raise ShapeError(
                f"{type(self).__name__}: takes (batch, {self.num_features}, ...) with "
                f"{' or '.join(map(str, self.ranks))} axes, got {list(x.shape)}"
            )
        (x,) = amp.raise_(x)
        y = _normalised(x, tuple(range(2, x.ndim)), self.eps)[0]
        return _per_channel(y, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class InstanceNorm1d(_InstanceNorm):
    """x (batch, channels, length)."""

    ranks = (3,)


class InstanceNorm2d(_InstanceNorm):
    """x (batch, channels, height, width)."""

    ranks = (4,)


class InstanceNorm3d(_InstanceNorm):
    """x (batch, channels, depth, height, width)."""

    ranks = (5,)
