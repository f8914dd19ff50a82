"""Normalisations: each subtracts a mean and divides by a spread, over different axes."""
from __future__ import annotations

from typing import Any

from muladd.errors import ShapeError
from muladd.ir import dtype as dt
from muladd.nn import amp
from muladd.nn.module import Module, Parameter
from muladd.tensor import Tensor, no_grad


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
        (x,) = amp.raise_(x)
        return x.layer_norm(self.normalized_shape, self.weight, self.bias, self.eps)

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
        (x,) = amp.raise_(x)
        return x.rms_norm(self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


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
        return x.group_norm(self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}"


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
        step: Any = self.momentum
        if self.training and self.num_batches_tracked is not None:
            with no_grad():
                self.num_batches_tracked.assign(self.num_batches_tracked + 1)
            if step is None:
                step = 1.0 / self.num_batches_tracked.cast(x.dtype)
        return x.batch_norm(
            self.running_mean, self.running_var, self.weight, self.bias, self.training, step,
            self.eps,
        )  # fmt: skip

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
        return x.instance_norm(weight=self.weight, bias=self.bias, eps=self.eps)

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
