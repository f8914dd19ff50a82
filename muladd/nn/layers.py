"""Layers with a weight each: Linear, Embedding, convolutions; and Dropout, Flatten, Identity.

Weights have torch's shapes and names, and start with torch's distributions, so that its checkpoints
load and its recipes train the same.
"""
from __future__ import annotations

from math import prod, sqrt
from typing import Any

from muladd.errors import ShapeError
from muladd.nn import amp, init
from muladd.nn.module import Module, Parameter
from muladd.tensor import Tensor
from muladd.tensor.random import probability

Sizes = int | tuple[int, ...]


class Linear(Module):
    """x (..., in) to x @ weight.T + bias (..., out); weight is (out, in)."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, **options: Any
    ) -> None:
        self.in_features, self.out_features = in_features, out_features
        bound = 1 / sqrt(in_features) if in_features else 0.0
        self.weight = Parameter(init.uniform((out_features, in_features), bound, **options))
        self.bias = Parameter(init.uniform((out_features,), bound, **options)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in the dtype that `amp.autocast` asks for."""
    x, weight = amp.lower(x, weight)
    return x.linear(weight, None if bias is None else bias.cast(x.dtype))


class Embedding(Module):
    """Integers (...) to rows of weight (..., dim); weight is (count, dim).

    The row `padding_idx` starts as zeros and gets no gradient.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ShapeError(
                f"Embedding: padding_idx {padding_idx} is not one of {num_embeddings} rows"
            )
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weight = init.normal((num_embeddings, embedding_dim), **options)
        if self.padding_idx is not None:
            weight = weight * self._kept_rows().cast(weight.dtype)
        self.weight = Parameter(weight)

    def _kept_rows(self) -> Tensor:
        """(count, 1), false at the padding row."""
        return (Tensor.arange(self.num_embeddings) != self.padding_idx).unsqueeze(-1)

    def forward(self, index: Tensor) -> Tensor:
        return index.embedding(self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


# --- convolutions ------------------------------------------------------------------------------


def _tuple(value: Sizes, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


class _Conv(Module):
    """What all convolutions share. weight is (out, in / groups, *kernel)."""

    axes = 0
    transposed = False

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes = 1,
        padding: Sizes | str = 0, dilation: Sizes = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", output_padding: Sizes = 0, **options: Any,
    ) -> None:  # fmt: skip
        if in_channels % groups or out_channels % groups:
            raise ShapeError(
                f"{type(self).__name__}: {in_channels} and {out_channels} channels do not divide "
                f"into {groups} groups"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _tuple(kernel_size, self.axes), _tuple(stride, self.axes)
        self.dilation = _tuple(dilation, self.axes)
        self.output_padding = _tuple(output_padding, self.axes)
        self.padding, self.padding_mode = self._padding(padding), padding_mode
        first, second = (in_channels, out_channels) if self.transposed else (
            out_channels, in_channels)  # fmt: skip
        shape = (first, second // groups, *self.kernel_size)
        bound = 1 / sqrt(shape[1] * prod(self.kernel_size))
        self.weight = Parameter(init.uniform(shape, bound, **options))
        self.bias = Parameter(init.uniform((out_channels,), bound, **options)) if bias else None

    def _padding(self, padding: Sizes | str) -> tuple[tuple[int, int], ...]:
        """(low, high) per axis; 'same' keeps the size, the odd pixel going to the end."""
        if padding == "valid":
            padding = 0
        if padding == "same":
            if any(s != 1 for s in self.stride) or self.transposed:
                raise ShapeError(f"{type(self).__name__}: padding='same' needs stride 1")
            totals = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation)]
            return tuple((t // 2, t - t // 2) for t in totals)
        if isinstance(padding, str):
            raise ShapeError(
                f"{type(self).__name__}: padding is a size, 'same' or 'valid', got {padding!r}"
            )
        return tuple((p, p) for p in _tuple(padding, self.axes))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            flat = [n for pair in reversed(padding) for n in pair]
            x = x.pad(flat, mode=self.padding_mode)
            padding = ((0, 0),) * self.axes
        x, weight = amp.lower(x, self.weight)
        bias = None if self.bias is None else self.bias.cast(x.dtype)
        return getattr(x, f"conv{self.axes}d")(
            weight, bias, stride=self.stride, padding=padding, dilation=self.dilation,
            groups=self.groups,
        )  # fmt: skip

    def _check(self, x: Tensor) -> None:
        channels = -self.axes - 1
        if x.ndim not in (self.axes + 1, self.axes + 2) or x.shape[channels] != self.in_channels:
            raise ShapeError(
                f"{type(self).__name__}: takes (batch, {self.in_channels}, "
                f"{self.axes} spatial axes), got {list(x.shape)}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )


class Conv1d(_Conv):
    """x (batch, in, length); weight (out, in / groups, kernel)."""

    axes = 1


class Conv2d(_Conv):
    """x (batch, in, height, width); weight (out, in / groups, kernel, kernel)."""

    axes = 2


class Conv3d(_Conv):
    """x (batch, in, depth, height, width)."""

    axes = 3


class _ConvTranspose(_Conv):
    """A convolution's gradient as a layer: upsamples. weight is (in, out / groups, *kernel)."""

    transposed = True

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes = 1,
        padding: Sizes = 0, output_padding: Sizes = 0, groups: int = 1, bias: bool = True,
        dilation: Sizes = 1, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            output_padding=output_padding, **options,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        x, weight = amp.lower(x, self.weight)
        bias = None if self.bias is None else self.bias.cast(x.dtype)
        return getattr(x, f"conv_transpose{self.axes}d")(
            weight, bias, stride=self.stride, padding=tuple(a for a, _ in self.padding),
            output_padding=self.output_padding, groups=self.groups, dilation=self.dilation,
        )  # fmt: skip


class ConvTranspose1d(_ConvTranspose):
    """x (batch, in, length) to about stride times the length."""

    axes = 1


class ConvTranspose2d(_ConvTranspose):
    """x (batch, in, height, width) to about stride times the size."""

    axes = 2


class ConvTranspose3d(_ConvTranspose):
    """x (batch, in, depth, height, width) to about stride times the size."""

    axes = 3


# --- without a weight --------------------------------------------------------------------------


class Dropout(Module):
    """In training, zeroes elements with probability p and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("Dropout", p)

    def forward(self, x: Tensor) -> Tensor:
        return x.dropout(self.p, training=True) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """Axes start_dim to end_dim as one; by default all but the first."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)


class Identity(Module):
    """x itself, whatever it is made with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x
